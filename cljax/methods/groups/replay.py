"""Replay from a reservoir: the options, what they do with the memory, and a joined batch."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from cljax.memory import reservoir
from cljax.method import Problem
from cljax.options import Count, Options
from cljax.types import Array, Batch, Examples

__all__ = ["OfferOptions", "ReplayOptions", "beside"]


class ReplayOptions(Options):
    """Of methods whose state has a reservoir, ``memory``."""

    capacity: Count = 200
    """Replay memory, in examples."""
    replay_size: Count = 10
    """Replayed examples beside each batch."""
    reservoir_rule: reservoir.Rule = "textbook"
    """Textbook, or inclusive as in the reference code (an off-by-one)."""
    with_replacement: bool = False
    """Draw each replayed example independently."""

    def empty(self, problem: Problem) -> reservoir.Reservoir:
        """The memory before the first example."""
        return reservoir.init(reservoir.of_stream(problem.spec), self.capacity)

    def offered(self, batch: Batch) -> Array:
        """[B] bool, which examples are offered to the memory: those not seen before."""
        return batch.mask & batch.clock.first_pass

    def sample(self, memory: reservoir.Reservoir, key: Array) -> tuple[Examples, Array]:
        """Replayed examples, leaves [R, ...], and which of them are valid, [R] bool."""
        return reservoir.sample(memory, self.replay_size, key, replace=self.with_replacement)

    def slots(self, memory: reservoir.Reservoir, batch: Batch, key: Array) -> Array:
        """[B] int32, the slot of each example of a batch, M for one that is not stored."""
        return reservoir.draw_slots(memory, self.offered(batch), key, self.reservoir_rule)

    def stored(
        self, memory: reservoir.Reservoir, batch: Batch, slots: Array
    ) -> reservoir.Reservoir:
        """The memory once a batch was offered to it."""
        examples = Examples(batch.x, batch.y, batch.task)
        return reservoir.write(memory, examples, slots, self.offered(batch))


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
