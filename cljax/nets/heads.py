"""Which parameters are the head's, and the network as a function of those alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax.types import Array, Model, Params, PyTree

__all__ = ["of_head", "split_head"]


def of_head(model: Model, params: Params, num_outputs: int) -> PyTree:
    """A pytree of Python bools like ``params``: True where a parameter has a part an output.

    The network must have ``head``.
    """
    flags = model.head
    assert flags is not None
    probe = jax.eval_shape(lambda: flags(params, jnp.zeros(num_outputs, bool)))
    return jax.tree.map(lambda leaf: leaf.ndim > 0, probe)


def split_head(
    model: Model, params: Params, num_outputs: int
) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """The head's parameters, and ``join(head) -> params``, which keeps all others."""
    leaves, structure = jax.tree.flatten(params)
    own = jax.tree.leaves(of_head(model, params, num_outputs))

    def join(head: list[Array]) -> Params:
        new = iter(head)
        put = [next(new) if ours else leaf for ours, leaf in zip(own, leaves, strict=True)]
        return jax.tree.unflatten(structure, put)

    return [leaf for ours, leaf in zip(own, leaves, strict=True) if ours], join
