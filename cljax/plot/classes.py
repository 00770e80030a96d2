"""Figures of single classes: what they are taken for, and how their accuracy moves.

    share of class c taken for k   n(c, k) / sum_k n(c, k)
    accuracy of class c            n(c, c) / sum_k n(c, k)

with n the tests by class and by predicted class, summed over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cljax.errors import UserError, as_numbers
from cljax.plot import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["class_accuracy", "confusion_matrix", "image", "shares"]

_WRITTEN = 10  # at most so many classes get their values written into the cells
_TICKS = 20  # at most so many classes are all named
_ROWS = 25  # at most so many moments have their values written


def shares(counts: ArrayLike) -> np.ndarray:
    """Which share of each class is taken for which.

    Args:
      counts: [C, C] or [S, C, C] tests by class (rows) and by predicted class, of S seeds.

    Returns:
      [C, C] fractions of the sum over seeds; NaN for a class without tests.

    Raises:
      UserError: for another shape, or a negative count.
    """
    table = as_numbers("a confusion matrix", counts)
    if table.ndim not in (2, 3) or table.shape[-1] != table.shape[-2] or (table < 0).any():
        raise UserError(
            f"a confusion matrix has shape {list(table.shape)}, but it must be [C, C] or "
            "[seeds, C, C], counts of at least 0."
        )
    total = table.reshape(-1, *table.shape[-2:]).sum(axis=0)
    tests = total.sum(axis=1, keepdims=True)
    return np.where(tests > 0, total / np.maximum(tests, 1), np.nan)


def confusion_matrix(
    counts: ArrayLike,
    ax: Axes | None = None,
    *,
    names: parts.Names = None,
    numbers: bool = True,
    title: str | None = None,
) -> Axes:
    """Heat map of what each class (rows) is taken for (columns), in percent of its tests.

    Classes without tests are grey.

    Args:
      counts: as ``cljax.Run.confusion_matrix`` gives them, [C, C] or [S, C, C].
      ax: where to draw; None: a new figure.
      names: of the classes; None: their numbers.
      numbers: write the values into the cells, of at most 10 classes.

    Raises:
      UserError: for another shape.
    """
    values = 100 * shares(counts)
    num = len(values)
    side = min(6.0, max(2.6, 0.36 * num + 0.9))
    ax = parts.axes(ax, (side, side))
    cells = image(ax, values)
    if numbers and num <= _WRITTEN:
        _write(ax, values, cells)
    ticks = _ticks(num, names)
    ax.set_xticks(*ticks, rotation=90 if names else 0)
    ax.set_yticks(*ticks)
    return _labelled(ax, "Predicted class", "Class", title)


def class_accuracy(
    moments: Mapping[int, ArrayLike],
    ax: Axes | None = None,
    *,
    names: parts.Names = None,
    title: str | None = None,
) -> Axes:
    """Heat map of the accuracy on each class (columns) after each task (rows), in percent.

    Args:
      moments: tasks learned so far -> counts as in ``confusion_matrix``; 0 is before training.
      ax: where to draw; None: a new figure.
      names: of the classes; None: their numbers.

    Raises:
      UserError: without moments, or for another shape.
    """
    if not moments:
        raise UserError("there are no confusion matrices to draw; give at least one.")
    rows = {row: np.diagonal(shares(counts)) for row, counts in sorted(moments.items())}
    values = 100 * np.stack(list(rows.values()))
    num = values.shape[1]
    size = min(7.6, max(3.0, 0.4 * num + 1.3)), min(6.0, 0.24 * len(values) + 0.9)
    ax = parts.axes(ax, size)
    cells = image(ax, values)
    if num <= _WRITTEN and len(values) <= _ROWS:
        _write(ax, values, cells)
    ax.set_xticks(*_ticks(num, names), rotation=90 if names else 0)
    step = -(-len(rows) // _TICKS)
    shown = [(i, row) for i, row in enumerate(rows) if i % step == 0 or i == len(rows) - 1]
    labels = ["untrained" if row == 0 else str(row) for _, row in shown]
    ax.set_yticks([i for i, _ in shown], labels)
    return _labelled(ax, "Class", "After learning task", title)


def image(ax: Axes, values: np.ndarray) -> Any:
    """Shows percentages [R, C] as colours; NaN is grey."""
    ax.set_facecolor(parts.BLANK)
    return ax.imshow(
        np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=100, aspect="auto",
        interpolation="nearest", interpolation_stage="rgba",  # colours of cells, not of pixels
    )  # fmt: skip


def _write(ax: Axes, values: np.ndarray, cells: Any) -> None:
    """Writes each value that is not 0 into its cell."""
    from cljax.plot.numbers import write_numbers

    write_numbers(ax, values, cells, ".0f", 7, zeros=False)


def _ticks(num: int, names: parts.Names) -> tuple[list[int], list[str]]:
    step = 1 if num <= _TICKS else 10 * -(-num // 200)
    shown = list(range(0, num, step))
    return shown, [str(i) if names is None else parts.class_name(names, i) for i in shown]


def _labelled(ax: Axes, x: str, y: str, title: str | None) -> Axes:
    ax.tick_params(length=0, labelsize=8)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)
    return ax
