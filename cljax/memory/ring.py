"""Ring memory: a first-in-first-out buffer for each task.

    add(z, task):  slot = age[task] mod m;  write it;  age[task] += 1

``rule="truncate"`` drops what goes past the end of the buffer instead of going on at its start,
as the code of GEM does; the two differ only where a batch does not divide m.

Source: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017
(arXiv:1706.08840), section 3, and its code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from cljax import tree
from cljax.errors import check_known, check_positive
from cljax.states import Contents, labelled
from cljax.types import Array, PyTree

__all__ = ["Ring", "Rule", "add", "init", "nbytes", "valid"]

Rule: TypeAlias = Literal["textbook", "truncate"]


class Ring(NamedTuple):
    """``data`` with leading axes [T, m] (zeros where empty), ``age`` [T] int32, examples taken."""

    data: PyTree
    age: Array

    @property
    def contents(self) -> Contents | None:
        """The examples in it, where they have labels and tasks."""
        return labelled(self.data, valid(self))


def init(example: PyTree, num_tasks: int, per_task: int) -> Ring:
    """Empty buffers of ``per_task`` examples like ``example``, arrays or ShapeDtypeStructs.

    Raises:
      UserError: if a count is below 1.
    """
    check_positive(num_tasks=num_tasks, per_task=per_task)
    shape = (num_tasks, per_task)
    empty = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), example)
    return Ring(empty, jnp.zeros(num_tasks, jnp.int32))


def nbytes(ring: Ring) -> int:
    """Bytes of the stored examples."""
    return tree.size(ring.data)


def valid(ring: Ring) -> Bool[Array, "T m"]:
    """True where a slot is occupied."""
    per_task = jax.tree.leaves(ring.data)[0].shape[1]
    return jnp.arange(per_task)[None] < jnp.minimum(ring.age, per_task)[:, None]


def add(
    ring: Ring,
    examples: PyTree,
    task: Int[Array, ""],
    mask: Bool[Array, " B"],
    rule: Rule = "textbook",
) -> Ring:
    """Puts the valid ones of B examples, leaves ``[B, ...]``, into a task's buffer, in order."""
    check_known("rule", rule, ("textbook", "truncate"))
    per_task = jax.tree.leaves(ring.data)[0].shape[1]
    place = jnp.cumsum(mask, dtype=jnp.int32) - 1  # of each valid example among them
    count = jnp.sum(mask, dtype=jnp.int32)
    start = ring.age[task] % per_task
    if rule == "truncate":
        taken = mask & (start + place < per_task)
        count = jnp.minimum(count, per_task - start)
    else:
        taken = mask & (place >= count - per_task)  # of a longer batch the last m
    slot = jnp.where(taken, (start + place) % per_task, per_task)
    data = jax.tree.map(
        lambda stored, new: stored.at[task, slot].set(new.astype(stored.dtype), mode="drop"),
        ring.data,
        examples,
    )
    return Ring(data, ring.age.at[task].add(count))
