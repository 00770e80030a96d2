"""How methods hold exemplars: a budget, a policy that chooses, a stream that replays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cljax.errors import UserError, check_positive, given
from cljax.memory import exemplars as memory
from cljax.memory.exemplars import Budget
from cljax.memory.policies import Policy, named
from cljax.streams.base import Stream
from cljax.types import Array, ExemplarPolicy, PyTree, Spec

__all__ = ["Rehearsal", "recall", "rehearsal"]


class Rehearsal(NamedTuple):
    """``budget(spec)`` is the slots' owners, ``arrange(stream)`` replays the exemplars."""

    policy: ExemplarPolicy
    budget: Callable[[Spec], Budget]
    arrange: Callable[[Stream], Stream]


def rehearsal(
    exemplars: Policy,
    capacity: int | None,
    per_class: int | None,
    capacity_bytes: int | None,
    first_epochs: int | None,
) -> Rehearsal:
    """Exemplars of a total ``capacity``, so many ``per_class``, or a total ``capacity_bytes``.

    Two of them are None. An exemplar's bytes are those of an example as the stream stores it, also
    where a policy keeps floats of grey levels, which take four times as many (``rounding=none``).

    Raises:
      UserError: unless one is given, for a count below 1, or an unknown policy.
    """
    check_positive(
        **given(
            capacity=capacity, per_class=per_class, capacity_bytes=capacity_bytes,
            first_epochs=first_epochs,
        )
    )  # fmt: skip
    counts = {"capacity": capacity, "per_class": per_class, "capacity_bytes": capacity_bytes}
    if sum(count is not None for count in counts.values()) != 1:
        raise UserError(
            f"capacity is {capacity}, per_class {per_class} and capacity_bytes {capacity_bytes}, "
            "but a budget of exemplars is one of them; set the others to None."
        )

    def budget(spec: Spec) -> Budget:
        return memory.budget_of(
            spec.class_mask, total=capacity, per_class=per_class, total_bytes=capacity_bytes,
            example=memory.stored(spec),
        )  # fmt: skip

    def arrange(stream: Stream) -> Stream:
        # The budget does not depend on the batches.
        return memory.replayed(stream, budget(stream.spec(1)), first_epochs=first_epochs)

    return Rehearsal(named(exemplars), budget, arrange)


def recall(state: PyTree, x: PyTree, y: Array, index: Array) -> tuple[PyTree, Array]:
    """A learner's ``recall``, for states with ``exemplars``."""
    return memory.recall(state.exemplars, x, y, index)
