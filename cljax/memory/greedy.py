"""Greedy class-balanced memory: each class seen has its share, and keeps its first examples.

    offer(x, y):   nothing, if y has M / (classes seen, y among them) examples or more in memory
                   memory not filled:  store
                   else:               replace a random example of the class with the most

Symbols: M ``capacity``.

Source: Prabhu, Torr, Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual
Learning", ECCV 2020, algorithm 1. Read here: among several classes with the most examples each of
their examples is as likely to go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from cljax.errors import UserError
from cljax.memory import reservoir
from cljax.memory.protocol import Memory, example_of, place_in
from cljax.states import Contents
from cljax.types import Array, Examples, Spec

__all__ = ["Greedy", "State"]


class State(NamedTuple):
    """The stored examples, whose ``age`` is their number, and how many of each class there are."""

    stored: reservoir.State
    counts: Array  # [C] int32

    @property
    def contents(self) -> Contents | None:
        """The examples in it."""
        return self.stored.contents


class Greedy(Memory):
    """As many examples of each class as there is room for, its first ones (GDumb's sampler)."""

    @property
    def needs_classes(self) -> str:
        return "balances the examples of the classes"

    def init(self, spec: Spec, capacity: int) -> State:
        if capacity < spec.num_classes:
            raise UserError(
                f"capacity is {capacity}, but a greedy memory needs at least {spec.num_classes} "
                "places here, one for each class."
            )
        empty = reservoir.init(example_of(spec), capacity)
        return State(empty, jnp.zeros(spec.num_classes, jnp.int32))

    def draw(self, memory: State, examples: Examples, mask: Bool[Array, " B"], key: Array) -> Array:
        """[B] in [0, 1), in whose place an example enters a filled memory."""
        return jax.random.uniform(key, mask.shape)

    def offer(
        self, memory: State, examples: Examples, mask: Bool[Array, " B"], drawn: Array
    ) -> State:
        size = reservoir.capacity(memory.stored)

        def one(carry: Any, entry: Any) -> tuple[Any, Any]:
            labels, counts = carry
            label, valid, place = entry
            filled = jnp.sum(counts)
            num_seen = jnp.sum(counts > 0) + (counts[label] == 0)
            enters = valid & (counts[label] * num_seen < size)
            room = filled < size
            most = (counts == jnp.max(counts))[labels] & (jnp.arange(size) < filled)  # [M]
            taken = place_in(most, place)
            leaves = enters & ~room
            counts = counts.at[labels[taken]].add(-leaves.astype(jnp.int32))
            counts = counts.at[label].add(enters.astype(jnp.int32))
            slot = jnp.where(enters, jnp.where(room, filled, taken), size)
            labels = labels.at[slot].set(label, mode="drop")
            return (labels, counts), (slot, enters & room)

        first = (memory.stored.data.y, memory.counts)
        (_, counts), (slots, new) = jax.lax.scan(one, first, (examples.y, mask, drawn))
        return State(reservoir.write(memory.stored, examples, slots, new), counts)

    def sample(
        self, memory: State, num: int, key: Array, *, replace: bool = False
    ) -> tuple[Examples, Bool[Array, " R"]]:
        return reservoir.sample(memory.stored, num, key, replace=replace)
