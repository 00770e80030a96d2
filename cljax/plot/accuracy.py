"""Figures of accuracies: matrices, and curves over time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cljax import measures
from cljax.errors import UserError, as_numbers, in_words
from cljax.metrics import check_matrix, seen_accuracy
from cljax.plot import parts
from cljax.storage.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Ticks", "accuracy_matrix", "heat_map", "mean_curve", "over_time", "save", "task_curves"]

_WRITTEN = 20  # at most so many tasks get their values written into the cells


def accuracy_matrix(
    matrix: parts.Measured | ArrayLike,
    ax: Axes | None = None,
    title: str | None = None,
    *,
    score: str | None = None,
) -> Axes:
    """Heat map of the accuracy on each task (columns) before training and after each task (rows).

    Cells hold their value in percent where there are at most 20 tasks; those that were not
    evaluated are grey and hatched. With several seeds the mean is shown, over the seeds that have
    the entry.

    Args:
      matrix: a run, or [T+1, T] or [S, T+1, T] fractions, row 0 before training, NaN = not
        evaluated.
      ax: where to draw; None: a new figure.
      score: what the numbers are, where they are no accuracies; None: as a run says.

    Raises:
      UserError: for another shape.
    """
    score = parts.score_of(matrix, score=score)
    values = _scaled(parts.matrix_of(matrix), measures.scale(score))
    low, high = (0, 100) if measures.in_percent(score) else (None, None)
    num_tasks = values.shape[1]
    side = min(6.2, max(2.6, 0.27 * num_tasks + 0.8))  # inches, so that a page holds it
    ax = parts.axes(ax, (side + 0.9, side))
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap="viridis", vmin=low, vmax=high, aspect="auto",
        interpolation="nearest", interpolation_stage="rgba",  # colours of cells, not of pixels
    )  # fmt: skip
    _hatch(ax, np.isnan(values))
    if num_tasks <= _WRITTEN:
        _write(ax, values, image, small=not measures.in_percent(score))
    shown = [t for t in range(num_tasks) if num_tasks <= _WRITTEN or (t + 1) % 10 == 0]
    ax.set_xticks(shown, [str(t + 1) for t in shown])
    ax.set_yticks([0, *(t + 1 for t in shown)], ["untrained", *(str(t + 1) for t in shown)])
    ax.tick_params(length=0, labelsize=8)
    note = "  (hatched: not evaluated)" if np.isnan(values).any() else ""
    ax.set_xlabel(f"Tested on task{note}", fontsize=9)
    ax.set_ylabel("After learning task", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.axhline(0.5, color=parts.PAPER, linewidth=2.5)  # sets the row before training apart
    if title:
        ax.set_title(title, fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label(parts.titled(score), fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=8)
    return ax


class Ticks(NamedTuple):
    """One axis of a heat map: the values of an option, as text, and the option's name."""

    labels: Sequence[str]
    name: str = ""


def heat_map(
    values: ArrayLike,
    columns: Ticks,
    rows: Ticks,
    ax: Axes | None = None,
    *,
    mark: ArrayLike | None = None,
    low: bool = False,
    title: str | None = None,
) -> Axes:
    """A measure over two options of a sweep; the best cell is framed.

    Args:
      values: [R, C] fractions, NaN = nothing there, which is grey and hatched.
      columns, rows: the options and their values.
      mark: [R, C] True where a lane diverged, shown by a cross.
      low: whether lower is better.

    Raises:
      UserError: if the shapes disagree.
    """
    from matplotlib.patches import Rectangle

    cells = as_numbers("values", values) * 100
    lost = np.zeros(cells.shape, bool) if mark is None else np.asarray(mark, bool)
    for name, ticks in (("rows", rows), ("columns", columns)):
        if not isinstance(ticks, Ticks):
            raise UserError(f"{name} is {in_words(ticks)}, but it must be Ticks of labels.")
        if not isinstance(ticks.labels, Sequence) or isinstance(ticks.labels, (str, bytes)):
            raise UserError(f"{name} is {in_words(ticks.labels)}, but it must be a list of names.")
    num_rows, num_columns = len(rows.labels), len(columns.labels)
    if cells.shape != (num_rows, num_columns) or lost.shape != cells.shape:
        raise UserError(
            f"a heat map has values of shape {list(cells.shape)} and marks of "
            f"{list(lost.shape)}, but {num_rows} rows and {num_columns} columns."
        )
    ax = parts.axes(ax, (0.62 * num_columns + 1.6, 0.45 * num_rows + 1.3))
    image = ax.imshow(np.ma.masked_invalid(cells), cmap="viridis", aspect="auto")
    _hatch(ax, np.isnan(cells))
    _write(ax, cells, image)
    for row, column in np.argwhere(lost):
        ax.text(column + 0.36, row - 0.28, "\u00d7", color="#D55E00", ha="center", va="center")
    fair = np.where(lost | np.isnan(cells), -np.inf, -cells if low else cells)
    if np.isfinite(fair).any():
        row, column = np.unravel_index(np.argmax(fair), cells.shape)
        frame = {"fill": False, "edgecolor": "#D55E00", "linewidth": 2}
        ax.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, **frame))
    ax.set_xticks(range(num_columns), columns.labels)
    ax.set_yticks(range(num_rows), rows.labels)
    ax.set_xlabel(columns.name)
    ax.set_ylabel(rows.name)
    if title:
        ax.set_title(title, fontsize=9)
    ax.figure.colorbar(image, ax=ax)
    return ax


def over_time(
    curves: Mapping[str, parts.Measured | ArrayLike],
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    metric: str = "average_accuracy",
    xlabel: str = "Tasks learned",
    ylabel: str | None = None,
    title: str | None = None,
    score: str | None = None,
) -> Axes:
    """Accuracy over time, one line a curve: the mean over seeds with its 95 % interval as a band.

    Of 2 to 4 seeds each is a thin line with points instead. Up to eight curves, such as methods,
    differ in colour and line style; more, such as the tasks of ``task_curves``, are taken as
    ordered, coloured from dark to light, and only their means are drawn.

    Args:
      curves: name -> a run, or [P] or [S, P] fractions at P points for S seeds; NaN = no value.
      metric: of runs, after each task: "average_accuracy", the mean over the tasks seen so far,
        or a metric that a run has by session, such as "accuracy_task_agnostic".
      x: [P] positions; None: 1 to P, for points after each task.
      ax: where to draw; None: a new figure.
      score: what the numbers are, where they are no accuracies; None: as a run says.

    Raises:
      UserError: without curves, or where a curve's length is not that of ``x``.
    """
    if not isinstance(curves, Mapping):
        raise UserError(
            f"curves is {in_words(curves)}, but it must be a dict of names -> accuracies or runs."
        )
    if not curves:
        raise UserError("there are no curves to draw; give at least one, as name -> accuracies.")
    result = {name: parts.curve_of(curve, metric) for name, curve in curves.items()}
    score = parts.score_of(*curves.values(), score=score)
    share, scale = measures.in_percent(score), measures.scale(score)
    arrays = {name: np.atleast_2d(curve) * scale for name, curve in result.items()}
    num_points = next(iter(arrays.values())).shape[-1]
    where = np.arange(1, num_points + 1) if x is None else as_numbers("x", x)
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[-1] != len(where):
            raise UserError(
                f"curve '{name}' has shape {list(result[name].shape)}, but it must be "
                f"[{len(where)}] or [seeds, {len(where)}]."
            )
    ax = parts.axes(ax, (7.6, 4.0))
    parts.lines(ax, {name: (where, array) for name, array in arrays.items()},
                *([(0.0, 100.0)] if share else []))  # fmt: skip
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(parts.titled(score) if ylabel is None else ylabel, fontsize=9)
    _limit(ax, where, share=share)
    parts.tidy(ax, title)
    return ax


def task_curves(matrix: ArrayLike) -> dict[str, np.ndarray]:
    """Curves for ``over_time``: the accuracy on each task from when it was learned.

    Args:
      matrix: [..., T+1, T] fractions.

    Returns:
      ``"task 1"``, ... -> [..., T] after each task, NaN before the task is learned.
    """
    after = check_matrix(matrix)[..., 1:, :]
    learned = np.tri(after.shape[-1], dtype=bool)
    after = np.where(learned, after, np.nan)
    return {f"task {t + 1}": after[..., t] for t in range(after.shape[-1])}


def mean_curve(matrix: ArrayLike) -> np.ndarray:
    """A curve for ``over_time``: [..., T], after each task, mean over the tasks seen by then."""
    return seen_accuracy(matrix, np.ones(check_matrix(matrix).shape[-1]))


def save(fig: Figure | Axes, path: str | os.PathLike[str], dpi: int = 200) -> Path:
    """Writes a figure, or the one an ``Axes`` belongs to, as a PNG, whole or not at all.

    Args:
      path: ends in ``.png``; missing folders are made.
      dpi: dots an inch.

    Returns:
      The path.

    Raises:
      UserError: for another ending.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"a plot's path is {path}, but it must end in .png.")
    figure: Any = fig.figure
    with writing(path) as file:
        # No software version inside: the same numbers give the same bytes.
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return path


def _scaled(matrix: ArrayLike, scale: float) -> np.ndarray:
    """[T+1, T] times ``scale``, averaged over seeds where there are some."""
    values = as_numbers("an accuracy matrix to draw", matrix)
    tasks = values.shape[-1] if values.ndim in (2, 3) else 0
    if tasks < 1 or values.shape[-2] != tasks + 1:
        raise UserError(
            f"an accuracy matrix to draw has shape {list(values.shape)}, but it must be [T+1, T] "
            "or [seeds, T+1, T]."
        )
    values = values.reshape(-1, *values.shape[-2:])
    return parts.mean(values) * scale


def _hatch(ax: Axes, missing: np.ndarray) -> None:
    if not missing.any():
        return
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) - 0.5
    cells = [Outline(corners + (c, r), closed=True) for r, c in np.argwhere(missing)]
    ax.add_patch(  # one patch, since a hatch is made anew for each
        PathPatch(
            Outline.make_compound_path(*cells),
            facecolor=parts.BLANK, edgecolor="#BDBDBD", hatch="///", linewidth=0,
        )
    )  # fmt: skip


def _write(ax: Axes, values: np.ndarray, image: Any, *, small: bool = False) -> None:
    """Writes each value into its cell; ``small`` ones in full."""
    from cljax.plot.numbers import write_numbers

    spec, size = (".1f", 8) if values.shape[1] <= 10 else (".0f", 7)
    write_numbers(ax, values, image, ".2g" if small else spec, size)


def _limit(ax: Axes, x: np.ndarray, *, share: bool) -> None:
    """Limits and ticks; the vertical axis of shares starts at 0, or at tens well below curves."""
    from matplotlib.ticker import MaxNLocator

    heights = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in ax.lines])
    lowest = float(np.nanmin(heights)) if np.isfinite(heights).any() else 0.0
    bottom = 10 * ((lowest - 5) // 10)
    if share:
        ax.set_ylim(bottom if bottom > 20 else 0, 100)
    if np.array_equal(x, np.arange(1, len(x) + 1)):
        step = 1 if len(x) <= _WRITTEN else 10
        ax.set_xticks([i for i in range(1, len(x) + 1) if i % step == 0])
        ax.set_xlim(0.5, len(x) + 0.5)
    elif np.array_equal(x, np.round(x)):
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
