"""Tree arithmetic that the papers write as vector arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax.types import Array, Params, PyTree

__all__ = [
    "add_scaled",
    "blank",
    "clip_elements",
    "clip_norm",
    "dot",
    "full_like",
    "select",
    "size",
    "weighted_sq",
]


def add_scaled(tree: Params, direction: Params, scale: Array | float) -> Params:
    """``tree + scale * direction``, leaf by leaf.

    Example:
        >>> import cljax
        >>> new = cljax.tree.add_scaled({"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])}, -0.5)
        >>> new["w"].tolist()
        [0.5, 0.0]
    """
    return jax.tree.map(lambda a, b: a + scale * b, tree, direction)


def blank(tree: PyTree, mask: Array) -> PyTree:
    """Leaves ``[B, ...]`` with zeros in the rows outside ``mask`` [B], whatever those held."""
    return jax.tree.map(
        lambda a: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, jnp.zeros((), a.dtype)), tree
    )


def clip_norm(tree: Params, bound: Array | float | None) -> Params:
    """``tree * min(1, bound / (|tree| + 1e-6))`` with the global L2 norm; None: unchanged.

    The 1e-6 is PyTorch's, which the reference implementations use (optax has none).
    """
    if bound is None:
        return tree
    scale = jnp.minimum(1.0, bound / (jnp.sqrt(dot(tree, tree)) + 1e-6))
    return jax.tree.map(lambda a: a * scale, tree)


def clip_elements(tree: Params, bound: Array | float | None) -> Params:
    """Clips every element to ``[-bound, bound]``; None: unchanged."""
    if bound is None:
        return tree
    return jax.tree.map(lambda a: jnp.clip(a, -bound, bound), tree)


def dot(a: Params, b: Params) -> Array:
    """Inner product over all leaves, ``[]``."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def full_like(tree: Params, value: Array | float) -> Params:
    """The structure, shapes and types of ``tree``, every element ``value``."""
    return jax.tree.map(lambda a: jnp.full_like(a, value), tree)


def select(condition: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """``on_true`` where the scalar ``condition`` holds, else ``on_false``, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def size(tree: PyTree) -> int:
    """Bytes of all array leaves (arrays or ShapeDtypeStructs)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def weighted_sq(weight: Params, a: Params, b: Params) -> Array:
    """``sum weight * (a - b)^2`` over all leaves, ``[]``; the shape of every quadratic penalty.

    Example:
        >>> import cljax
        >>> float(cljax.tree.weighted_sq(jnp.array([1.0, 2.0]), jnp.ones(2), jnp.zeros(2)))
        3.0
    """
    terms = jax.tree.map(lambda w, x, y: jnp.sum(w * (x - y) ** 2), weight, a, b)
    return jax.tree.reduce(jnp.add, terms, jnp.zeros(()))
