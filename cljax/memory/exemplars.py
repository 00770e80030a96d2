"""Exemplars: a fixed number of slots for each class, filled by a policy after each task.

random(m):  every example of the task draws a rank; each class keeps its m lowest
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from cljax.errors import check_positive
from cljax.types import Array, Batch, ExemplarPolicy, Info, Model, Phase, PyTree, Spec, StepPlan

__all__ = ["Exemplars", "all_of", "init", "offer", "random"]


class Exemplars(NamedTuple):
    """``x`` with leading axes [C, m], ``index`` [C, m] rows of the stream, ``rank`` [C, m].

    Lower ranks are kept first when a budget shrinks; empty slots have rank infinity.
    """

    x: PyTree
    index: Array
    rank: Array


def init(example: PyTree, num_classes: int, per_class: int) -> Exemplars:
    """Empty slots for ``per_class`` examples like ``example`` of each class.

    Raises:
      UserError: if a count is below 1.
    """
    check_positive(num_classes=num_classes, per_class=per_class)
    shape = (num_classes, per_class)
    x = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), example)
    return Exemplars(x, jnp.full(shape, -1, jnp.int32), jnp.full(shape, jnp.inf))


def offer(
    exemplars: Exemplars,
    x: PyTree,
    y: Int[Array, " B"],
    index: Int[Array, " B"],
    rank: Float[Array, " B"],
    mask: Bool[Array, " B"],
) -> Exemplars:
    """Keeps, of each class, the slots' lowest ranks among what is there and B examples."""

    def one(exemplars: Exemplars, offered: Any) -> tuple[Exemplars, None]:
        x, y, index, rank = offered
        slot = jnp.argmax(exemplars.rank[y])
        better = rank < exemplars.rank[y, slot]
        put = lambda stored, new: stored.at[y, slot].set(jnp.where(better, new, stored[y, slot]))
        return Exemplars(*jax.tree.map(put, tuple(exemplars), (x, index, rank))), None

    rank = jnp.where(mask, rank, jnp.inf)
    return jax.lax.scan(one, exemplars, (x, y, index, rank))[0]


def all_of(exemplars: Exemplars) -> tuple[PyTree, Int[Array, " N"], Bool[Array, " N"]]:
    """All C * m slots as ``(x, y, mask)``; mask True = occupied."""
    num_classes, per_class = exemplars.rank.shape
    flat = lambda a: a.reshape(num_classes * per_class, *a.shape[2:])
    y = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), per_class)
    return jax.tree.map(flat, exemplars.x), y, jnp.isfinite(flat(exemplars.rank))


def random(per_class: int) -> ExemplarPolicy:
    """``per_class`` examples of each class, uniformly among those of its task.

    Raises:
      UserError: if ``per_class`` is below 1.
    """
    check_positive(per_class=per_class)

    def plan(task: int, rows: StepPlan) -> StepPlan:
        first = rows.epoch == 0
        last = np.zeros(int(first.sum()), bool)
        last[-1:] = True
        return StepPlan(*(a[first] for a in rows))._replace(last=last)

    def draw(state: PyTree, batch: Batch, key: Array) -> Array:
        return jax.random.uniform(key, batch.y.shape)

    def update(state: PyTree, batch: Batch, rank: Array) -> tuple[PyTree, Info]:
        kept = offer(state.exemplars, batch.x, batch.y, batch.index, rank, batch.mask)
        return state._replace(exemplars=kept), Info(jnp.zeros(()))

    def phases(model: Model, spec: Spec) -> tuple[Phase, ...]:
        return (Phase("random-exemplars", plan, draw, update),)

    return ExemplarPolicy(lambda spec: init(spec.example, spec.num_classes, per_class), phases)
