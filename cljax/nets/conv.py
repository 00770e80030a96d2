"""Convolutional layers: ``nn.Conv`` of square windows, by ``cljax.nets.convolve``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from cljax.nets.convolve import convolve
from cljax.types import Array

__all__ = ["Conv", "convolution"]


class Conv(nn.Module):
    """``nn.Conv`` over [B, H, W, C]: same fields, parameters and initial values.

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
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(x, kernel, self.strides, self.padding[0][0])
        return y if bias is None else y + bias[None, None, None]


def convolution(
    features: int, kernel: int, stride: int, *, name: str = "Conv_0", **options: Any
) -> nn.Module:
    """A layer padded by half its window; only inside a compact method.

    Args:
      **options: ``use_bias``, ``dtype``, ``param_dtype``, ``kernel_init``, ``bias_init``.
    """
    around = [(kernel // 2, kernel // 2)] * 2
    return Conv(features, (kernel, kernel), stride, around, name=name, **options)
