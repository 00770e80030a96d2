"""The page: one HTML file that needs nothing else, its tables as CSV and LaTeX, its figures as PNG.

    FILE.html              the page, with every figure inside
    FILE.csv, FILE.tex     the metrics of all runs, as numbers and as a table for a paper
    FILE_pairs.csv         paired differences, where runs are compared
    FILE_figures/*.png     the figures

A file that is already there is overwritten only if a report wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.errors import UserError, check_flag, check_path, check_text, given
from cljax.references import tables
from cljax.report import cells, comparison, sections
from cljax.report import figures as drawn
from cljax.report.folders import ReportFolder, matrix_of, open_folders
from cljax.report.parts import Part, attempt, notice
from cljax.report.style import STYLE, scrolling
from cljax.report.sweeps import of_sweep
from cljax.runner import artefacts
from cljax.storage import files as files_of
from cljax.version import __version__

__all__ = ["Made", "report"]

_FIRST = "<!doctype html>\n<!-- made by cljax report -->\n"
_MANY = 4  # more folders than this get no figures of their own


class Made(NamedTuple):
    """What a report wrote."""

    page: Path
    files: tuple[Path, ...]  # all others
    problems: tuple[str, ...]  # what could not be shown, as the page says too
    left_out: tuple[Path, ...] = ()  # folders of which nothing is shown


def report(
    *folders: str | Path, out: str | Path | None = None, metric: str = "RA", figures: bool = True
) -> Made:
    """Writes a page about runs and sweeps, and compares runs of the same stream.

    Args:
      folders: of runs, finished or not, of sweeps, or of studies (``cljax.compare``).
      out: the page, ending in .html; None: report.html in the folder, or, for several, here.
      metric: what runs are compared by.
      figures: whether to draw any; without, matrices are tables with coloured cells.

    Returns:
      The files, and what could not be shown.

    Raises:
      UserError: if no folder holds anything to show, or a file cannot be written.
    """
    for folder in folders:
        check_path(folder=folder)
    check_path(**given(out=out))
    check_flag(figures=figures)
    check_text(metric=metric)
    if not folders:
        raise UserError("A report needs the folder of a run or a sweep.")
    result = open_folders(folders)
    page = artefacts.place(out) if out is not None else _place(folders)
    if page.suffix.lower() != ".html":
        raise UserError(f"The report's path is {page}, but it must end in .html.")
    runs = [one for one in result if one.kind == "run" and _whole(one)]
    parts, latex, pairs = _compared(runs, metric, figures) if len(runs) > 1 else ([], [], [])
    parts += [*_told(result, runs, figures), *_bodies(result, figures)]
    rows = [row for one in runs for row in tables.metric_rows(one.name, one.results)]
    latex = latex or [comparison.table([one], metric) for one in runs]
    files = {
        page: (_FIRST, _page(result, parts)),
        page.with_suffix(".csv"): (tables.CSV_HEAD, tables.as_csv(tables.CSV_HEAD, rows)),
        page.with_suffix(".tex"): (tables.LATEX_HEAD, tables.latex(latex)),
    }
    if pairs:
        head = comparison.PAIRS_HEAD
        files[page.with_name(f"{page.stem}_pairs.csv")] = (head, tables.as_csv(head, pairs))
    for path, (start, _) in files.items():
        _check_ours(path, start)
    written = _write(files, page, parts)
    problems = tuple(text for one in result for text in one.problems)
    left_out = tuple(one.path for one in result if one.kind == "nothing")
    return Made(page, tuple(written), problems, left_out)


def _told(
    folders: Sequence[ReportFolder], runs: Sequence[ReportFolder], figures: bool
) -> list[Part]:
    """What of a report about several folders is left out."""
    compared = {one.name for one in runs}
    lines = [
        f"{one.name} is in no table of all runs: its results.json is incomplete."
        for one in folders
        if one.kind == "run" and one.name not in compared and len(folders) > 1
    ]
    if figures and len(folders) > _MANY:
        lines.append(
            f"For more than {_MANY} folders only figures that compare runs are drawn; a report of "
            "one folder has all of its own."
        )
    return [notice(line) for line in lines]


def _bodies(folders: Sequence[ReportFolder], figures: bool) -> list[Part]:
    """The parts about each folder."""
    few, parts = len(folders) > _MANY or not figures, []
    for one in folders:
        parts += [_heading(one)] if len(folders) > 1 else []
        parts += _of(one, few=few)
    return parts


def _place(folders: Sequence[str | Path]) -> Path:
    """Where a page goes of which nothing is said."""
    one = artefacts.place(folders[0])
    return one / "report.html" if len(folders) == 1 and one.is_dir() else Path("report.html")


def _whole(folder: ReportFolder) -> bool:
    """Whether a run's results have all that comparisons and tables of them need."""

    def check() -> None:
        matrix = matrix_of(folder.results)
        seeds = len(folder.results["seeds"])
        if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2] + 1 or len(matrix) != seeds:
            raise ValueError("the accuracy matrix has another shape than [seeds, T+1, T]")
        for cell in tables.spreads(folder.results).values():
            if len(np.array(cell.values, float)) != seeds:
                raise ValueError("a metric has another number of values than there are seeds")
        tables.metric_rows(folder.name, folder.results)
        comparison.table([folder], "RA")
        comparison.cost_table([folder])
        comparison.groups_of([folder])

    return not attempt("", check).html


def _compared(
    runs: list[ReportFolder], metric: str, figures: bool
) -> tuple[list[Part], list[tables.Table], list[list[object]]]:
    parts, latex, pairs = [Part("<h2>Comparison</h2>")], [], []
    for part, table, rows in comparison.compared(runs, metric, figures):
        parts.append(part)
        latex += [] if table is None else [table]
        pairs += rows
    return parts, latex, pairs


def _heading(folder: ReportFolder) -> Part:
    label = f" ({folder.name})" if folder.kind != "nothing" else ""
    return Part(f'<h2 id="{_anchor(folder)}">{escape(folder.title + label)}</h2>')


def _anchor(folder: ReportFolder) -> str:
    return "run-" + "".join(c if c.isalnum() else "-" for c in folder.name)


def _of(folder: ReportFolder, few: bool) -> list[Part]:
    made = [notice(text) for text in folder.problems]
    if folder.kind == "run":
        return [*made, *sections.of_run(folder, few)]
    if folder.kind == "unfinished":
        return [*made, *sections.of_unfinished(folder)]
    return [*made, *of_sweep(folder, few)] if folder.kind == "sweep" else made


def _page(folders: list[ReportFolder], parts: list[Part]) -> str:
    title = folders[0].title if len(folders) == 1 else f"Report of {len(folders)} folders"
    links = "".join(
        f'<li><a href="#{_anchor(one)}">{escape(one.title)}</a> <span class="small">'
        f"{escape(str(one.path))}</span></li>"
        for one in folders
    )
    nav = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(folders) > 1 else ""
    body = scrolling("\n".join(part.html for part in parts if part.html))
    style = STYLE + (cells.STYLE + cells.shades() if 'class="cells"' in body else "")
    return (
        f'{_FIRST}<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head>\n<body><main>'
        f"<h1>{escape(title)}</h1>\n{nav}\n{body}\n"
        f'<p class="small">cljax {escape(__version__)}, cljax report</p></main></body></html>\n'
    )


def _check_ours(path: Path, start: str) -> None:
    """Refuses to overwrite a file that no report wrote."""
    try:
        with open(path, "rb") as file:
            ours = file.read(len(start.encode())) == start.encode()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    if not ours:
        raise UserError(f"{path} was not made by a report; name another --out.")


def _write(files: dict[Path, tuple[str, str]], page: Path, parts: list[Part]) -> list[Path]:
    """Writes all files, the page last; returns all but the page."""
    folder = page.with_name(f"{page.stem}_figures")
    written = []
    try:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link, so no figures are written there; remove it.")
        for left in {*page.parent.glob(f".{page.stem}*.tmp"), *folder.glob(".*.tmp")}:
            if files_of.TEMPORARY.fullmatch(left.name):  # of a report that was killed
                left.unlink(missing_ok=True)
        for picture in (picture for part in parts for picture in part.pictures):
            written.append(folder / f"{picture.name}.png")
            artefacts.write_bytes(written[-1], picture.png)
        for kind in drawn.KINDS:  # of the page as it was before
            for stale in set(folder.glob(f"*-{kind}.png")) - set(written):
                stale.unlink()
        for path, (_, text) in reversed(files.items()):
            artefacts.write_bytes(path, text.encode("utf-8", errors="replace"))
            written += [path] if path != page else []
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror or error}.") from error
    return written
