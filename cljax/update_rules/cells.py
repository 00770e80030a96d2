"""The network of a layer's gate: LSTMs one above the other, and a bounded output.

    (i, f, g, o) = split(x W_x + h W_h + b)
    c = sigmoid(f) c + sigmoid(i) tanh(g),    h = sigmoid(o) tanh(c),    x = relu(h)
    delta = kappa tanh(x W_out + 1),          W_out = 0 at the start

W_x and W_h hold the kernels of the four gates side by side: with one product for all of them, and
nothing to put together at each step, the gradient of a gate takes a third of the time that it takes
with ``flax.linen.OptimizedLSTMCell``, whose numbers these are.

Symbols: H ``hidden``, I ``inputs``, N ``units`` (the rows of x), kappa ``kappa``.

Source: Hochreiter & Schmidhuber, 1997; Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a
Multi-Task Teacher", 2019 (arXiv:1910.04650), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.nets.inits import variance_scaling
from cljax.types import Array, PyTree

__all__ = ["Stack", "stack"]


class Stack(NamedTuple):
    """``init(key) -> params``; ``apply(params, carry, x [N, I]) -> (carry, delta [N, outputs])``.

    A carry is a pair (c, h) of [N, H] for each LSTM.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


def stack(
    units: int, inputs: int, outputs: int, hidden: int, cells: int, kappa: float, dtype: Any
) -> Stack:
    """``cells`` LSTMs, and multipliers that all start at kappa tanh(1)."""
    import flax.linen as nn

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
            (c, h), wide = carry, 4 * hidden
            uniform = variance_scaling(1.0, "fan_in", "uniform")
            square = nn.initializers.orthogonal()
            inward = self.param("input", _each(uniform), (x.shape[-1], wide), dtype)
            again = self.param("recurrent", _each(square), (hidden, wide), dtype)
            bias = self.param("bias", _open, (wide,), dtype)
            i, f, g, o = jnp.split(x @ inward + (h @ again + bias[None]), 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

    class Cells(nn.Module):
        @nn.compact
        def __call__(self, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
            after = []
            for i, kept in enumerate(carry):
                kept, x = Cell(name=f"cell_{i}")(kept, x)
                after.append(kept)
                x = nn.relu(x)
            zeros, ones = nn.initializers.zeros, nn.initializers.ones
            last = nn.Dense(
                outputs, kernel_init=zeros, bias_init=ones, param_dtype=dtype, name="out"
            )
            scale = self.param("kappa", nn.initializers.constant(kappa), (), dtype)
            return tuple(after), scale * jnp.tanh(last(x))

    module = Cells()

    def init(key: Array) -> PyTree:
        zeros = jnp.zeros((units, hidden), dtype)
        carry = tuple((zeros, zeros) for _ in range(cells))
        return module.init(key, carry, jnp.zeros((units, inputs), dtype))["params"]

    def apply(params: PyTree, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
        after: Any = module.apply({"params": params}, carry, x)
        return after

    return Stack(init, apply)


def _each(init: Any) -> Any:
    """Draws the kernel of each of the four gates by itself."""

    def drawn(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
        own = (shape[0], shape[1] // 4)
        return jnp.concatenate([init(k, own, dtype) for k in jax.random.split(key, 4)], axis=1)

    return drawn


def _open(key: Array, shape: tuple[int], dtype: Any) -> Array:
    """Biases of zeros, but for the forget gates' ones."""
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1.0)
