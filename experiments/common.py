"""What the experiments share: arguments, cells of tables, results as Markdown and as JSON.

A script makes rows of cells, puts them into a ``Report`` and writes it once: ``NAME.md`` for
readers and ``NAME.json`` for programs come from the same cells. The section `Reading` of an
existing Markdown file is kept. The JSON file is one object:

    experiment  NAME
    title       of the Markdown file
    command     the command that makes it
    commit      of this repository, "-dirty" where files were changed; null: unknown
    machine     {"device", "cores", "processor", "python"}; null: unknown
    source      how the numbers came here; absent where the script wrote them itself
    numbers     {name: number}: those that stand in sentences, not in tables
    tables      [{"title", "columns", "rows": [{column: value}]}]

``title`` of a table is the heading above it. A value is a number, a text, null where there is
nothing, a list of numbers, or an object of numbers. All numbers are in the unit that the Markdown
shows (percent, points, seconds) and not rounded:

    over seeds           {"mean", "low", "high", "std", "values"}: 95 % t-interval, standard
                         deviation with n - 1, a value a seed (null: that seed diverged)
    over repeats         {"median", "min", "max"}
    beside a published   {"published", "published_std", "difference", "verdict", "accepted"}
                         or {"published", "protocols": {name: {"difference", "verdict"}}}
    a count              {"count", "of"}
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from cljax import stats
from cljax.runner.config import commit_of

__all__ = [
    "ABSENT", "NUMBER", "READING", "RESULTS", "Cell", "Report", "Table", "add", "arguments",
    "as_json", "as_number", "counted", "device", "difference", "line", "markdown", "metric",
    "number", "of_each", "one_core_each", "over_repeats", "over_seeds", "percent", "printed",
    "reading_of", "recorded", "spread", "write",
]  # fmt: skip

RESULTS = Path("experiments/results")
READING, ABSENT = "## Reading", "-"
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?"  # as results show it
By = Literal["ci95", "std"]
T = TypeVar("T")
R = TypeVar("R")


def arguments(
    doc: str | None,
    *,
    smoke: str,
    data_dir: bool = True,
    recipes: Sequence[str] = (),
    seeds: int | None = None,
    runs: str | None = None,
    out: str | Path | None = None,
) -> argparse.ArgumentParser:
    """A parser with the arguments that experiments share.

    Args:
      doc: the script's; its first line is the description.
      smoke: what ``--smoke`` runs.
      recipes: choices of ``--recipe``, the default first.
      seeds, runs, out: the defaults; None: the script has no such argument.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if data_dir:
        parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    if recipes:
        parser.add_argument("--recipe", choices=recipes, default=recipes[0])
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds)
    if runs is not None:
        parser.add_argument("--runs", type=Path, default=Path("runs") / runs)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    if out is not None:
        told = "not written by --smoke" if Path(out).suffix else None
        parser.add_argument("--out", type=Path, default=RESULTS / out, help=told)
    return parser


class Cell(NamedTuple):
    """A cell of a table: as Markdown shows it, and as JSON stores it."""

    text: str
    value: Any


def number(value: float | None, spec: str = ".2f", unit: str = "") -> Cell:
    """A number; None is shown as a dash."""
    if value is None:
        return Cell(ABSENT, None)
    return Cell(f"{value:{spec}}{unit}", _plain(value))


def percent(fraction: float | None, spec: str = ".2f") -> Cell:
    """A fraction in percent."""
    return number(None if fraction is None else 100 * fraction, spec)


def metric(summary: Mapping[str, Any] | None, by: By = "ci95", absent: str = "diverged") -> Cell:
    """A metric of ``results.json`` in percent; seeds that diverged are counted."""
    if summary is None or summary["mean"] is None:
        return Cell(absent, None if absent == ABSENT else absent)
    times = lambda value: None if value is None else 100 * value
    ci95 = summary["ci95"] and tuple(map(times, summary["ci95"]))
    found = stats.Summary(times(summary["mean"]), times(summary["std"]), ci95, ())
    text, value = _spread(found, by, ".2f")
    lost = sum(one is None for one in summary["values"])
    value["values"] = [times(one) for one in summary["values"]]
    if not lost:
        return Cell(text, value)
    return Cell(f"{text} ({lost} diverged)", {**value, "diverged": lost})


def spread(values: Any, by: By = "ci95", scale: float = 1.0, spec: str = ".2f") -> Cell:
    """Values of seeds [S], times ``scale``: mean with 95 % interval or standard deviation."""
    found = stats.summary(scale * np.asarray(values, float))
    text, value = _spread(found, by, spec)
    return Cell(text, {**value, "values": list(found.values)})


def _spread(found: stats.Summary, by: By, spec: str) -> tuple[str, dict[str, Any]]:
    low, high = found.ci95 or (None, None)
    value = {"mean": found.mean, "low": low, "high": high, "std": found.std}
    if by == "ci95":
        return stats.with_interval(found.mean, found.ci95, spec=spec), value
    text = f"{found.mean:{spec}}"
    return text if found.std is None else f"{text} ± {found.std:{spec}}", value


def difference(pair: stats.Paired, scale: float = 100.0) -> Cell:
    """A paired difference with its 95 % interval, in points."""
    low, high = (None, None) if pair.ci95 is None else (scale * end for end in pair.ci95)
    text = stats.with_interval(pair.diff, pair.ci95, scale=scale)
    value = {"mean": scale * pair.diff, "low": low, "high": high}
    return Cell(text if text.startswith("-") else f"+{text}", value)


def over_repeats(values: Sequence[float], spec: str = ".1f") -> Cell:
    """Repeated measurements: median and range."""
    middle, least, most = statistics.median(values), min(values), max(values)
    text = f"{middle:{spec}} ({least:{spec}} to {most:{spec}})"
    return Cell(text, {"median": middle, "min": least, "max": most})


def of_each(values: Sequence[float], spec: str = ".2f", between: str = ", ") -> Cell:
    """Several numbers, one beside another."""
    return Cell(between.join(f"{value:{spec}}" for value in values), [*map(_plain, values)])


def counted(count: int, of: int) -> Cell:
    """``count`` of so many."""
    return Cell(f"{count} of {of}", {"count": count, "of": of})


class Table(NamedTuple):
    """Names of columns, and rows of cells: ``Cell``, text, an integer or None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Report(NamedTuple):
    """What an experiment found.

    ``about`` follows the command in the first sentence. ``parts`` are tables, and lines of text
    such as headings. ``numbers`` are those of sentences.
    """

    title: str
    command: str
    about: str
    parts: Sequence[Table | str]
    numbers: Mapping[str, float] = {}


def line(row: Sequence[Any]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(_text(cell) for cell in row)} |"


def printed(row: Sequence[Any]) -> Sequence[Any]:
    """The row, which is also printed."""
    print(line(row), flush=True)
    return row


def markdown(part: Table | str) -> list[str]:
    """The lines of a part of a report."""
    if isinstance(part, str):
        return [part]
    rule = "| " + " | ".join(["---"] * len(part.columns)) + " |"
    return [line(part.columns), rule, *map(line, part.rows)]


def write(out: Path, report: Report) -> None:
    """Writes ``out`` as Markdown, its section `Reading` kept, and the JSON file beside it."""
    head = [f"# {report.title}", "", f"Made by `{report.command}`{report.about}", ""]
    body = [text for part in report.parts for text in markdown(part)]
    reading = reading_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*head, *body]).rstrip("\n") + "\n"
    out.write_text(text + (f"\n{reading}" if reading else ""), "utf-8")
    out.with_suffix(".json").write_text(as_json(_stored(out.stem, report)), "utf-8")


def add(out: Path, report: Report) -> None:
    """Adds the report's parts to those at ``out``, in Markdown and JSON."""
    if not out.exists():
        write(out, report)
        return
    before, reading = out.read_text("utf-8").partition(READING)[0], reading_of(out)
    body = "\n".join(text for part in report.parts for text in markdown(part))
    text = f"{before.rstrip()}\n\n{body.rstrip()}\n"
    out.write_text(text + (f"\n{reading}" if reading else ""), "utf-8")
    path, more = out.with_suffix(".json"), _stored(out.stem, report)
    old = json.loads(path.read_text("utf-8"))
    path.write_text(as_json({**old, "tables": [*old["tables"], *more["tables"]]}), "utf-8")


def reading_of(path: Path) -> str:
    """The section `Reading` of a file of results, which is written by hand."""
    old = path.read_text("utf-8") if path.exists() else ""
    return old[old.index(READING) :] if READING in old else ""


def _stored(name: str, report: Report) -> dict[str, Any]:
    """A report in the form of the JSON file."""
    tables, title = [], report.title
    for part in report.parts:
        if isinstance(part, Table):
            rows = [dict(zip(part.columns, map(_value, row), strict=True)) for row in part.rows]
            tables.append({"title": title, "columns": list(part.columns), "rows": rows})
            if len(set(part.columns)) < len(part.columns):
                raise ValueError(f"two columns of a table in {name} have one name: {part.columns}")
        for text in part.splitlines() if isinstance(part, str) else ():
            title = text.removeprefix("## ") if text.startswith("## ") else title
    return {
        "experiment": name, "title": report.title, "command": report.command,
        "commit": commit_of(Path(__file__).parents[1]), "machine": _machine(),
        "numbers": {key: _plain(value) for key, value in report.numbers.items()},
        "tables": tables,
    }  # fmt: skip


def as_json(results: Mapping[str, Any]) -> str:
    """Results as JSON text, a row of a table a line."""
    dump = lambda value, **how: json.dumps(value, ensure_ascii=False, allow_nan=False, **how)
    tables = []
    for table in results["tables"]:
        rows = ",\n   ".join(map(dump, table["rows"]))
        head = dump({key: value for key, value in table.items() if key != "rows"})
        tables.append(f'  {head[:-1]}, "rows": [\n   {rows}\n  ]}}')
    head = dump({key: value for key, value in results.items() if key != "tables"}, indent=1)
    body = ",\n".join(tables)
    return f'{head[:-2]},\n "tables": [\n{body}\n ]\n}}\n'


def device() -> str:
    """The kind of the first device."""
    return jax.devices()[0].device_kind


def _machine() -> dict[str, Any]:
    return {
        "device": device(), "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }  # fmt: skip


def _text(cell: Any) -> str:
    return cell.text if isinstance(cell, Cell) else ABSENT if cell is None else str(cell)


def _value(cell: Any) -> Any:
    value = cell.value if isinstance(cell, Cell) else cell
    return value if not isinstance(value, str) else as_number(value)


def as_number(text: str) -> float | int | str | None:
    """The number that a text is; None for an empty one or a dash; else the text."""
    if text in (ABSENT, ""):
        return None
    if not re.fullmatch(NUMBER, text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _plain(value: float) -> float | int | None:
    """A number of Python's own; None where it is not finite."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if math.isfinite(value) else None


def recorded(
    path: Path, identity: str, compute: Callable[[], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The arrays stored at ``path`` (.npz) if they have this identity, else computed and stored."""
    if path.exists() and (saved := dict(np.load(path)))["identity"] == identity:
        return saved
    values = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, identity=identity, **values)
    return dict(values)


def one_core_each() -> dict[str, bool] | None:
    """Compiler options for programs that run in threads, where XLA's own would be in the way."""
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None


def over_seeds(run: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``run`` of each item, the first alone, which compiles; then a thread a core."""
    first = run(items[0])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [first, *pool.map(run, items[1:])]
