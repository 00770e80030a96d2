"""Residual networks and their parts as Flax modules, channels last, in PyTorch's conventions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cljax.nets.batchnorm import BatchNorm
from cljax.nets.conv import convolution
from cljax.nets.cosine import Head, cosine_head
from cljax.nets.groupnorm import GroupNorm
from cljax.nets.inits import fan_in_uniform, variance_scaling
from cljax.types import Array

__all__ = [
    "BasicBlock", "ConvBN", "ConvGN", "ResNet", "SinglePath", "generalised_mean", "halve", "linear",
]  # fmt: skip

_he_fan_out = variance_scaling(2.0, "fan_out", "normal")


class ConvBN(nn.Module):
    """A convolution, padded by half its kernel, and its BatchNorm: [B, H, W, C] -> [B, H', W', F].

    Kernels start at N(0, 2 / (k^2 F)) (He, fan-out), biases at U(+-1 / sqrt(k^2 C)).
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: Any = None  # of the convolution and of what comes out; None: that of the parameters
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> Array:
        fan_in = self.kernel**2 * x.shape[-1]
        x = convolution(
            self.features, self.kernel, self.stride,
            use_bias=self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype,
            kernel_init=_he_fan_out, bias_init=fan_in_uniform(fan_in),
        )(x)  # fmt: skip
        return BatchNorm(param_dtype=self.param_dtype)(x, train, member)


class ConvGN(nn.Module):
    """A convolution without bias and its GroupNorm, otherwise as ``ConvBN``, of which it takes the
    arguments; examples do not see each other, so ``train`` and ``member`` change nothing."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 8
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> Array:
        x = convolution(
            self.features, self.kernel, self.stride,
            use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype,
            kernel_init=_he_fan_out,
        )(x)  # fmt: skip
        return GroupNorm(self.groups, param_dtype=self.param_dtype)(x)


class BasicBlock(nn.Module):
    """Two 3x3 ``conv`` and a shortcut, summed; what follows the sum is the network's to say.

    ``conv`` is ``ConvBN`` or ``ConvGN`` with a network's options. ``project`` puts a 1x1 ``conv``
    on the shortcut, and ``relu_shortcut`` a ReLU after that; without it the shortcut has no
    parameters (He et al.'s option A).
    """

    features: int
    conv: Callable[..., nn.Module]
    stride: int = 1
    project: bool = False
    relu_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> Array:
        y = nn.relu(self.conv(self.features, stride=self.stride)(x, train, member))
        y = self.conv(self.features)(y, train, member)
        if self.project:
            x = self.conv(self.features, kernel=1, stride=self.stride)(x, train, member)
            x = nn.relu(x) if self.relu_shortcut else x
        else:
            x = _thinned(x, self.stride, self.features)
        return x + y


def _thinned(x: Array, stride: int, features: int) -> Array:
    """Every ``stride``-th row and column, and channels of zeros up to so many ``features``."""
    x = x[:, ::stride, ::stride] if stride > 1 else x
    more = features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))) if more else x


def halve(x: Array) -> Array:
    """The largest value of each 2x2 window, [B, H, W, C] -> [B, H // 2, W // 2, C].

    The first of equal ones gets the gradient, as in PyTorch. Selections, because the gradient of
    ``max`` compares values for equality, which fails (0 / 0) where the compiler computes them
    twice with other roundings, and that of a window reduction costs a little more on CPU.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    larger = lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b)
    return functools.reduce(larger, corners)


def generalised_mean(x: Array, power: int = 3) -> Array:
    """(mean over positions of max(x, 1e-6)^power)^(1 / power): [B, H, W, C] -> [B, C].

    For float32 or wider: the slope of the root overflows in half precision.
    """
    x = jnp.where(x < 1e-6, 1e-6, x)
    return jnp.mean(x**power, axis=(1, 2)) ** (1 / power)


class SinglePath(nn.Module):
    """The network of ``cljax.nets.resnet18_third``: images [B, H, W, C] of any size from 4x4."""

    num_outputs: int
    widths: tuple[int, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> tuple[Array, Array]:
        kept = jnp.promote_types(x.dtype, jnp.float32)
        conv = functools.partial(ConvBN, use_bias=True, dtype=self.dtype, param_dtype=kept)
        x = nn.relu(conv(self.widths[0])(x, train, member))
        for stage, width in enumerate(self.widths):
            x = BasicBlock(width, conv, project=stage > 0, relu_shortcut=True)(x, train, member)
            x = BasicBlock(width, conv)(nn.relu(x), train, member)
            x = halve(x) if stage in (1, 2) else x
            x = nn.relu(x)
        features = generalised_mean(x.astype(kept))
        return linear(self.num_outputs, features, use_bias=False), features


class ResNet(nn.Module):
    """The other networks of ``cljax.nets.resnet``: images [B, H, W, C] of any size.

    A stem of the first width, then a stage of so many ``blocks`` for each width, the later ones
    starting with stride 2, and the mean over positions. Shortcuts of those are projected, but with
    GroupNorm in place of BatchNorm they have no parameters.
    """

    num_outputs: int
    widths: tuple[int, ...]
    blocks: int
    large_stem: bool  # 7x7 of stride 2 and max-pool, else 3x3
    head: Head
    last_relu: bool  # False: features may be negative
    dtype: Any = None
    group: bool = False  # GroupNorm

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> tuple[Array, Array]:
        kept = jnp.promote_types(x.dtype, jnp.float32)
        layer = ConvGN if self.group else ConvBN
        conv = functools.partial(layer, dtype=self.dtype, param_dtype=kept)
        kernel, stride = (7, 2) if self.large_stem else (3, 1)
        x = nn.relu(conv(self.widths[0], kernel=kernel, stride=stride)(x, train, member))
        if self.large_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # type: ignore[arg-type]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = nn.relu(x) if stage or block else x
                stride = 2 if stage and not block else 1
                project = stride == 2 and not self.group
                x = BasicBlock(width, conv, stride, project)(x, train, member)
        x = nn.relu(x) if self.last_relu else x
        features = jnp.mean(x.astype(kept), axis=(1, 2))
        if self.head == "cosine":
            return cosine_head(self.num_outputs)(features), features
        return linear(self.num_outputs, features), features


def linear(num_outputs: int, features: Array, use_bias: bool = True) -> Array:
    """Logits of a linear layer named ``head``, PyTorch's at first; only in compact methods."""
    uniform = fan_in_uniform(features.shape[-1])
    return nn.Dense(
        num_outputs, use_bias=use_bias, kernel_init=uniform, bias_init=uniform,
        param_dtype=features.dtype, name="head",
    )(features)  # fmt: skip
