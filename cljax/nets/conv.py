"""Convolutions as XLA's own, or as shifted slices and one matrix product.

    patches(x)[b, h, w, (i, j, c)] = padded x[b, s h + i, s w + j, c]
    y[b, h, w] = patches(x)[b, h, w] @ kernel reshaped to [k k C_in, C_out]

Symbols: k ``kernel``, s ``stride``.

Both give the same numbers but for rounding. On CPUs XLA computes gradients of its convolutions up
to 18 times slower inside compiled loops than outside, and those of several sets of weights
(``vmap``) as grouped convolutions, slower still; slices and products suffer from neither, but hold
k k copies of the input while a gradient is taken, so that with several sets of weights on a CPU the
C library should keep freed memory (``cljax.engine.allocator``). On accelerators XLA's are the
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from cljax.errors import check_known
from cljax.types import Array

__all__ = ["Lowering", "PatchConv", "convolution", "lowered", "patches"]

Lowering: TypeAlias = Literal["auto", "patches", "xla"]


def lowered(lowering: Lowering) -> Lowering:
    """What ``auto`` stands for: patches on a CPU, xla elsewhere; others stand for themselves."""
    check_known("lowering", lowering, get_args(Lowering))
    if lowering == "auto":
        return "patches" if jax.default_backend() == "cpu" else "xla"
    return lowering


def patches(x: Array, kernel: int, stride: int = 1, padding: int = 0) -> Array:
    """What each place of a window sees: [B, H, W, C] -> [B, H', W', kernel * kernel * C].

    H' = (H + 2 padding - kernel) // stride + 1, W' likewise; zeros outside the image. The last
    axis runs over the window's rows, then its columns, then channels.
    """
    around = (padding, padding)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0))) if padding else x
    batch, height, width, channels = x.shape
    last_row, last_column = ((size - kernel) // stride * stride for size in (height, width))
    shifted = [
        jax.lax.slice(
            x, (0, i, j, 0), (batch, i + last_row + 1, j + last_column + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(kernel)
        for j in range(kernel)
    ]  # fmt: skip
    return jnp.concatenate(shifted, axis=-1) if len(shifted) > 1 else shifted[0]


class PatchConv(nn.Module):
    """``nn.Conv`` over [B, H, W, C] by ``patches``: same fields, parameters and initial values.

    Of its fields those that square windows need; ``padding`` is explicit and the same all round.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0))
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, around = self.kernel_size[0], self.padding[0][0]
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        seen = patches(x, size, self.strides, around)
        y = seen.reshape(-1, seen.shape[-1]) @ kernel.reshape(-1, self.features)
        y = y if bias is None else y + bias[None]
        return y.reshape(*seen.shape[:-1], self.features)


def convolution(
    features: int,
    kernel: int,
    stride: int,
    lowering: Lowering,
    *,
    name: str = "Conv_0",
    **options: Any,
) -> nn.Module:
    """A layer padded by half its window; only inside a compact method.

    Args:
      lowering: both have the same parameters, so that what one has learned the other can use.
      **options: ``use_bias``, ``dtype``, ``param_dtype``, ``kernel_init``, ``bias_init``.
    """
    layer = PatchConv if lowered(lowering) == "patches" else nn.Conv
    around = [(kernel // 2, kernel // 2)] * 2
    return layer(features, (kernel, kernel), stride, around, name=name, **options)
