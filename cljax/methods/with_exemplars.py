"""Exemplars for any method: its state and theirs side by side, and a stream that replays them.

    after each task the policy chooses or learns M(s), from the method's network
    the method's batches are of D(s) and M(s - 1), shuffled together; its update is its own

Symbols: D(s) the examples of task s, M ``exemplars``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from cljax.errors import UserError
from cljax.memory.policies import Policy, called, named
from cljax.method import Method, Problem, features_predictor
from cljax.methods.groups.exemplars import ExemplarOptions, check_budget, recall
from cljax.methods.wrapper import Wrapper, lifted, of_inner
from cljax.options import Count, positional
from cljax.states import WithNetwork
from cljax.streams.base import Stream
from cljax.types import (
    Array,
    Batch,
    Info,
    Params,
    Phase,
    Predictor,
    PyTree,
    Recall,
)

__all__ = ["State", "WithExemplars"]


class State(NamedTuple):
    """``inner`` is the method's, with ``params`` and ``model_state``."""

    inner: PyTree
    exemplars: PyTree


class View(NamedTuple):
    """What a policy may look at."""

    params: Params
    model_state: PyTree
    exemplars: PyTree


class WithExemplars(Wrapper):
    """A method whose batches hold exemplars of earlier classes beside the task's data.

    One of the three numbers is given. They are called otherwise than in methods with exemplars of
    their own, since the method inside may have a ``capacity``, too.

    Raises:
      UserError: unless one is given, for an unknown policy, or a method that does not fit.

    Example:
      ``WithExemplars(cljax.ER(), "mnemonics:inner_steps=5,old=false", exemplars_per_class=5)``
    """

    method: Method = dataclasses.field(kw_only=False)
    """Whose state has ``params`` and ``model_state``, such as ``ER``, and which has no exemplars or
    plan of its own."""
    exemplars: Policy = positional(default="mnemonics")
    """A policy's name, with options after a colon, or an ``ExemplarPolicy``."""
    exemplar_capacity: Count | None = None
    """Exemplars of all classes together."""
    exemplars_per_class: Count | None = None
    """Exemplars of each class, instead of a total."""
    exemplar_capacity_bytes: Count | None = None
    """All exemplars together in bytes, as the stream stores examples, instead."""

    def check(self) -> None:
        super().check()
        check_budget(
            exemplar_capacity=self.exemplar_capacity,
            exemplars_per_class=self.exemplars_per_class,
            exemplar_capacity_bytes=self.exemplar_capacity_bytes,
        )
        named(self.exemplars)
        if self.method.rearranges:
            raise UserError(
                f"{self.method.name} has a plan of its own, so exemplars cannot join its batches; "
                "many such methods have an option exemplars."
            )

    @property
    def name(self) -> str:
        return f"{self.method.name}+exemplars"

    @property
    def recorded(self) -> Mapping[str, Any]:
        """As of any options; a policy of the library is its name, also where it is an object."""
        return {**super().recorded, "exemplars": called(self.exemplars)}

    @property
    def needs_classes(self) -> str:
        return self._held.needs_classes

    @property
    def _held(self) -> ExemplarOptions:
        return ExemplarOptions(
            exemplars=self.exemplars,
            capacity=self.exemplar_capacity,
            per_class=self.exemplars_per_class,
            capacity_bytes=self.exemplar_capacity_bytes,
        )

    def init(self, problem: Problem, key: Array) -> State:
        inner = self.method.init(problem, key)
        if not isinstance(inner, WithNetwork):
            raise UserError(
                f"The state of {self.method.name} has no params and model_state, which exemplars "
                "are chosen by."
            )
        return State(inner, self._held.no_exemplars(problem))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: PyTree
    ) -> tuple[State, Info]:
        inner, info = self.method.update(problem, state.inner, batch, draws)
        return state._replace(inner=inner), info

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """The method's own, then those that choose exemplars."""

        def of_policy(phase: Phase) -> Phase:
            def step(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
                inner = state.inner
                view = View(inner.params, inner.model_state, state.exemplars)
                view, info = phase.update(view, batch, draws)
                return state._replace(exemplars=view.exemplars), info

            return phase._replace(update=step)

        own, chosen = self.method.phases(problem), self._held.choices(problem)
        return (*map(lifted, own), *map(of_policy, chosen))

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        features = of_inner(features_predictor(problem.model))
        return {"features": features, **super().predictors(problem)}

    def recall(self, problem: Problem) -> Recall | None:
        return recall

    def arrange(self, stream: Stream) -> Stream:
        return self._held.arrange(stream)
