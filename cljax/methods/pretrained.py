"""Pretraining: any method starts its second task from weights that plain training left.

    before task 0:   theta = theta - lr * momentum of grad CE(theta; batches of task 0)
    in task 0:       nothing else;  phases at its end (a penalty's, say) see the pretrained weights
    from task 1 on:  the method's own update

Symbols: theta ``params``, lr ``lr``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), section 4: every system starts from the same pretrained network.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from cljax.errors import UserError, check_positive, check_rate
from cljax.method import Problem, holds_network
from cljax.methods.groups.descent import Descent
from cljax.methods.groups.pretraining import epochs_for, from_task_1, optimizer_of, source_step
from cljax.methods.wrapper import Wrapper, lifted
from cljax.options import positional
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Model,
    Params,
    Phase,
    Pretraining,
    PyTree,
    Spec,
)

__all__ = ["Pretrained", "State"]


class State(NamedTuple):
    """``inner`` is the method's, ``opt_state`` that of pretraining."""

    inner: PyTree
    opt_state: PyTree

    @property
    def params(self) -> Params:
        """The network's weights, for what looks into a state."""
        return self.inner.params

    @property
    def model_state(self) -> PyTree:
        """The network's running statistics, likewise."""
        return self.inner.model_state


class Pretrained(Wrapper):
    """A method that begins with its second task, from weights that plain training left.

    ``cljax.run`` does this by itself on streams that say so (``Stream.pretraining``). A method
    with a phase named pretrain learns the first task in its own way, and stays as it is. The name
    is the method's.
    """

    how: Pretraining = positional(default=Pretraining())
    """Of the pretraining: 3000 steps of 128 examples with momentum, at rate 0.1."""

    def check(self) -> None:
        super().check()
        how = self.how
        check_positive(pretrain_steps=how.steps, pretrain_batch_size=how.batch_size)
        check_rate(pretrain_lr=how.lr)
        if not all(0 < share < 1 for share in how.milestones):
            raise UserError(
                f"pretrain_milestones are {list(how.milestones)}, but they are shares of the "
                "steps, between 0 and 1."
            )
        optimizer_of(how)

    def bind(self, model: Model, spec: Spec) -> Learner:
        learner = self.method.bind(model, spec)
        if any(phase.name == "pretrain" for phase in learner.phases):
            return learner
        return super().bind(model, spec)

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        if not holds_network(functools.partial(self.method.init, problem), problem):
            raise UserError(
                f"{self.name} cannot start from pretrained weights, because its state has no "
                "params and model_state of one network; choose another method, or a stream "
                "without pretraining."
            )

    def init(self, problem: Problem, key: Array) -> State:
        inner = self.method.init(problem, key)
        return State(inner, optimizer_of(self.how).init(inner.params))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: PyTree
    ) -> tuple[State, Info]:
        later = from_task_1(functools.partial(self.method.update, problem))
        inner, info = later(state.inner, batch, draws)
        return state._replace(inner=inner), info

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        first = Phase(
            "pretrain", epochs_for(self.how), lambda state, batch, key: (),
            functools.partial(self._pretrain, problem), before=True, augment=True,
        )  # fmt: skip
        return (first, *map(lifted, self.method.phases(problem)))

    def _pretrain(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        inner = state.inner
        at = Descent(inner.params, inner.model_state, state.opt_state, ())
        after, loss = source_step(problem, self.how, at, batch)
        inner = inner._replace(params=after.params, model_state=after.model_state)
        return State(inner, after.opt_state), Info(loss)
