"""Replay from a memory: the options, what they do with it, and a joined batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cljax.checks import check_replay
from cljax.memory import reservoir
from cljax.memory.memories import Remembered, called, named
from cljax.memory.protocol import Memory
from cljax.method import Problem
from cljax.options import Count, Options, added_later
from cljax.types import Array, Batch, Examples, Needs, PyTree

__all__ = ["OfferOptions", "ReplayOptions", "beside"]


class ReplayOptions(Options):
    """Of methods whose state has a field ``memory``, of which they replay."""

    memory: Remembered = added_later(default="reservoir")
    """What is stored: reservoir, ring, balanced or greedy, with options after a colon, as in
    ring:per=class; or package.module:Memory, in Python a ``cljax.memory.Memory``."""
    capacity: Count = 200
    """Replay memory, in examples."""
    replay_size: Count = 10
    """Replayed examples beside each batch."""
    reservoir_rule: reservoir.Rule = "textbook"
    """Textbook, or inclusive as in the reference code (an off-by-one)."""
    with_replacement: bool = False
    """Draw each replayed example independently."""

    def check(self) -> None:
        super().check()
        named(self.memory)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """As of any options; a memory of the library is its name, also where it is an object."""
        name = called(self.memory)
        by_name = self if name is self.memory else self.replace(memory=name)
        return super(ReplayOptions, by_name).recorded

    @property
    def store(self) -> Memory:
        """The memory's functions; a reservoir that does not say its rule has the method's."""
        memory = named(self.memory)
        if isinstance(memory, reservoir.Reservoir) and memory.rule is None:
            return memory.replace(rule=self.reservoir_rule)
        return memory

    @property
    def needs(self) -> Needs:
        """What the memory must be told, beside what the method must."""
        asked = {name: value for name, value in self.store.needs._asdict().items() if value}
        return super().needs._replace(**asked)  # type: ignore[misc]

    @property
    def instead_of_boundaries(self) -> str:
        """As of any method, or a memory that needs none where that alone does."""
        own: Needs = super().needs  # type: ignore[misc]
        words: str = super().instead_of_boundaries  # type: ignore[misc]
        alone = not (own.boundaries or own.task_ids_train or own.task_ids_test)
        return f"{words}, or a memory that needs none, such as ring:per=class" if alone else words

    def fit(self, problem: Problem) -> None:
        """Raises UserError for a memory that is none for this stream."""
        super().fit(problem)  # type: ignore[misc]
        check_replay(self.store, problem.spec, self.capacity, self.replay_size)

    def empty(self, problem: Problem) -> Any:
        """The memory before the first example."""
        return self.store.init(problem.spec, self.capacity)

    def offered(self, batch: Batch) -> Array:
        """[B] bool, which examples are offered to the memory: those not seen before."""
        return batch.mask & batch.clock.first_pass

    def examples(self, batch: Batch) -> Examples:
        """What is offered of a batch, leaves [B, ...]."""
        return Examples(batch.x, batch.y, batch.task)

    def sample(self, memory: Any, key: Array) -> tuple[Examples, Array]:
        """Replayed examples, leaves [R, ...], and which of them are valid, [R] bool."""
        return self.store.sample(memory, self.replay_size, key, replace=self.with_replacement)

    def slots(self, memory: Any, batch: Batch, key: Array) -> PyTree:
        """What the memory draws for each example of a batch: a reservoir, [B] int32, its slot."""
        return self.store.draw(memory, self.examples(batch), self.offered(batch), key)

    def stored(self, memory: Any, batch: Batch, slots: PyTree) -> Any:
        """The memory once a batch was offered to it."""
        return self.store.offer(memory, self.examples(batch), self.offered(batch), slots)


class OfferOptions(ReplayOptions):
    """Of those that may also store what comes again."""

    offer: Literal["first-pass", "every-epoch"] = "first-pass"
    """Offer examples to the memory when first seen, or again in every epoch."""

    def offered(self, batch: Batch) -> Array:
        return batch.mask & (batch.clock.first_pass | (self.offer == "every-epoch"))


def beside(replayed: Any, current: Any) -> Any:
    """Leaves ``[R, ...]`` and ``[B, ...]`` as ``[R + B, ...]``, with the types of the latter."""
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old.astype(new.dtype), new]), replayed, current
    )
