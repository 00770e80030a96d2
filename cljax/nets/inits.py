"""Initialisers that Flax lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from cljax.types import Array

__all__ = ["fan_in_uniform"]


class Initializer(Protocol):
    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array: ...


def fan_in_uniform(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's of linear layers and of all biases."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init
