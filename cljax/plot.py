"""Figures of accuracy matrices and curves; matplotlib is imported when one is drawn.

Every function draws on the ``Axes`` it is given, or on a new figure of its own that knows nothing
of pyplot, and returns the ``Axes``. Colours are safe for colour-blind readers and keep their order
in greyscale: ``viridis`` for quantities, Okabe & Ito's palette with line styles for methods.
Accuracies come in as fractions and are shown in percent.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cljax.errors import UserError
from cljax.metrics import seen_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_matrix", "heat_map", "mean_curve", "over_time", "save", "task_curves"]

_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D1F")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 2)), (0, (1, 1)), (0, (7, 2, 2, 2)))
_WRITTEN = 20  # at most so many tasks get their values written into the cells
_LISTED = 24  # at most so many curves are named in a legend
_INK, _PAPER, _BLANK = "#1A1A1A", "#FFFFFF", "#E4E4E4"


def accuracy_matrix(matrix: ArrayLike, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Heat map of the accuracy on each task (columns) before training and after each task (rows).

    Cells hold their value in percent where there are at most 20 tasks; those that were not
    evaluated are grey and hatched. With several seeds the mean is shown, over the seeds that have
    the entry.

    Args:
      matrix: [T+1, T] or [S, T+1, T] fractions, row 0 before training, NaN = not evaluated.
      ax: where to draw; None: a new figure.

    Raises:
      UserError: for another shape.
    """
    values = _percent(matrix)
    num_tasks = values.shape[1]
    side = min(6.2, max(2.6, 0.27 * num_tasks + 0.8))  # inches, so that a page holds it
    ax = _axes(ax, (side + 0.9, side))
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=100, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    _hatch(ax, np.isnan(values))
    if num_tasks <= _WRITTEN:
        _write(ax, values, image)
    shown = [t for t in range(num_tasks) if num_tasks <= _WRITTEN or (t + 1) % 10 == 0]
    ax.set_xticks(shown, [str(t + 1) for t in shown])
    ax.set_yticks([0, *(t + 1 for t in shown)], ["untrained", *(str(t + 1) for t in shown)])
    ax.tick_params(length=0, labelsize=8)
    note = "  (hatched: not evaluated)" if np.isnan(values).any() else ""
    ax.set_xlabel(f"Tested on task{note}", fontsize=9)
    ax.set_ylabel("After learning task", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.axhline(0.5, color=_PAPER, linewidth=2.5)  # sets the row before training apart
    if title:
        ax.set_title(title, fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label("Test accuracy (%)", fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=8)
    return ax


def heat_map(
    values: ArrayLike,
    columns: Sequence[str],
    rows: Sequence[str],
    ax: Axes | None = None,
    *,
    x: str = "",
    y: str = "",
    mark: ArrayLike | None = None,
    low: bool = False,
    title: str | None = None,
) -> Axes:
    """A measure over two options of a sweep; the best cell is framed.

    Args:
      values: [R, C] fractions, NaN = nothing there, which is grey and hatched.
      columns, rows: the options' values; x, y: the options.
      mark: [R, C] True where a lane diverged, shown by a cross.
      low: whether lower is better.

    Raises:
      UserError: if the shapes disagree.
    """
    from matplotlib.patches import Rectangle

    cells = np.asarray(values, np.float64) * 100
    if cells.shape != (len(rows), len(columns)):
        raise UserError(
            f"a heat map has values of shape {list(cells.shape)}, but {len(rows)} rows and "
            f"{len(columns)} columns."
        )
    lost = np.zeros(cells.shape, bool) if mark is None else np.asarray(mark, bool)
    ax = _axes(ax, (0.62 * len(columns) + 1.6, 0.45 * len(rows) + 1.3))
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
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(title, fontsize=9)
    ax.figure.colorbar(image, ax=ax)
    return ax


def over_time(
    curves: Mapping[str, ArrayLike],
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    xlabel: str = "Tasks learned",
    ylabel: str = "Test accuracy (%)",
    title: str | None = None,
) -> Axes:
    """Accuracy over time, one line a curve: the mean over seeds with its 95 % interval as a band.

    Up to eight curves, such as methods, differ in colour and line style; more, such as the tasks
    of ``task_curves``, are taken as ordered, coloured from dark to light, and drawn without bands.

    Args:
      curves: name -> [P] or [S, P] fractions at P points for S seeds; NaN = no value.
      x: [P] positions; None: 1 to P, for points after each task.
      ax: where to draw; None: a new figure.

    Raises:
      UserError: without curves, or where a curve's length is not that of ``x``.
    """
    if not curves:
        raise UserError("there are no curves to draw; give at least one, as name -> accuracies.")
    arrays = {name: np.atleast_2d(np.asarray(c, np.float64)) * 100 for name, c in curves.items()}
    num_points = next(iter(arrays.values())).shape[-1]
    where = np.arange(1, num_points + 1) if x is None else np.asarray(x, np.float64)
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[-1] != len(where):
            raise UserError(
                f"curve '{name}' has shape {list(np.shape(curves[name]))}, but it must be "
                f"[{len(where)}] or [seeds, {len(where)}]."
            )
    ordered = len(arrays) > len(_PALETTE)
    ax = _axes(ax, (7.6, 4.0))
    marker = "o" if num_points <= 25 else None
    for i, (name, array) in enumerate(arrays.items()):
        mean, half = _band(array)
        style: dict[str, Any] = {"color": _PALETTE[i % len(_PALETTE)], "linestyle": _STYLES[i % 8]}
        if ordered:
            style = {"color": _shade(i / (len(arrays) - 1)), "linestyle": "-"}
        ax.plot(
            where, mean, label=name, linewidth=1.1 if ordered else 1.8, marker=marker,
            markersize=2.5 if ordered else 3.5, **style,
        )  # fmt: skip
        if not ordered and np.isfinite(half).any():
            ax.fill_between(
                where, mean - half, mean + half, color=style["color"], alpha=0.18, linewidth=0
            )
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    _dress(ax, where, title)
    _legend(ax, small=ordered)
    return ax


def task_curves(matrix: ArrayLike) -> dict[str, np.ndarray]:
    """Curves for ``over_time``: the accuracy on each task from when it was learned.

    Args:
      matrix: [..., T+1, T] fractions.

    Returns:
      ``"task 1"``, ... -> [..., T] after each task, NaN before the task is learned.
    """
    after = np.asarray(matrix, np.float64)[..., 1:, :]
    learned = np.tri(after.shape[-1], dtype=bool)
    after = np.where(learned, after, np.nan)
    return {f"task {t + 1}": after[..., t] for t in range(after.shape[-1])}


def mean_curve(matrix: ArrayLike) -> np.ndarray:
    """A curve for ``over_time``: [..., T], after each task, mean over the tasks seen by then."""
    return seen_accuracy(matrix, np.ones(np.shape(matrix)[-1]))


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
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            # No software version inside: the same numbers give the same bytes.
            figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _percent(matrix: ArrayLike) -> np.ndarray:
    """[T+1, T] in percent, averaged over seeds where there are some."""
    values = np.asarray(matrix, np.float64)
    tasks = values.shape[-1] if values.ndim in (2, 3) else 0
    if tasks < 1 or values.shape[-2] != tasks + 1:
        raise UserError(
            f"an accuracy matrix to draw has shape {list(values.shape)}, but it must be [T+1, T] "
            "or [seeds, T+1, T]."
        )
    values = values.reshape(-1, *values.shape[-2:])
    return _mean(values) * 100


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN, without a warning, where nothing is left."""
    count = np.isfinite(values).sum(axis=0)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _band(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of the 95 % t-interval at each point, NaN with fewer than two seeds."""
    mean = _mean(array)
    count = np.isfinite(array).sum(axis=0)
    if not (count > 1).any():
        return mean, np.full_like(mean, np.nan)
    from scipy.special import stdtrit

    squares = np.where(np.isfinite(array), (array - mean) ** 2, 0.0).sum(axis=0)
    df = np.maximum(count - 1, 1)
    half = stdtrit(df, 0.975) * np.sqrt(squares / df / np.maximum(count, 1))
    return mean, np.where(count > 1, half, np.nan)


def _hatch(ax: Axes, missing: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((c - 0.5, r - 0.5), 1, 1) for r, c in np.argwhere(missing)]
    ax.add_collection(
        PatchCollection(cells, facecolor=_BLANK, edgecolor="#BDBDBD", hatch="///", linewidth=0)
    )


def _write(ax: Axes, values: np.ndarray, image: Any) -> None:
    """Writes each value into its cell, dark on light or light on dark."""
    digits, size = (1, 8) if values.shape[1] <= 10 else (0, 7)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.48
            ax.text(
                column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=size,
                color=_INK if light else _PAPER,
            )  # fmt: skip


def _shade(position: float) -> Any:
    """A colour of ``viridis`` that still shows on white."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * position)


def _dress(ax: Axes, x: np.ndarray, title: str | None) -> None:
    """Limits, ticks and grid; the vertical axis starts at 0 or at tens well below the curves."""
    from matplotlib.ticker import MaxNLocator

    heights = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in ax.lines])
    lowest = float(np.nanmin(heights)) if np.isfinite(heights).any() else 0.0
    bottom = 10 * ((lowest - 5) // 10)
    ax.set_ylim(bottom if bottom > 20 else 0, 100)
    if np.array_equal(x, np.arange(1, len(x) + 1)):
        step = 1 if len(x) <= _WRITTEN else 10
        ax.set_xticks([i for i in range(1, len(x) + 1) if i % step == 0])
        ax.set_xlim(0.5, len(x) + 0.5)
    elif np.array_equal(x, np.round(x)):
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    if title:
        ax.set_title(title, fontsize=10)


def _legend(ax: Axes, small: bool) -> None:
    """Names the curves beside the axes; of very many, evenly chosen ones and the last."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    step = -(-len(labels) // _LISTED)
    keep = [i for i in range(len(labels)) if i % step == 0 or i == len(labels) - 1]
    ax.legend(
        [handles[i] for i in keep], [labels[i] for i in keep], frameon=False, loc="center left",
        bbox_to_anchor=(1.01, 0.5), fontsize=7 if small else 9, handlelength=3.2,
        labelspacing=0.25 if small else 0.6,
    )  # fmt: skip
