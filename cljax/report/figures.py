"""The figures of a report as PNG files and, in the page, as the same bytes.

Everything is drawn by ``cljax.plot``. matplotlib is what a report waits for, so each figure is
rendered once, also for dark pages, and a report of many runs draws only those that compare them.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np

from cljax import measures, plot
from cljax.plot import parts
from cljax.references.tables import score_of, unit_of
from cljax.report.dark import darkened
from cljax.report.folders import matrix_of
from cljax.runner import snapshots
from cljax.stats import MIN_SEEDS

__all__ = [
    "KINDS", "Picture", "accuracy", "curves", "forgetting", "means", "memory", "outer", "picture",
    "rates",
]  # fmt: skip

# How a figure's name ends, before its .png.
KINDS = (
    "accuracy_matrix", "over_time", "forgetting", "rates", "outer_loss", "memory", "heat_map",
    "class_accuracy", "confusion", "confusions",
)  # fmt: skip

_DPI = 150
_MOST = 12  # examples of a task or class
_TWICE = 500_000  # bytes; a larger figure is mostly photographs, and dark pages show the light one


class Picture(NamedTuple):
    """A figure: its PNG, what it shows, what stands below it, and its PNG for dark pages."""

    name: str  # of its file, without ending
    png: bytes
    caption: str
    alt: str
    dark: bytes | None

    def html(self) -> str:
        """The picture inside the page, with its caption; on paper it is the light one."""
        width, height = (round(96 * pixels / _DPI) for pixels in _size(self.png))
        source = "" if self.dark is None else (
            '<source media="screen and (prefers-color-scheme: dark)" '
            f'srcset="{_data(self.dark)}">'
        )  # fmt: skip
        return (
            f'<figure><picture>{source}<img src="{_data(self.png)}" alt="{escape(self.alt)}" '
            f'width="{width}" height="{height}"></picture>'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


def picture(name: str, ax: Any, caption: str, alt: str) -> Picture:
    """Renders a figure: at once, where ``savefig`` would draw it a second time for its layout."""
    from PIL import Image

    figure = ax.figure
    figure.set_dpi(_DPI)
    figure.canvas.draw()
    light = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    png = _png(light)
    dark = _png(darkened(light, figure.axes)) if len(png) <= _TWICE else None
    return Picture(_file(name), png, caption, alt, dark)


def _data(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(image: Any) -> bytes:
    """An RGB image as PNG: each row less the one above it, in a third of what Pillow takes."""
    rows = np.asarray(image).reshape(image.height, -1)
    rows = np.concatenate([rows[:1], rows[1:] - rows[:-1]])
    rows = np.concatenate([np.full((len(rows), 1), 2, np.uint8), rows], axis=1)  # 2: filter "up"
    per_metre = round(_DPI / 0.0254)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">2I5B", image.width, image.height, 8, 2, 0, 0, 0)),
            (b"pHYs", struct.pack(">2IB", per_metre, per_metre, 1)),
            (b"IDAT", zlib.compress(rows.tobytes(), 1)),
            (b"IEND", b""),
        )
    )


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _seeds(matrix: np.ndarray) -> str:
    return f"mean of {len(matrix)} seed{'s'[: len(matrix) > 1]}"


def _beside(count: int) -> str:
    """What curves of so many seeds show beside their mean."""
    if count < 2:
        return ""
    return ", with 95 % intervals" if count >= MIN_SEEDS else ", single seeds as thin lines"


def accuracy(name: str, results: Mapping[str, Any]) -> Picture:
    """Heat map of the headline's accuracy matrix."""
    matrix = matrix_of(results)
    score = score_of(results)
    final = np.nanmean(matrix[:, -1]) if np.isfinite(matrix[:, -1]).any() else np.nan
    side = min(6.6, 0.42 * matrix.shape[-1] + 1.3)  # inches; cells that hold their numbers
    return picture(
        f"{name}-accuracy_matrix",
        plot.accuracy_matrix(matrix, parts.axes(None, (side + 1.1, side)), score=score),
        f"{parts.titled(score)} on each task (columns) after each task (rows), {_seeds(matrix)}.",
        f"Heat map of {matrix.shape[-1]} tasks; the last row's mean is "
        f"{format(measures.scale(score) * final, measures.digits(score))} {unit_of(results)}.",
    )


def curves(name: str, results: Mapping[str, Any]) -> Picture:
    """Accuracy on each task over time; at every test while learning, where there were any."""
    matrix = matrix_of(results)
    lines, x, xlabel = plot.task_curves(matrix), None, "Tasks learned"
    steps = [[point["step"] for point in run] for run in results.get("anytime", [])]
    if steps and steps[0] and all(own == steps[0] for own in steps):
        x, xlabel = steps[0], "Updates"
        result = np.array(
            [[point["accuracy"] for point in run] for run in results["anytime"]], float
        )  # [S, P, T]
        lines = {f"task {t + 1}": result[..., t] for t in range(result.shape[-1])}
    return picture(
        f"{name}-over_time",
        plot.over_time(lines, x, xlabel=xlabel, score=score_of(results)),
        f"Test {score_of(results)} on each task from when it was learned, {_seeds(matrix)}"
        f"{_beside(len(matrix)) if len(lines) <= 8 else ''}.",
        f"One line for each of {len(lines)} tasks.",
    )


def means(
    stream: str, result: Mapping[str, np.ndarray], note: str, score: str = measures.ACCURACY
) -> Picture:
    """Mean accuracy on the tasks seen so far, a curve a run."""
    unit = " (%)" if measures.in_percent(score) else ""
    return picture(
        f"{stream}-compared-over_time",
        plot.over_time(result, ylabel=f"Mean {score} on seen tasks{unit}", score=score),
        f"Mean test {score} on the tasks seen so far, after each task"
        f"{_beside(min(len(np.atleast_2d(curve)) for curve in result.values()))}, on "
        f"{stream}.{note}",
        f"One curve for each of {len(result)} runs.",
    )


def forgetting(
    name: str, matrices: Mapping[str, np.ndarray], score: str = measures.ACCURACY
) -> Picture | None:
    """Bars of forgetting; None with a single task."""
    if any(matrix.shape[-1] < 2 for matrix in matrices.values()):
        return None
    whole = all(np.isfinite(m[:, 1:][:, np.tri(m.shape[-1], dtype=bool)]).all()
                for m in matrices.values())  # fmt: skip
    note = "" if whole else " Of the entries that were evaluated only."
    count = min(len(matrix) for matrix in matrices.values())
    spread = "Whiskers are 95 % intervals over" if count >= MIN_SEEDS else "Points are single"
    spread = f" {spread} seeds." if count > 1 else ""
    return picture(
        f"{name}-forgetting",
        plot.forgetting_bars(matrices, score=score),
        f"Forgetting: how far each task fell from its best {score} to its final one. Above zero "
        f"{score} was lost; below zero the task went on improving.{spread}{note}",
        "Bars of forgetting, one for each task but the last.",
    )


def rates(name: str, arrays: Mapping[str, np.ndarray]) -> Picture | None:
    """Histograms of learned rates over time; None where none were learned."""
    rows = snapshots.rate_rows(arrays)
    if len(rows) < 2:
        return None
    every = np.stack(list(rows.values()), axis=1)  # [S, P, 2 n + 1]
    bins = every.shape[-1] // 2
    edges = every[..., : bins + 1].astype(float)
    spread = edges[..., -1] - edges[..., 0]
    if (spread < 1e-4 * np.abs(edges).max()).all():
        return None  # fixed rates
    names = ["start" if row == 0 else str(row) for row in rows]
    return picture(
        f"{name}-rates",
        plot.rate_histograms(edges, every[..., bins + 1 :], names=names),
        "Learning rates of all weights after each task, mean of "
        f"{len(every)} seed{'s'[: len(every) > 1]}; shades are logarithmic.",
        f"Histograms of learned rates at {len(rows)} moments.",
    )


def outer(name: str, arrays: Mapping[str, np.ndarray]) -> Picture | None:
    """Validation losses of exemplars while they were learned; None where none were."""
    result = {
        f"task {int(part.removeprefix('outer/')) + 1}": losses
        for part, losses in arrays.items()
        if part.startswith("outer/") and np.isfinite(losses).any()
    }
    if not result:
        return None
    window = max(1, max(losses.shape[1] for losses in result.values()) // 20)
    return picture(
        f"{name}-outer_loss",
        plot.outer_loss(result, window=window),
        "Validation loss of a network trained on the exemplars alone, while they were learned, for "
        "the exemplars of each task.",
        f"One curve for each of {len(result)} tasks.",
    )


def memory(name: str, arrays: Mapping[str, np.ndarray]) -> Picture | None:
    """What the first seed's memory holds at the end; None where nothing was kept."""
    own = {part.removeprefix("memory/"): a for part, a in arrays.items() if part[:7] == "memory/"}
    if "x" not in own:
        return None
    groups, counts = own["groups"], own["counts"]
    by_task = not np.isin(own["y"], groups).all() or set(own["task"]) == set(groups.tolist())
    owner = own["task"] if by_task else own["y"]
    kind = "task" if by_task else "class"
    start = 1 if by_task else 0  # tasks are counted from 1, classes go by their labels
    names = {int(g): f"{kind} {g + start} ({n})" for g, n in zip(groups, counts, strict=True)}
    learned = "before" in own and not np.array_equal(own["before"], own["x"])
    ax = plot.exemplar_grid(
        own["x"], owner, names=names, before=own["before"] if learned else None, most=_MOST
    )
    told = " Three rows each: as chosen, as learned, and the magnified change." if learned else ""
    return picture(
        f"{name}-memory", ax,
        f"What the memory of the first seed holds at the end, by {kind}, with the number of "
        f"examples; at most {_MOST} are shown of each.{told}",
        f"Thumbnails of {len(owner)} remembered examples of {len(groups)} {kind}s.",
    )  # fmt: skip
