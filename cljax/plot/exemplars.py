"""Pictures of exemplars being learned: images before and after, validation loss over outer steps.

What is drawn comes from Liu, Su, Liu, Schiele, Sun, "Mnemonics Training", CVPR 2020
(arXiv:2002.10211), whose exemplars are images that gradient steps change: the outer ones, each
after an unrolled training on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cljax.errors import UserError, check_positive
from cljax.plot import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["exemplar_grid", "outer_loss"]

_ROWS = 400  # at most so many rows of images fit into a file


def exemplar_grid(
    images: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    names: parts.Names = None,
    before: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    most: int = 20,
    title: str | None = None,
) -> Axes:
    """Exemplars as a grid of images, one row a class, in order of labels; light grey: none there.

    With ``before``, a class has three rows: before, after, and their difference around a mid-grey
    that is no change, magnified by the power of two that is said below. Beside it stands the mean
    of |after - before| over all exemplars of the class, in grey levels (1/255 of the range).

    Args:
      images: [M, H, W], [M, H, W, 1] or [M, H, W, 3], uint8 or floats in [0, 1].
      labels: [M] int.
      mask: [M], True = an exemplar; None: all are.
      names: of the classes, by label.
      before: the same exemplars as they were, shaped like ``images``.
      ax: where to draw; None: a new figure.
      most: at most so many images of a class are shown, its first ones.

    Raises:
      UserError: for other shapes or values, without an exemplar, or for too many classes.
    """
    check_positive(most=most)
    owner, valid = parts.labels_of("exemplar", labels, len(np.atleast_1d(images)), mask)
    if not valid.any():
        raise UserError(f"there is no exemplar to draw: all {len(owner)} are masked out.")
    owner, after = owner[valid], _pictures("images", images, valid)
    bands, change, factor = [after], np.zeros_like(after), 1
    if before is not None:
        if np.shape(before) != np.shape(images):
            raise UserError(
                f"before has shape {list(np.shape(before))}, but images have "
                f"{list(np.shape(images))}; they must be the same exemplars."
            )
        earlier = _pictures("before", before, valid)
        change = after - earlier
        factor = _magnification(change)
        bands = [earlier, after, np.clip(0.5 + factor * change, 0, 1)]
    classes = np.unique(owner)
    if len(bands) * len(classes) > _ROWS:
        raise UserError(
            f"{len(classes)} classes make {len(bands) * len(classes)} rows of images, but a grid "
            f"holds at most {_ROWS}; choose some classes by mask."
        )
    ticks: list[str] = []
    for label in classes:
        name, levels = parts.class_name(names, label), 255 * np.abs(change[owner == label]).mean()
        grown = [f"{name}, before", "after", f"change, mean {levels:.3g}"]
        ticks += [name] if before is None else grown
    rows = [np.flatnonzero(owner == label) for label in classes]
    notes = []
    if before is not None:
        notes.append(f"mean |change| {255 * np.abs(change).mean():.3g} grey levels")
        notes.append(f"change × {factor}; mid-grey: none, lighter: raised")
    longest = max(len(row) for row in rows)
    if longest > most:
        notes.append(f"the first {most} of up to {longest} exemplars a class")
    canvas, middles = _mosaic(bands, [row[:most] for row in rows])
    size = _size(canvas.shape, after.shape[1], ticks, notes, title or "")
    ax = parts.axes(ax, size, "compressed")
    ax.imshow(np.round(255 * canvas).astype(np.uint8))  # which scale in a third of the time
    ax.set_xticks([])
    ax.set_yticks(middles, ticks)
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("\n".join(notes), fontsize=8)
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def outer_loss(
    losses: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    window: int = 1,
    ylabel: str = "Validation loss (nats)",
    title: str | None = None,
) -> Axes:
    """Validation loss over outer steps, one line a curve: mean over seeds with its 95 % interval.

    Args:
      losses: name -> [P] or [S, P] nats for S seeds after 0, 1, .., P - 1 outer steps; NaN = no
        value. Lengths may differ.
      ax: where to draw; None: a new figure.
      window: each point is the mean of the last so many values, for losses of mini-batches.

    Raises:
      UserError: without curves, for another shape, or for a curve without a finite value.
    """
    from matplotlib.ticker import MaxNLocator

    check_positive(window=window)
    if not losses:
        raise UserError("there are no losses to draw; give at least one curve, as name -> losses.")
    curves = {}
    for name, values in losses.items():
        array = np.atleast_2d(np.asarray(values, np.float64))
        if array.ndim != 2 or not np.isfinite(array).any():
            raise UserError(
                f"the losses of '{name}' have shape {list(np.shape(values))} and "
                f"{np.isfinite(array).sum()} finite values, but must be [steps] or [seeds, steps] "
                "with at least one."
            )
        curves[name] = (np.arange(array.shape[1]), _running(array, window))
    ax = parts.axes(ax, (7.6, 4.0))
    parts.lines(ax, curves)
    over = f", mean of the last {window} values" if window > 1 else ""
    ax.set_xlabel("Outer steps", fontsize=9)
    ax.set_ylabel(ylabel + over, fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.ticklabel_format(axis="y", useOffset=False)
    low, high = ax.get_ylim()
    room = 0.02 * max(abs(low), abs(high))  # rounding errors of a constant are no news
    if high - low < room:
        ax.set_ylim((low + high - room) / 2, (low + high + room) / 2)
    parts.tidy(ax, title)
    return ax


def _pictures(kind: str, images: ArrayLike, valid: np.ndarray) -> np.ndarray:
    """The valid images, as [K, H, W, 3] floats in [0, 1]."""
    raw = np.asarray(images)
    shape = raw.shape if raw.ndim == 4 else (*raw.shape, 1)
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise UserError(
            f"{kind} have shape {list(raw.shape)}, but must be [M, H, W], or [M, H, W, channels] "
            "with 1 or 3 channels."
        )
    if raw.dtype.kind in "biu" and raw.dtype != np.uint8:
        raise UserError(f"{kind} are {raw.dtype}, but must be uint8 or floats in [0, 1].")
    values = raw.reshape(shape)[valid].astype(np.float64)
    if raw.dtype == np.uint8:
        values /= 255
    low, high = values.min(), values.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too
        raise UserError(
            f"{kind} are floats from {low:.3g} to {high:.3g}, but must lie in [0, 1]; undo their "
            "normalisation."
        )
    return np.broadcast_to(np.clip(values, 0, 1), (*values.shape[:3], 3))


def _magnification(change: np.ndarray) -> int:
    """The largest power of two by which 99.5 % of the changes stay within half the range."""
    most = np.quantile(np.abs(change), 0.995)
    return 1 if most == 0 else 2 ** max(0, int(np.floor(np.log2(0.5 / most))))


def _mosaic(bands: list[np.ndarray], rows: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """One image [height, width, 3], and the middle of each of its rows of pictures.

    Args:
      bands: pictures [K, H, W, 3] that stand one above the other in each class.
      rows: for each class, which of the K.
    """
    height, width = bands[0].shape[1:3]
    gap = max(1, round(height / 14))
    columns = max(len(row) for row in rows)
    apart = gap if len(bands) == 1 else 5 * gap  # between classes
    block = len(bands) * (height + gap) - gap
    canvas = np.ones((len(rows) * (block + apart) - apart, columns * (width + gap) - gap, 3))
    middles = []
    for c, row in enumerate(rows):
        for b, band in enumerate(bands):
            top = c * (block + apart) + b * (height + gap)
            middles.append(top + (height - 1) / 2)
            for column in range(columns):
                left = column * (width + gap)
                picture = (
                    band[row[column]] if column < len(row) else int(parts.BLANK[1:3], 16) / 255
                )
                canvas[top : top + height, left : left + width] = picture
    return canvas, middles


def _size(
    shape: tuple[int, ...], rows: int, ticks: list[str], notes: list[str], title: str
) -> tuple[float, float]:
    """Inches of a figure that a page holds where it can: ``rows`` of pixels are one picture."""
    height, width = shape[:2]
    pixel = max(0.2, min(0.55, 9 * rows / width, 11 * rows / height)) / rows
    # A letter takes about 0.065 inches at 8 points and 0.08 at 10.
    text = max([0.08 * len(title), *(0.065 * len(note) for note in notes)])
    labels = 0.3 + 0.065 * max(map(len, ticks))
    return max(pixel * width, text) + labels, pixel * height + 0.35 + 0.15 * len(notes)


def _running(array: np.ndarray, window: int) -> np.ndarray:
    """[S, P] means over the last ``window`` values, fewer at the start, without NaN."""
    ends = range(1, array.shape[1] + 1)
    return np.stack([parts.mean(array[:, max(0, e - window) : e].T) for e in ends], axis=1)
