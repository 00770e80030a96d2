"""Convolutions that a CPU computes fast, outside compiled loops and inside.

    y[b, h, w] = sum_{i, j} padded x[b, s h + i, s w + j] @ kernel[i, j]

Symbols: k the kernel's size, s ``stride``.

XLA's CPU back end hands a convolution to its library only in one order of dimensions, images
[B, H, W, C] and kernels [k, k, C, F]. It brings those of gradients into that order outside loops;
inside ``lax.scan`` and the like they stay as automatic differentiation writes them, and run in
plain loops, 12 to 60 times slower (measured with jax 0.10). So on CPUs three primitives, each a
convolution in that order, are one another's derivatives:

    y = convolve(x, kernel),    dx = to_images(dy, kernel),    dkernel = to_kernel(x, dy)

``to_kernel`` sums over eight images at a time, whose copies stay in the cache: over 128 images at
once it is up to twelve times slower. The two halves of a large batch do not wait for each other, so
that two cores share them. Several kernels (``vmap``) are taken one after another, since
their grouped convolution is slower than that.

With strides, few channels, kernels of 1x1 or in double precision, which the library does not
have, it is ``patches`` and a matrix product: as fast or faster there, in loops too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cljax.types import Array

__all__ = ["PRIMITIVES", "convolve", "multiply_adds", "patches"]

_ORDER = ("NHWC", "HWIO", "NHWC")
_FEW = 8  # channels, below which patches are faster
_IMAGES = 8  # of one product of ``to_kernel``
_MANY = 32  # images, from which two halves go to two cores


def convolve(x: Array, kernel: Array, stride: int = 1, padding: int = 0) -> Array:
    """[B, H, W, C] and [k, k, C, F] -> [B, H', W', F], differentiable to any order.

    H' = (H + 2 padding - k) // stride + 1, W' likewise; zeros outside the image. On accelerators,
    and where an array is sharded over a mesh, it is ``lax.conv_general_dilated``.
    """
    size, channels = kernel.shape[1:3]
    if jax.default_backend() != "cpu" or not jax.typeof(x).sharding.mesh.empty:
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_ORDER
        )
    if stride == 1 and size > 1 and channels >= _FEW and x.dtype.itemsize <= 4:
        return _forward.bind(x, kernel, padding=padding)
    seen = patches(x, size, stride, padding)
    y = seen.reshape(-1, seen.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*seen.shape[:-1], kernel.shape[-1])


def multiply_adds(eqn: Any) -> int:
    """Those of one of ``PRIMITIVES`` in a traced program; zeros of a margin count."""
    first, second, out = (v.aval for v in (*eqn.invars, *eqn.outvars))
    y, kernel = {_forward: (out, second), _to_images: (first, second), _to_kernel: (second, out)}[
        eqn.primitive
    ]
    return y.size // y.shape[-1] * kernel.size


def patches(x: Array, kernel: int, stride: int = 1, padding: int = 0) -> Array:
    """What each place of a window sees: [B, H, W, C] -> [B, H', W', kernel * kernel * C].

    H' and W' as of ``convolve``. The last axis runs over the window's rows, then its columns, then
    channels.
    """
    around = (padding, padding)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0))) if padding else x
    batch, height, width, channels = x.shape
    last_row, last_column = ((size - kernel) // stride * stride for size in (height, width))
    shifted = [
        lax.slice(
            x, (0, i, j, 0), (batch, i + last_row + 1, j + last_column + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(kernel)
        for j in range(kernel)
    ]  # fmt: skip
    return jnp.concatenate(shifted, axis=-1) if len(shifted) > 1 else shifted[0]


def _whole(x: Array, kernel: Array, padding: int) -> Array:
    around = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=_ORDER)


def _by_images(x: Array, kernel: Array, *, padding: int) -> Array:
    """[B, H, W, C], [k, k, C, F] -> [B, H', W', F]."""
    halves = (x[: len(x) // 2], x[len(x) // 2 :]) if len(x) >= _MANY else (x,)
    return jnp.concatenate([_whole(part, kernel, padding) for part in halves])


def _images(y: Array, kernel: Array, *, padding: int) -> Array:
    """[B, H', W', F], [k, k, C, F] -> [B, H, W, C]."""
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _by_images(y, turned, padding=kernel.shape[0] - 1 - padding)


def _kernel(x: Array, y: Array, *, padding: int) -> Array:
    """[B, H, W, C], [B, H', W', F] -> [k, k, C, F]."""

    def part(x: Array, y: Array) -> Array:  # channels for images, images for channels
        turned = _whole(x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3), padding)
        return turned.transpose(1, 2, 0, 3)

    whole = len(x) // _IMAGES * _IMAGES
    if len(x) <= _IMAGES:
        return part(x, y)
    add = lambda total, pair: (total + part(*pair), None)
    several = lambda a: a[:whole].reshape(-1, _IMAGES, *a.shape[1:])
    zeros = jnp.zeros(jax.eval_shape(part, x, y).shape, jnp.float32)  # also for half precision
    total, _ = lax.scan(add, zeros, (several(x), several(y)))
    total = total + part(x[whole:], y[whole:]) if whole < len(x) else total
    return total.astype(x.dtype)


def _primitive(name: str, compute: Callable[..., Array]) -> Primitive:
    """A primitive of two arrays, linear in each."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(compute, static_argnames="padding"))

    def shape(*arrays: Any, padding: int) -> Any:
        out = jax.eval_shape(functools.partial(compute, padding=padding), *arrays)
        return ShapedArray(out.shape, out.dtype)

    def batched(arrays: Any, axes: Any, *, padding: int) -> tuple[Array, int]:
        bind = functools.partial(primitive.bind, padding=padding)
        a, b = (
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        )
        if axes[1] is None and compute is not _kernel:  # more images
            y = bind(a.reshape(-1, *a.shape[2:]), b)
            return y.reshape(*a.shape[:2], *y.shape[1:]), 0
        if axes[0] is None:
            return lax.map(lambda b: bind(a, b), b), 0
        if axes[1] is None:
            return lax.map(lambda a: bind(a, b), a), 0
        return lax.map(lambda pair: bind(*pair), (a, b)), 0

    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


_forward = _primitive("convolve", _by_images)
_to_images = _primitive("convolve_to_images", _images)
_to_kernel = _primitive("convolve_to_kernel", _kernel)
PRIMITIVES = (_forward, _to_images, _to_kernel)

# Of each: (cotangent, first array, second array) -> that of the first, and that of the second.
ad.defbilinear(
    _forward,
    lambda dy, x, kernel, **of: _to_images.bind(dy, kernel, **of),
    lambda dy, x, kernel, **of: _to_kernel.bind(x, dy, **of),
)
ad.defbilinear(
    _to_images,
    lambda dx, y, kernel, **of: _forward.bind(dx, kernel, **of),
    lambda dx, y, kernel, **of: _to_kernel.bind(dx, y, **of),
)
ad.defbilinear(
    _to_kernel,
    lambda dkernel, x, y, **of: _to_images.bind(y, dkernel, **of),
    lambda dkernel, x, y, **of: _forward.bind(x, dkernel, **of),
)
