"""Products of the element-wise products of rows, x_b * x_j, with a matrix.

K of N rows are multiplied with all N. A pair of two of the K is computed once, and columns in which
all K rows are 0 are skipped: of ten digits, half of the pixels. Only rounding differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as AnyArray
from jaxtyping import Float

from cljax.types import Array

__all__ = ["Pairs", "of_rows", "times", "transposed_times"]

_BLOCK = 112  # columns a turn on a CPU: few enough to skip many, enough for a product's full speed


class Pairs(NamedTuple):
    """N rows, with those of their D columns first in which any of the last K is not 0."""

    others: Array  # [N - K, D'], D' a multiple of the block
    last: Array  # [K, D']
    columns: Array  # [D'] int32, what each column was before; D and above where it is padding
    turns: Array  # [] int32, blocks that hold a column which is not 0


def of_rows(x: Float[AnyArray, "N D"], num_last: int) -> Pairs:
    """Pairs of the last K rows with each of the N."""
    others, last = x[: len(x) - num_last], x[len(x) - num_last :]
    size, block = x.shape[1], _block(x.shape[1])
    filled = jnp.any(last != 0, axis=0)
    count = jnp.sum(filled, dtype=jnp.int32)
    place = jnp.where(filled, jnp.cumsum(filled), count + jnp.cumsum(~filled)) - 1
    columns = jnp.arange(size + -size % block, dtype=jnp.int32)
    columns = columns.at[place].set(jnp.arange(size, dtype=jnp.int32), unique_indices=True)
    others, last = (a.at[:, columns].get(mode="fill", fill_value=0) for a in (others, last))
    return Pairs(others, last, columns, (count + block - 1) // block)


def times(pairs: Pairs, matrix: Float[AnyArray, "D H"]) -> Float[AnyArray, "K N H"]:
    """``(x_b * x_j) @ matrix``."""
    places = _places(pairs)

    def turn(i: Array, total: Array) -> Array:
        rows, columns = _part(pairs, i)
        return total + rows @ matrix.at[columns].get(mode="fill", fill_value=0)

    zeros = jnp.zeros((places.max() + 1, matrix.shape[1]), matrix.dtype)
    return _over_blocks(pairs, turn, zeros)[places]


def transposed_times(
    pairs: Pairs, values: Float[AnyArray, "K N H"], size: int
) -> Float[AnyArray, "D H"]:
    """``sum_{j,b} (x_b * x_j) values_jb^T``, of D = ``size`` columns."""
    num_last, num_others = len(pairs.last), len(pairs.others)
    each, both = values[:, :num_others], values[:, num_others:]
    both = both + jnp.where(np.eye(num_last, dtype=bool)[..., None], 0, jnp.swapaxes(both, 0, 1))
    one = both[np.triu_indices(num_last)]
    summed = jnp.concatenate([each.reshape(-1, values.shape[-1]), one])

    def turn(i: Array, out: Array) -> Array:
        rows, columns = _part(pairs, i)
        return out.at[columns].set(rows.T @ summed, mode="drop", unique_indices=True)

    return _over_blocks(pairs, turn, jnp.zeros((size, values.shape[-1]), values.dtype))


def _block(size: int) -> int:
    # Elsewhere than on a CPU one large product is faster than turns of smaller ones.
    return min(size, _BLOCK) if jax.default_backend() == "cpu" else size


def _over_blocks(pairs: Pairs, turn: Callable[[Array, Array], Array], begin: Array) -> Array:
    block = _block(pairs.columns.shape[0])
    if block == pairs.columns.shape[0]:
        return turn(jnp.zeros((), jnp.int32), begin)
    return jax.lax.fori_loop(0, pairs.turns, turn, begin)


def _part(pairs: Pairs, i: Array) -> tuple[Array, Array]:
    """The i-th block of columns, a row for each pair, and which columns they are."""
    block = _block(pairs.columns.shape[0])
    others, last, columns = (
        jax.lax.dynamic_slice_in_dim(a, i * block, block, axis=-1) for a in pairs[:3]
    )
    first, second = np.triu_indices(len(last))
    apart = (last[:, None] * others[None]).reshape(-1, block)
    return jnp.concatenate([apart, last[first] * last[second]]), columns


def _places(pairs: Pairs) -> np.ndarray:
    """[K, N] int, the row of each pair among those of ``_part``."""
    num_last, num_others = len(pairs.last), len(pairs.others)
    apart = np.arange(num_last * num_others).reshape(num_last, num_others)
    both = np.zeros((num_last, num_last), int)
    both[np.triu_indices(num_last)] = apart.size + np.arange(num_last * (num_last + 1) // 2)
    return np.concatenate([apart, np.maximum(both, both.T)], axis=1)
