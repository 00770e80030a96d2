"""Exemplars for any method: its state and theirs side by side, and a stream that replays them.

    after each task the policy chooses or learns M(s), from the method's network
    the method's batches are of D(s) and M(s - 1), shuffled together; its update is its own

Symbols: D(s) the examples of task s, M ``exemplars``.
"""

from __future__ import annotations

from typing import NamedTuple

from cljax.checks import check_method
from cljax.errors import UserError
from cljax.memory.policies import Policy
from cljax.methods.common import with_features
from cljax.methods.rehearsal import recall, rehearsal
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Params,
    Phase,
    Predictor,
    PyTree,
    Spec,
)

__all__ = ["State", "with_exemplars"]


class State(NamedTuple):
    """``inner`` is the method's, with ``params`` and ``model_state``."""

    inner: PyTree
    exemplars: PyTree


class View(NamedTuple):
    """What a policy may look at."""

    params: Params
    model_state: PyTree
    exemplars: PyTree


def with_exemplars(
    method: Method,
    exemplars: Policy = "mnemonics",
    *,
    capacity: int | None = None,
    per_class: int | None = None,
    capacity_bytes: int | None = None,
) -> Method:
    """A method whose batches hold exemplars of earlier classes beside the task's data.

    Args:
      method: whose state has ``params`` and ``model_state``, such as ``er``, and which has no
        exemplars or plan of its own.
      exemplars: a policy's name, with options after a colon, or an ``ExemplarPolicy``.
      capacity: exemplars of all classes together. per_class: of each class. capacity_bytes: all
        together in bytes, as the stream stores examples. Give one of them.

    Raises:
      UserError: unless one is given, for an unknown policy, or a method that does not fit.

    Example:
      ``with_exemplars(cljax.er(), "mnemonics:inner_steps=5,old=false", per_class=5)``
    """
    check_method(method)
    held = rehearsal(exemplars, capacity, per_class, capacity_bytes, None)
    if method.arrange is not None:
        raise UserError(
            f"{method.name} has a plan of its own, so exemplars cannot join its batches; many "
            "such methods have an option exemplars."
        )

    def bind(model: Model, spec: Spec) -> Learner:
        learner = with_features(method.bind(model, spec), model)
        budget = held.budget(spec)

        def init(key: Array) -> State:
            inner = learner.init(key)
            if not (hasattr(inner, "params") and hasattr(inner, "model_state")):
                raise UserError(
                    f"The state of {method.name} has no params and model_state, which exemplars "
                    "are chosen by."
                )
            return State(inner, held.policy.init(model, spec, budget))

        def draw(state: State, batch: Batch, key: Array) -> PyTree:
            return learner.draw(state.inner, batch, key)

        def update(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
            inner, info = learner.update(state.inner, batch, draws)
            return state._replace(inner=inner), info

        def of_method(phase: Phase) -> Phase:
            def step(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
                inner, info = phase.update(state.inner, batch, draws)
                return state._replace(inner=inner), info

            return phase._replace(
                draw=lambda state, batch, key: phase.draw(state.inner, batch, key), update=step
            )

        def of_policy(phase: Phase) -> Phase:
            def step(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
                inner = state.inner
                view = View(inner.params, inner.model_state, state.exemplars)
                view, info = phase.update(view, batch, draws)
                return state._replace(exemplars=view.exemplars), info

            return phase._replace(update=step)

        def lifted(predictor: Predictor) -> Predictor:
            return predictor._replace(prepare=lambda state: predictor.prepare(state.inner))

        return learner._replace(
            init=init,
            draw=draw,
            update=update,
            predictors={name: lifted(p) for name, p in learner.predictors.items()},
            phases=(
                *map(of_method, learner.phases),
                *map(of_policy, held.policy.phases(model, spec, budget)),
            ),
            recall=recall,
        )

    options = {
        **method.options, "exemplars": exemplars, "exemplar_capacity": capacity,
        "exemplars_per_class": per_class, "exemplar_capacity_bytes": capacity_bytes,
    }  # fmt: skip
    name = f"{method.name}+exemplars"
    return method._replace(name=name, bind=bind, options=options, arrange=held.arrange, make=None)
