"""What methods that carry another one share: its state is ``inner``, and what it says is theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cljax.checks import check_method
from cljax.method import Cost, Method, Problem
from cljax.types import Array, Batch, Evaluation, Info, Needs, Phase, Predictor, PyTree, Recall

__all__ = ["Wrapper", "lifted", "of_inner"]


class Wrapper(Method):
    """A method around another, whose state has a field ``inner``; see the module."""

    method: Method = dataclasses.field(kw_only=False)
    """The method, whose state has ``params`` and ``model_state``."""

    def check(self) -> None:
        check_method(self.method)

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def needs(self) -> Needs:
        return self.method.needs

    @property
    def instead_of_boundaries(self) -> str:
        return self.method.instead_of_boundaries

    @property
    def needs_classes(self) -> str:
        return self.method.needs_classes

    @property
    def fixed_loss(self) -> str:
        return self.method.fixed_loss

    @property
    def unweighted(self) -> str:
        return self.method.unweighted

    @property
    def unmeasured(self) -> Mapping[str, str]:  # type: ignore[override]
        """As the method's."""
        return self.method.unmeasured

    @property
    def rearranges(self) -> bool:
        return self.method.rearranges or type(self).arrange is not Wrapper.arrange

    def arrange(self, stream: Any) -> Any:
        """As the method's."""
        return self.method.arrange(stream)

    def fit(self, problem: Problem) -> None:
        self.method.fit(problem)

    def draw(self, problem: Problem, state: Any, batch: Batch, key: Array) -> PyTree:
        return self.method.draw(problem, state.inner, batch, key)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        predictors = self.method.predictors(problem)
        return {name: of_inner(predictor) for name, predictor in predictors.items()}

    def evaluations(self, problem: Problem) -> tuple[Evaluation, ...]:
        return self.method.evaluations(problem)

    def recall(self, problem: Problem) -> Recall | None:
        own = self.method.recall(problem)
        return None if own is None else lambda state, *rest: own(state.inner, *rest)

    def learned_rule(self, problem: Problem) -> Callable[[PyTree], PyTree] | None:
        own = self.method.learned_rule(problem)
        return None if own is None else lambda state: own(state.inner)

    def cost(self, problem: Problem) -> Cost:
        return self.method.cost(problem)


def lifted(phase: Phase) -> Phase:
    """A phase of the method's, for the state around its own."""

    def step(state: Any, batch: Batch, draws: PyTree) -> tuple[Any, Info]:
        inner, info = phase.update(state.inner, batch, draws)
        return state._replace(inner=inner), info

    draw = lambda state, batch, key: phase.draw(state.inner, batch, key)
    select, recall = phase.select, phase.recall
    if select is not None:
        select = lambda state, row, key: phase.select(state.inner, row, key)  # type: ignore[misc]
    if recall is not None:
        recall = lambda state, *rest: phase.recall(state.inner, *rest)  # type: ignore[misc]
    return phase._replace(draw=draw, update=step, select=select, recall=recall)


def of_inner(predictor: Predictor) -> Predictor:
    """A predictor of the method's, for the state around its own."""
    return predictor._replace(prepare=lambda state: predictor.prepare(state.inner))
