"""Augmentations of stored images, uint8 [B, H, W, C] in and out, on the device.

What is drawn is a pytree of plain arrays, such as offsets and angles, so draws that were recorded
elsewhere can be applied here. ``random_resized_crop`` and ``brightness`` make new values; the
others only move pixels: nearest neighbour, black where the image ends.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from cljax.errors import UserError, check_finite, check_positive
from cljax.streams.base import Augmentation
from cljax.types import Array, PyTree

__all__ = [
    "brightness", "compose", "crop_flip", "crop_flip_brightness", "crop_flip_rotation",
    "horizontal_flip", "random_crop", "random_resized_crop", "rotation",
]  # fmt: skip

_ATTEMPTS = 10  # of random_resized_crop to find a box that fits, as in torchvision


def random_crop(pad: int = 4) -> Augmentation:
    """A window of the image's own size somewhere in the image with a black margin.

    Draws: [B, 2] int32, row and column of the window's corner in the padded image, 0 to 2 pad.

    Args:
      pad: width of the margin.

    Raises:
      UserError: if ``pad`` is below 1.
    """
    check_positive(pad=pad)

    def draw(key: Array, batch_size: int) -> Array:
        return jax.random.randint(key, (batch_size, 2), 0, 2 * pad + 1, jnp.int32)

    def apply(x: Array, corners: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

        def window(image: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

        return jax.vmap(window)(padded, jnp.asarray(corners, jnp.int32))

    return Augmentation(draw, apply, f"crop{pad}")


def horizontal_flip() -> Augmentation:
    """Left and right exchanged in every other image.

    Draws: [B] bool, True where the image is flipped.
    """

    def draw(key: Array, batch_size: int) -> Array:
        return jax.random.uniform(key, (batch_size,), jnp.float32) < 0.5

    def apply(x: Array, flipped: Array) -> Array:
        return jnp.where(jnp.asarray(flipped)[:, None, None, None], x[:, :, ::-1], x)

    return Augmentation(draw, apply, "flip")


def rotation(degrees: float = 10.0) -> Augmentation:
    """The image turned counter-clockwise about its centre, its size and black corners kept.

    The sixteen fractional bits of Pillow's ``Image.rotate``, but from an angle in single
    precision, so that now and then a pixel differs where two are equally near.

    Draws: [B] float32, angles in degrees, uniform from ``-degrees`` to ``degrees``.

    Raises:
      UserError: if ``degrees`` is negative or not finite.
    """
    check_finite(degrees=degrees)
    if degrees < 0:
        raise UserError(f"degrees is {degrees}, but the largest angle must be at least 0.")

    def draw(key: Array, batch_size: int) -> Array:
        return jax.random.uniform(key, (batch_size,), jnp.float32, -degrees, degrees)

    def apply(x: Array, angles: Array) -> Array:
        return _turned(x, jnp.asarray(angles, jnp.float32))

    return Augmentation(draw, apply, f"rotation{_exact(degrees, 'g')}")


def brightness(change: float = 63 / 255) -> Augmentation:
    """All values of an image times one factor, cut off at 255 and rounded down, as Pillow does.

    torchvision's ``ColorJitter(brightness=change)``.

    Draws: [B] float32, factors, uniform from ``1 - change`` to ``1 + change``.

    Raises:
      UserError: unless ``change`` is from 0 to 1.
    """
    if not 0 <= change <= 1:
        raise UserError(f"change is {change}, but brightness changes by a share from 0 to 1.")

    def draw(key: Array, batch_size: int) -> Array:
        return jax.random.uniform(key, (batch_size,), jnp.float32, 1 - change, 1 + change)

    def apply(x: Array, factors: Array) -> Array:
        scaled = x.astype(jnp.float32) * jnp.asarray(factors, jnp.float32)[:, None, None, None]
        return jnp.minimum(jnp.floor(scaled), 255).astype(jnp.uint8)

    return Augmentation(draw, apply, f"brightness{_exact(change, '.3g', 63 / 255)}")


def random_resized_crop(
    size: int,
    stored: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Augmentation:
    """A box of random place, area and shape, resized to a square (Szegedy et al. 2015).

    torchvision's ``RandomResizedCrop`` with Pillow's bilinear filter, which widens where it
    reduces and sees nothing outside the box; values differ from Pillow's by at most 1 of 255.

    Draws: [B, 4] int32, top, left, height and width of the box.

    Args:
      size: height and width of what comes out.
      stored: height and width of the images that it is applied to.
      scale: smallest and largest area of the box, as shares of the image's.
      ratio: smallest and largest width over height; its logarithm is uniform.

    Raises:
      UserError: for a size below 1, or ranges that are not positive and in order.
    """
    height, width = (stored, stored) if isinstance(stored, int) else stored
    check_positive(size=size, height=height, width=width)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise UserError(f"{name} is {(low, high)}, but it must rise from above 0.")
    fallback = jnp.asarray(_largest_box(height, width, ratio), jnp.int32)

    def draw(key: Array, batch_size: int) -> Array:
        of_area, of_shape, of_place = jax.random.split(key, 3)
        shape = (batch_size, _ATTEMPTS)
        area = height * width * jax.random.uniform(of_area, shape, jnp.float32, *scale)
        log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
        aspect = jnp.exp(jax.random.uniform(of_shape, shape, jnp.float32, *log_ratio))
        tall = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        wide = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        chosen = jnp.concatenate(
            [jnp.take_along_axis(tall, first, 1), jnp.take_along_axis(wide, first, 1)], axis=1
        )
        room = jnp.asarray([[height, width]]) - chosen
        corner = jax.random.randint(
            of_place, (batch_size, 2), 0, jnp.maximum(room, 0) + 1, jnp.int32
        )
        box = jnp.concatenate([corner, chosen], axis=1)
        return jnp.where(fits.any(axis=1, keepdims=True), box, fallback[None])

    def apply(x: Array, boxes: Array) -> Array:
        if x.shape[1:3] != (height, width):
            raise UserError(
                f"random_resized_crop was made for images of {height} x {width} pixels, but these "
                f"have {x.shape[1]} x {x.shape[2]}."
            )
        top, left, tall, wide = jnp.asarray(boxes, jnp.int32).T
        # Rounded in between, as Pillow does, which at times takes rows before columns.
        seen = _resized("bqw,bhwc->bhqc", _filter(left, wide, size, width), x)
        return _resized("bph,bhqc->bpqc", _filter(top, tall, size, height), seen)

    usual = (scale, ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    return Augmentation(draw, apply, f"resized-crop{size}" + ("" if usual else f"{scale}{ratio}"))


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation after the other; draws are a tuple of theirs."""

    def draw(key: Array, batch_size: int) -> PyTree:
        keys = jax.random.split(key, max(len(augmentations), 1))
        return tuple(a.draw(k, batch_size) for a, k in zip(augmentations, keys, strict=False))

    def apply(x: Array, draws: PyTree) -> Array:
        for augmentation, own in zip(augmentations, draws, strict=True):
            x = augmentation.apply(x, own)
        return x

    return Augmentation(draw, apply, "-".join(a.name for a in augmentations) or "none")


def crop_flip(pad: int = 4) -> Augmentation:
    """Crop, then flip: training images of CIFAR in mnemonics training (arXiv:2002.10211)."""
    return compose(random_crop(pad), horizontal_flip())


def crop_flip_brightness(pad: int = 4, change: float = 63 / 255) -> Augmentation:
    """Crop, flip, then brightness: training images of CIFAR-100 in La-MAML (its data loader)."""
    return compose(random_crop(pad), horizontal_flip(), brightness(change))


def crop_flip_rotation(pad: int = 4, degrees: float = 10.0) -> Augmentation:
    """Crop, flip, then rotation: iTAML's training images (its released data loader)."""
    return compose(random_crop(pad), horizontal_flip(), rotation(degrees))


def _exact(value: float, form: str, *usual: float) -> str:
    """A number in a name: short where that tells it apart from all but the ``usual`` one."""
    short = format(value, form)
    return short if value in (float(short), *usual) else repr(value)


def _turned(x: Array, degrees: Array) -> Array:
    height, width = x.shape[1:3]
    angle = -jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_x, middle_y = 0.5 - width / 2, 0.5 - height / 2
    left = cos * middle_x + sin * middle_y + width / 2
    top = -sin * middle_x + cos * middle_y + height / 2
    u = jnp.arange(width, dtype=jnp.int32)[None, None, :]
    w = jnp.arange(height, dtype=jnp.int32)[None, :, None]

    def source(start: Array, along_row: Array, along_column: Array) -> Array:
        start, along_row, along_column = (
            _fixed(a)[:, None, None] for a in (start, along_row, along_column)
        )
        return (start + u * along_row + w * along_column) >> 16

    return _pick(x, source(top, -sin, cos), source(left, cos, sin))


def _fixed(value: Array) -> Array:
    """16 fractional bits."""
    return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)


def _pick(x: Array, row: Array, column: Array) -> Array:
    """Pixel ``(row, column)`` [B, H, W] of each image [B, H, W, C]; black outside."""
    batch, height, width, channels = x.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = jnp.where(inside, row * width + column, height * width)
    seen = jnp.take_along_axis(
        x.reshape(batch, height * width, channels),
        index.reshape(batch, height * width, 1),
        axis=1,
        mode="fill",
        fill_value=0,
    )
    return seen.reshape(x.shape)


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box whose shape is in range."""
    if width / height < ratio[0]:
        tall, wide = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        tall, wide = height, round(height * ratio[1])
    else:
        tall, wide = height, width
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _filter(start: Array, length: Array, size: int, stored: int) -> Array:
    """[B, size, stored] weights of a triangle filter over ``length`` pixels from ``start``."""
    scale = (length / size)[:, None, None].astype(jnp.float32)
    begin, end = (a[:, None, None] for a in (start, start + length))
    pixel = jnp.arange(stored, dtype=jnp.int32)[None, None, :]
    centre = (jnp.arange(size, dtype=jnp.float32) + 0.5)[None, :, None] * scale
    distance = jnp.abs((pixel - begin + 0.5).astype(jnp.float32) - centre)
    weight = jnp.maximum(1 - distance / jnp.maximum(scale, 1), 0)
    weight = jnp.where((pixel >= begin) & (pixel < end), weight, 0)
    return weight / weight.sum(axis=2, keepdims=True)


def _resized(subscripts: str, weight: Array, x: Array) -> Array:
    exact = jax.lax.Precision.HIGHEST  # a tensor core's ten bits would show in the last of eight
    seen = jnp.einsum(subscripts, weight, x.astype(jnp.float32), precision=exact)
    return jnp.clip(jnp.floor(seen + 0.5), 0, 255).astype(jnp.uint8)
