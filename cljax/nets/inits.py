"""Initialisers by name, and those that Flax lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from cljax import keys
from cljax.types import Array

__all__ = ["KERNELS", "fan_in_uniform", "variance_scaling"]

Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg"]
Distribution: TypeAlias = Literal["normal", "uniform"]

# Name -> (scale, mode, distribution) of ``variance_scaling``, for kernels.
KERNELS: dict[str, tuple[float, Mode, Distribution]] = {
    "kaiming-normal": (2.0, "fan_in", "normal"),  # La-MAML code: N(0, 2 / fan_in), output layer too
    "xavier-normal": (1.0, "fan_avg", "normal"),  # La-MAML code, for Meta-BGD
    "xavier-uniform": (1.0, "fan_avg", "uniform"),  # MER code
    "lecun-normal": (1.0, "fan_in", "normal"),
    "pytorch": (1 / 3, "fan_in", "uniform"),  # U(+-1 / sqrt(fan_in)), biases too; iTAML code
}


class Initializer(Protocol):
    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array: ...


def fan_in_uniform(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's of linear layers and of all biases."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return keys.flat(jax.random.uniform, key, shape, dtype, minval=-bound, maxval=bound)

    return init


def variance_scaling(scale: float, mode: Mode, distribution: Distribution) -> Initializer:
    """``flax.linen.initializers.variance_scaling``, the same bits, which compile sooner.

    Kernels [..., in, out] have mean 0 and variance scale / n, n the mode's number of units, those
    of all leading axes (a convolution's window) included.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        window = math.prod(shape[:-2])
        fan_in, fan_out = (window * width for width in shape[-2:])
        count = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        variance = jnp.array(scale / count, dtype)
        if distribution == "normal":
            return keys.flat(jax.random.normal, key, shape, dtype) * jnp.sqrt(variance)
        uniform = keys.flat(jax.random.uniform, key, shape, dtype, minval=-1)
        return uniform * jnp.sqrt(3 * variance)

    return init
