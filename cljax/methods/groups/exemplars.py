"""How methods hold exemplars: a budget, a policy that chooses, a stream that replays them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cljax.errors import UserError
from cljax.memory import exemplars as memory
from cljax.memory.exemplars import Budget
from cljax.memory.policies import Policy, called, named
from cljax.memory.policy import ExemplarPolicy
from cljax.method import Problem
from cljax.options import Count, Options
from cljax.streams.base import Stream
from cljax.types import Array, Phase, PyTree, Recall, Spec

__all__ = ["ExemplarOptions", "check_budget", "recall"]


class ExemplarOptions(Options):
    """Of methods whose state has ``exemplars``: a total, so many a class, or a total of bytes.

    An exemplar's bytes are those of an example as the stream stores it, also where a policy keeps
    floats of grey levels, which take four times as many (``rounding=none``).
    """

    capacity: Count | None = 2000
    """Exemplars of all classes together; None with per_class or capacity_bytes."""
    per_class: Count | None = None
    """Exemplars of each class, instead of a total."""
    capacity_bytes: Count | None = None
    """All exemplars together in bytes, as the stream stores examples, instead."""
    exemplars: Policy = "random"
    """Random, first or herding, or an ``ExemplarPolicy``."""
    first_epochs: Count | None = None
    """Epochs of the first task; None is as many as of the others."""

    def check(self) -> None:
        super().check()
        named(self.exemplars)
        check_budget(
            capacity=self.capacity, per_class=self.per_class, capacity_bytes=self.capacity_bytes
        )

    @property
    def recorded(self) -> Mapping[str, Any]:
        """As of any options; a policy of the library is its name, also where it is an object."""
        return {**super().recorded, "exemplars": called(self.exemplars)}

    @property
    def needs_classes(self) -> str:
        """A budget is shared by classes, and exemplars are chosen class by class."""
        return "holds exemplars of each class"

    @property
    def policy(self) -> ExemplarPolicy:
        """What chooses or learns them."""
        return named(self.exemplars)

    def budget(self, spec: Spec) -> Budget:
        """The slots' owners."""
        return memory.budget_of(
            spec.class_mask, total=self.capacity, per_class=self.per_class,
            total_bytes=self.capacity_bytes, example=memory.stored(spec),
        )  # fmt: skip

    def exemplar_budget(self, spec: Spec) -> Budget:
        """What is left for exemplars where a method stores more within the budget."""
        return self.budget(spec)

    def no_exemplars(self, problem: Problem) -> PyTree:
        """The state's field ``exemplars`` before the first task."""
        return self.policy.init(problem.model, problem.spec, self.exemplar_budget(problem.spec))

    def choices(self, problem: Problem) -> tuple[Phase, ...]:
        """The phases that choose exemplars once a task has ended."""
        return self.policy.phases(problem.model, problem.spec, self.exemplar_budget(problem.spec))

    def recall(self, problem: Problem) -> Recall | None:
        """Puts exemplars in the places of the plan's rows below -1."""
        return recall

    def arrange(self, stream: Stream) -> Stream:
        """The stream whose plan replays exemplars."""
        # The budget does not depend on the batches.
        budget = self.budget(stream.spec(1))
        return memory.replayed(stream, budget, first_epochs=self.first_epochs)


def check_budget(**counts: int | None) -> None:
    """Raises UserError unless one of these is a number."""
    if sum(count is not None for count in counts.values()) != 1:
        (first, count), *rest = counts.items()
        *listed, last = (f"{name} {count}" for name, count in rest)
        raise UserError(
            f"{', '.join([f'{first} is {count}', *listed])} and {last}, but a budget of exemplars "
            "is one of them; set the others to None."
        )


def recall(state: PyTree, x: PyTree, y: Array, index: Array) -> tuple[PyTree, Array]:
    """A learner's ``recall``, for states with ``exemplars``."""
    return memory.recall(state.exemplars, x, y, index)
