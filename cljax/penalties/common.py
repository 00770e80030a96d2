"""Plans and gradients that several penalties share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.streams.base import batches
from cljax.types import Array, Params, PyTree, StepPlan

__all__ = ["first_examples", "sum_over_examples", "zeros"]


def first_examples(num: int | None, batch_size: int) -> Callable[[int, StepPlan], StepPlan | None]:
    """A plan: the first ``num`` examples of the task (None: all), in steps of ``batch_size``."""

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        seen = rows.mask & (rows.epoch == 0)[:, None]
        index, tasks = rows.index[seen][:num], rows.task[seen][:num]
        if not len(index):
            return None
        width = min(batch_size, num or batch_size)
        return batches(index, tasks, width, current=task, last=True)._replace(
            first_pass=np.zeros(-(-len(index) // width), bool)
        )

    return plan


def sum_over_examples(
    fn: Callable[[Params, Any], Array],
    of_gradient: Callable[[Array], Array],
    params: Params,
    examples: PyTree,
    mask: Array,
) -> Params:
    """``sum_i of_gradient(grad fn(params, example_i))`` over the valid examples, one at a time.

    Args:
      fn: ``(params, example) -> []`` of one example, leaves without the leading axis.
      examples: leaves ``[B, ...]``. mask: [B] bool.
    """

    def one(total: Params, example_valid: Any) -> tuple[Params, None]:
        example, valid = example_valid
        grads = jax.grad(fn)(params, example)
        return jax.tree.map(
            lambda a, g: a + jnp.where(valid, of_gradient(g), 0.0), total, grads
        ), None

    return jax.lax.scan(one, zeros(params), (examples, mask))[0]


def zeros(params: Params) -> Params:
    """A tree of zeros like the weights: importance before anything was learned."""
    return jax.tree.map(jnp.zeros_like, params)
