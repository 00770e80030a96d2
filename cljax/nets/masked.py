"""A training forward pass over a batch with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["masked"]


def masked(model: Model, variables: Variables, x: PyTree, mask: Array) -> tuple[Output, PyTree]:
    """``model.apply(variables, x, True)`` in which masked rows reach no statistics.

    Args:
      x: [B, ...], as the network sees them.
      mask: [B] bool, True = a real example.

    Returns:
      The output, meaningless in masked rows, and the network's state.

    Raises:
      UserError: for a network with state that does not have ``grouped``.
    """
    blank = lambda a: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)
    if not jax.tree.leaves(variables.model_state):
        x = jax.tree.map(blank, x)  # whatever they hold reaches no gradient either
        return model.apply(variables, x, True)
    if model.grouped is None:
        raise UserError(
            "This network keeps statistics of its batches, as BatchNorm does, but has no grouped, "
            "without which padding would reach them; give its Model one (see cljax.types.Model)."
        )
    return model.grouped(variables, x, mask[:, None])
