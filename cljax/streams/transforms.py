"""What stands between stored examples and the network: a pure function for each task.

Rotations and permutations are one mechanism. A table [T, D] names, for each task and each pixel
of the new image, the pixel of the stored one; D stands for black. Training and test images go
through the same table, inside jit, so one copy of the images serves all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_positive
from cljax.streams.base import Augmentation, Transform
from cljax.types import Array, PyTree

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "as_is", "cast", "gather_pixels", "normalised", "pixels",
    "rotation_table",
]  # fmt: skip

_MANY = 256  # examples from which on it pays to ask whether they are all of one task
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of [0, 1]


def _scale(x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):  # learned exemplars, in grey levels
        return x / jnp.asarray(255, x.dtype)
    # By table: XLA makes x * (1 / 255) of a division, which rounds some values differently.
    dtype = jnp.result_type(float)
    table = jnp.asarray(np.arange(256, dtype=dtype) / np.asarray(255, dtype))
    return table.at[x].get(mode="promise_in_bounds")


def _apply_gather(tables: PyTree, x: Array, task: Array) -> Array:
    flat = x.reshape(x.shape[0], -1)

    # Measured on CPU: out-of-range indices as zeros are 5 to 10 times faster than a padded column.
    def each(flat: Array) -> Array:
        return jnp.take_along_axis(flat, tables[task], axis=1, mode="fill", fill_value=0)

    tables = jnp.asarray(tables)  # given by hand they may be NumPy's

    def alike(flat: Array) -> Array:
        return jnp.take(flat, tables[task[0]], axis=1, mode="fill", fill_value=0)

    if len(task) < _MANY:
        return _scale(each(flat))
    # Tests are of one task, whose columns are gathered in two thirds of the time.
    return _scale(jax.lax.cond(jnp.all(task == task[0]), alike, each, flat))


def _apply_pixels(tables: PyTree, x: Array, task: Array) -> Array:
    return _scale(x)


def _apply_cast(tables: PyTree, x: Array, task: Array) -> Array:
    return x.astype(jnp.result_type(float))


def _apply_as_is(tables: PyTree, x: Array, task: Array) -> Array:
    return x


pixels = Transform((), _apply_pixels)
"""uint8, or floats in grey levels, [B, ...] to floats in [0, 1], the same for every task."""

cast = Transform((), _apply_cast)
"""Floats in the default precision, values unchanged."""

as_is = Transform((), _apply_as_is)
"""Stored examples as they are (integers for an embedding, say)."""


def gather_pixels(tables: np.ndarray) -> Transform:
    """uint8 [B, ...] of D pixels to floats [B, D] in [0, 1], by the table of each one's task.

    Args:
      tables: [T, D] integers; pixel q of task t's image is stored pixel ``tables[t, q]``, or
        black where that is D.
    """
    return Transform(np.asarray(tables, np.int32), _apply_gather)


def normalised(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop: int | None = None,
    augment: Augmentation | None = None,
) -> Transform:
    """Grey levels [B, H, W, C] to ``(x / 255 - mean) / std`` by channel, the same for every task.

    Rounded after each operation, as PyTorch does where images are scaled and then normalised.

    Args:
      mean: C numbers. std: C numbers above 0.
      crop: height and width of the central window that is seen; None for all. Images that are
        no larger, such as those that ``augment`` has cropped, stay whole.
      augment: what is done to stored images before, in training.

    Raises:
      UserError: if ``mean`` and ``std`` do not fit, or (when applied) the images' channels.
    """
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise UserError(
            f"mean is {list(mean)} and std {list(std)}, but each channel needs one of either, and "
            "std must be above 0."
        )
    if crop is not None:
        check_positive(crop=crop)

    def apply(tables: PyTree, x: Array, task: Array) -> Array:
        if x.ndim != 4 or x.shape[-1] != len(mean):
            raise UserError(
                f"A batch of images has shape {list(x.shape)}, but [B, H, W, {len(mean)}] is "
                f"normalised by {len(mean)} means."
            )
        x = x if crop is None else _centre(x, crop)
        dtype = jnp.result_type(float)
        if jnp.issubdtype(x.dtype, jnp.floating):  # learned exemplars, in grey levels
            return (x / 255 - np.asarray(mean, x.dtype)) / np.asarray(std, x.dtype)
        scaled = np.arange(256, dtype=dtype)[:, None] / np.asarray(255, dtype)
        values = (scaled - np.asarray(mean, dtype)) / np.asarray(std, dtype)
        channel = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return jnp.asarray(values).at[x, channel].get(mode="promise_in_bounds")

    name = f"normalised {tuple(mean)} {tuple(std)} {crop}"
    return Transform((), apply, augment, name)


def _centre(x: Array, size: int) -> Array:
    """The central window [B, size, size, C] of images [B, H, W, C], or the whole of small ones."""
    for axis in (1, 2):
        spare = max(x.shape[axis] - size, 0)
        start = round(spare / 2)
        x = jax.lax.slice_in_dim(x, start, x.shape[axis] - spare + start, axis=axis)
    return x


def rotation_table(degrees: float, size: int = 28) -> np.ndarray:
    """Source pixels of a square image turned about its centre, nearest neighbour.

    Counter-clockwise, zero fill, no resizing; the integer arithmetic of Pillow's
    ``Image.rotate``, bit for bit.

    Returns:
      [size * size] int32, row by row; ``size * size`` where the source is outside.
    """
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre = size / 2
    left = cos * -centre + sin * -centre + centre
    top = -sin * -centre + cos * -centre + centre
    w, u = np.divmod(np.arange(size * size, dtype=np.int64), size)
    x = (_fixed(left + cos * 0.5 + sin * 0.5) + u * _fixed(cos) + w * _fixed(sin)) >> 16
    y = (_fixed(top - sin * 0.5 + cos * 0.5) + u * _fixed(-sin) + w * _fixed(cos)) >> 16
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return np.where(inside, y * size + x, size * size).astype(np.int32)


def _fixed(value: float) -> int:
    """16 fractional bits."""
    return math.floor(value * 65536.0 + 0.5)
