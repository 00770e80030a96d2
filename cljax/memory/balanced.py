"""Class-balanced reservoir: rare classes keep all they have, frequent ones a uniform sample.

    offer(x, y):   n[y] += 1
                   memory not filled:  store
                   every class with the most examples in memory becomes full, for good
                   y not full:         replace a random example of the classes with the most
                   y full:             with probability m[y] / n[y] replace a random one of class y

Symbols: n ``seen``, m the examples of a class in memory.

Source: Chrysakis, Moens, "Online Continual Learning from Imbalanced Data", ICML 2020, algorithm 1
(CBRS). Read here: a class becomes full only once the memory is filled, since until then every class
may grow; and among several classes with the most examples each of their examples is as likely.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from cljax.memory import reservoir
from cljax.memory.protocol import Memory, example_of, place_in
from cljax.states import Contents
from cljax.types import Array, Examples, Spec

__all__ = ["Balanced", "State"]


class State(NamedTuple):
    """The stored examples, and of each class how many were offered and whether it is full."""

    stored: reservoir.State
    seen: Array  # [C] int32
    full: Array  # [C] bool

    @property
    def contents(self) -> Contents | None:
        """The examples in it."""
        return self.stored.contents


class Balanced(Memory):
    """A class-balanced reservoir (CBRS, Chrysakis and Moens 2020)."""

    @property
    def needs_classes(self) -> str:
        return "balances the examples of the classes"

    def init(self, spec: Spec, capacity: int) -> State:
        classes = spec.num_classes
        empty = reservoir.init(example_of(spec), capacity)
        return State(empty, jnp.zeros(classes, jnp.int32), jnp.zeros(classes, bool))

    def draw(self, memory: State, examples: Examples, mask: Bool[Array, " B"], key: Array) -> Array:
        """[B, 2] in [0, 1): whether an example of a full class enters, and in whose place."""
        return jax.random.uniform(key, (*mask.shape, 2))

    def offer(
        self, memory: State, examples: Examples, mask: Bool[Array, " B"], drawn: Array
    ) -> State:
        size = reservoir.capacity(memory.stored)

        def one(carry: Any, entry: Any) -> tuple[Any, Array]:
            labels, filled, seen, full = carry
            label, valid, (enter, place) = entry
            seen = seen.at[label].add(valid.astype(jnp.int32))
            stored = (jnp.arange(size) < filled).astype(jnp.int32)
            counts = jnp.zeros_like(seen).at[labels].add(stored)
            most, room = counts == jnp.max(counts), filled < size
            full = full | (most & valid & ~room)
            leaving = jnp.where(full[label], labels == label, most[labels])  # [M]
            taken = place_in(leaving, place)
            enters = room | ~full[label] | (enter * seen[label] < counts[label])
            slot = jnp.where(room, filled, taken)
            slot = jnp.where(valid & enters, slot, size)
            labels = labels.at[slot].set(label, mode="drop")
            return (labels, filled + (valid & room), seen, full), slot

        first = (memory.stored.data.y, reservoir.fill(memory.stored), memory.seen, memory.full)
        (*_, seen, full), slots = jax.lax.scan(one, first, (examples.y, mask, drawn))
        return State(reservoir.write(memory.stored, examples, slots, mask), seen, full)

    def sample(
        self, memory: State, num: int, key: Array, *, replace: bool = False
    ) -> tuple[Examples, Bool[Array, " R"]]:
        return reservoir.sample(memory.stored, num, key, replace=replace)
