"""Ring memory: a first-in-first-out buffer for each task, or for each class.

    add(z, task):  slot = age[task] mod m;  write it;  age[task] += 1

``rule="truncate"`` drops what goes past the end of the buffer instead of going on at its start,
as the code of GEM does; the two differ only where a batch does not divide m.

Source: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017
(arXiv:1706.08840), section 3, and its code; one for each class: Chaudhry et al., "On Tiny Episodic
Memories in Continual Learning", 2019 (arXiv:1902.10486).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from cljax import tree
from cljax.errors import UserError, check_known, check_positive
from cljax.memory.protocol import Memory, example_of
from cljax.states import Contents, labelled
from cljax.types import Array, Examples, Needs, PyTree, Spec

__all__ = ["Ring", "Rule", "State", "add", "init", "nbytes", "valid"]

Rule: TypeAlias = Literal["textbook", "truncate"]


class State(NamedTuple):
    """``data`` with leading axes [T, m] (zeros where empty), ``age`` [T] int32, examples taken."""

    data: PyTree
    age: Array

    @property
    def contents(self) -> Contents | None:
        """The examples in it, where they have labels and tasks."""
        return labelled(self.data, valid(self))


def init(example: PyTree, num_tasks: int, per_task: int) -> State:
    """Empty buffers of ``per_task`` examples like ``example``, arrays or ShapeDtypeStructs.

    Raises:
      UserError: if a count is below 1.
    """
    check_positive(num_tasks=num_tasks, per_task=per_task)
    shape = (num_tasks, per_task)
    empty = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), example)
    return State(empty, jnp.zeros(num_tasks, jnp.int32))


def nbytes(ring: State) -> int:
    """Bytes of the stored examples."""
    return tree.size(ring.data)


def valid(ring: State) -> Bool[Array, "T m"]:
    """True where a slot is occupied."""
    per_task = jax.tree.leaves(ring.data)[0].shape[1]
    return jnp.arange(per_task)[None] < jnp.minimum(ring.age, per_task)[:, None]


def add(
    ring: State,
    examples: PyTree,
    task: Int[Array, ""] | Int[Array, " B"],
    mask: Bool[Array, " B"],
    rule: Rule = "textbook",
) -> State:
    """Puts the valid ones of B examples, leaves ``[B, ...]``, into their buffers, in order.

    Args:
      task: the buffer of all of them, or of each.
    """
    check_known("rule", rule, ("textbook", "truncate"))
    per_task = jax.tree.leaves(ring.data)[0].shape[1]
    task = jnp.broadcast_to(task, mask.shape)
    same = (task[:, None] == task[None]) & mask[None]  # [B, B], valid ones of one buffer
    place = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)  # of each example among them
    start = ring.age[task] % per_task
    if rule == "truncate":
        taken = counted = mask & (start + place < per_task)
    else:
        counted = mask
        taken = mask & (place >= jnp.sum(same, axis=1) - per_task)  # of a longer batch the last m
    slot = jnp.where(taken, (start + place) % per_task, per_task)
    data = jax.tree.map(
        lambda stored, new: stored.at[task, slot].set(new.astype(stored.dtype), mode="drop"),
        ring.data,
        examples,
    )
    return State(data, ring.age.at[task].add(counted.astype(jnp.int32)))


class Ring(Memory):
    """The last examples of each task, M / T of them, or of each class, M / C."""

    per: Literal["task", "class"] = "task"
    """A buffer for each task, whose id it must be told, or for each class."""

    @property
    def needs(self) -> Needs:
        return Needs(task_ids_train=self.per == "task")

    @property
    def needs_classes(self) -> str:
        return "has a buffer for each class" if self.per == "class" else ""

    def init(self, spec: Spec, capacity: int) -> State:
        buffers = spec.num_tasks if self.per == "task" else spec.num_classes
        if capacity < buffers:
            raise UserError(
                f"capacity is {capacity}, but a ring with a buffer for each {self.per} needs at "
                f"least {buffers} places here."
            )
        return init(example_of(spec), buffers, capacity // buffers)

    def offer(
        self, memory: State, examples: Examples, mask: Bool[Array, " B"], drawn: tuple[()]
    ) -> State:
        buffer = examples.task if self.per == "task" else examples.y
        return add(memory, examples, buffer, mask)
