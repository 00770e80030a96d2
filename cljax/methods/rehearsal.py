"""How methods hold exemplars: a budget, a policy that chooses, a stream that replays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cljax.errors import UserError, check_positive
from cljax.memory import exemplars as memory
from cljax.memory.exemplars import Budget
from cljax.memory.policies import Policy, named
from cljax.streams.base import Stream
from cljax.types import Array, ExemplarPolicy, PyTree

__all__ = ["Rehearsal", "recall", "rehearsal"]


class Rehearsal(NamedTuple):
    """``budget(class_mask)`` is the slots' owners, ``arrange(stream)`` replays the exemplars."""

    policy: ExemplarPolicy
    budget: Callable[[np.ndarray], Budget]
    arrange: Callable[[Stream], Stream]


def rehearsal(
    exemplars: Policy, capacity: int | None, per_class: int | None, first_epochs: int | None
) -> Rehearsal:
    """Exemplars of a total ``capacity`` or so many ``per_class``; one of them is None.

    Raises:
      UserError: unless one is given, for a count below 1, or an unknown policy.
    """
    if (capacity is None) == (per_class is None):
        raise UserError(
            f"capacity is {capacity} and per_class {per_class}, but a budget of exemplars is one "
            "of them; set the other to None."
        )
    given = {"capacity": capacity, "per_class": per_class, "first_epochs": first_epochs}
    check_positive(**{name: count for name, count in given.items() if count is not None})

    def budget(class_mask: np.ndarray) -> Budget:
        return memory.budget_of(class_mask, total=capacity, per_class=per_class)

    def arrange(stream: Stream) -> Stream:
        return memory.replayed(stream, budget(stream.class_mask), first_epochs=first_epochs)

    return Rehearsal(named(exemplars), budget, arrange)


def recall(state: PyTree, x: PyTree, y: Array, index: Array) -> tuple[PyTree, Array]:
    """A learner's ``recall``, for states with ``exemplars``."""
    return memory.recall(state.exemplars, x, y, index)
