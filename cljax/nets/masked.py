"""A training forward pass over a batch with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["masked"]


def masked(
    model: Model, variables: Variables, x: PyTree, mask: Array, *, repeat: bool = False
) -> tuple[Output, PyTree]:
    """``model.apply(variables, x, True)`` in which rows outside ``mask`` reach nothing.

    Neither statistics nor gradients depend on what those rows hold. Without a valid row the
    network's state stays as it is. How many those rows are matters in two cases: ``repeat``, and a
    network without state that still normalises by the batch, which sees them as zeros. Such a
    network learns from full batches as usual; keep it off batches with padding.

    Args:
      x: [B, ...], as the network sees them.
      mask: [B] bool, True = a real example.
      repeat: take networks with state but without ``grouped`` too: the rows outside the mask then
        repeat the valid ones in turn, which so weigh more or less in the statistics of a batch.

    Returns:
      The output, meaningless in rows outside the mask, and the network's state.

    Raises:
      UserError: for a network with state that does not have ``grouped``, unless ``repeat``.
    """
    if not jax.tree.leaves(variables.model_state):
        return model.apply(variables, tree.blank(x, mask), True)
    if model.grouped is not None:
        return model.grouped(variables, x, mask[:, None])
    if not repeat:
        raise UserError(
            "This network keeps statistics of its batches, as BatchNorm does, but has no grouped, "
            "without which padding would reach them; give its Model one (see cljax.types.Model)."
        )
    valid = jnp.argsort(~mask, stable=True)  # the valid rows first
    turn = (jnp.cumsum(~mask) - 1) % jnp.maximum(jnp.sum(mask), 1)  # of a row outside the mask
    source = jnp.where(mask, jnp.arange(mask.shape[0]), valid[turn])
    x = jax.tree.map(lambda a: a[source], tree.blank(x, mask))
    output, after = model.apply(variables, x, True)
    return output, tree.select(jnp.any(mask), after, variables.model_state)
