"""Tables as data, and the same table as HTML, CSV and LaTeX.

A cell is text, or a ``Spread``: a mean with its interval over seeds, in fractions. Shown it is in
percent, or as it is where the score is no share; in CSV it stays as it is stored.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from cljax import measures
from cljax.stats import MIN_SEEDS, with_interval

__all__ = [
    "Spread", "Table", "as_csv", "columns", "html", "latex", "metric_rows", "metrics",
    "over_seeds", "score_of", "spreads", "unit_of",
]  # fmt: skip

CSV_HEAD = "run,method,stream,seeds,metric,mean,std,ci95_low,ci95_high,n,config_hash"
LATEX_HEAD = "% made by cljax report; needs the package booktabs"


class Spread(NamedTuple):
    """A number over seeds: fractions; ``ci95`` and ``std`` None with one seed.

    Shown, the interval is cut at ``bounds``; of fewer than five values, these take its place.
    ``signed`` numbers are differences, shown with a plus where they are above 0.
    """

    mean: float | None
    std: float | None = None
    ci95: tuple[float, float] | None = None
    values: tuple[float | None, ...] = ()
    bounds: tuple[float, float] = (-1.0, 1.0)
    score: str = measures.ACCURACY
    signed: bool = False

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return with_interval(
            self.mean, self.ci95, values=self.values, bounds=self.bounds,
            scale=measures.scale(self.score), spec=self._digits(),
        )  # fmt: skip

    def shown(self, value: float | None) -> str | None:
        """A number of the kind of the mean, such as one of its seeds."""
        if value is None:
            return None
        return format(measures.scale(self.score) * value, self._digits())

    def _digits(self) -> str:
        return measures.digits(self.score, "+.2f" if self.signed else ".2f")


class Table(NamedTuple):
    """A caption, the names of columns, and rows of cells; the first of a row is its name."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


def html(table: Table) -> str:
    """The table as HTML, all text escaped; numbers and their heads stand to the right."""
    numbers = [
        all(cell is None or _is_number(cell) for cell in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.head)
    numbers[0] = False  # the first column names its row
    styles = [' class="number"' if number else "" for number in numbers]
    head = "".join(
        f'<th scope="col"{style}>{escape(str(name))}</th>'
        for name, style in zip(table.head, styles, strict=True)
    )
    lines = [f"<table><caption>{escape(table.caption)}</caption>"]
    lines.append(f"<thead><tr>{head}</tr></thead><tbody>")
    for first, *rest in table.rows:
        cells = "".join(
            f"<td{style}>{escape('–' if cell is None else str(cell))}</td>"
            for cell, style in zip(rest, styles[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _is_number(cell: Any) -> bool:
    """Whether a cell reads as a number, perhaps with a unit or an interval."""
    if isinstance(cell, Spread):
        return True
    try:
        float(str(cell).split(" ")[0].replace(",", ""))
    except ValueError:
        return False
    return True


def spreads(results: Mapping[str, Any], score: str | None = None) -> dict[str, Spread]:
    """The headline's metrics that are one number, in the order of ``cljax.measures``.

    Args:
      score: what they are of; None: what the results say.
    """
    score = score_of(results) if score is None else score
    result = {
        name: Spread(cell["mean"], cell["std"], cell["ci95"] and tuple(cell["ci95"]),
                     tuple(cell["values"]), measures.bounds(name, score), score)
        for name, cell in results["metrics"].items()
        if not isinstance(cell["mean"], list)
    }  # fmt: skip
    return {name: result[name] for name in columns([result])}


def score_of(results: Mapping[str, Any]) -> str:
    """What a run's tests are judged by."""
    return str(results.get("score", measures.ACCURACY))


def unit_of(results: Mapping[str, Any]) -> str:
    """The unit of a run's numbers, for captions: percent, or what the score is called."""
    score = score_of(results)
    return "percent" if measures.in_percent(score) else score


def columns(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics, in the order of ``cljax.measures``."""
    return measures.ordered(name for some in metrics for name in some)


def metrics(results: Mapping[str, Any]) -> Table:
    """A run's metrics, one a row, in percent with intervals."""
    lost = sum(step is not None for step in results["diverged"])
    of = over_seeds(len(results["diverged"]) - lost)
    of += f" ({lost} of {len(results['diverged'])} seeds diverged)" if lost else ""
    score = score_of(results)
    rows = [[measures.label(name, score), cell] for name, cell in spreads(results).items()]
    caption = f"{results['method']} on {results['stream']}, {unit_of(results)}, {of}"
    return Table(caption, ["metric", "value"], rows)


def over_seeds(count: int) -> str:
    """What stands beside a mean of so many seeds, in words."""
    if count < 2:
        return f"{count} seed{'s'[: count != 1]}"
    beside = "single values" if count < MIN_SEEDS else "95 % t-interval"
    return f"mean over {count} seeds with {beside}"


def metric_rows(name: str, results: Mapping[str, Any]) -> list[list[Any]]:
    """Rows under ``CSV_HEAD``, one a metric, numbers as stored."""
    seeds = " ".join(map(str, results["seeds"]))
    rows = []
    for metric, cell in spreads(results).items():
        low, high = cell.ci95 or (None, None)
        count = sum(value is not None for value in cell.values)
        rows.append([name, results["method"], results["stream"], seeds, metric, cell.mean,
                     cell.std, low, high, count, results.get("config_hash")])  # fmt: skip
    return rows


def as_csv(head: str, rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a head; what is not there is empty, and no text is a formula."""
    text = io.StringIO()
    text.write(f"{head}\n")
    safe = ([_no_formula(cell) for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()


def _no_formula(cell: Any) -> Any:
    """A cell that a spreadsheet takes for text; numbers, also as text, stay as they are."""
    if isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r\n")) and not _is_number(cell):
        return f"'{cell}"
    return cell


def latex(tables: Sequence[Table]) -> str:
    """Tables for ``booktabs``, all text escaped; intervals as subscripts."""
    lines = [LATEX_HEAD]
    for table in tables:
        lines += [
            r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule",
            " & ".join(map(_tex, table.head)) + r" \\", r"\midrule",
        ]  # fmt: skip
        lines += [" & ".join(map(_tex_cell, row)) + r" \\" for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _tex_cell(cell: Any) -> str:
    if not isinstance(cell, Spread):
        return "--" if cell is None else _tex(cell)
    if cell.mean is None:
        return "--"
    mean, _, beside = str(cell).partition(" ")
    subscript = beside.replace(", ", r",\,")
    return f"${mean}_{{{subscript}}}$" if beside else f"${mean}$"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
        **{c: rf"\{c}" for c in "&%$#_{}"}}  # fmt: skip


def _tex(text: Any) -> str:
    return "".join(_TEX.get(character, character) for character in str(text))
