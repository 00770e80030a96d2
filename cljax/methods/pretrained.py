"""Pretraining: any method starts its second task from weights that plain training left.

    before task 0:   theta = theta - lr * momentum of grad CE(theta; batches of task 0)
    in task 0:       nothing else;  phases at its end (a penalty's, say) see the pretrained weights
    from task 1 on:  the method's own update

Symbols: theta ``params``, lr ``lr``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), section 4: every system starts from the same pretrained network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_positive, check_rate
from cljax.losses import classification_loss
from cljax.memory.exemplars import epochs_of
from cljax.methods.common import Descent, descend, mean_weights
from cljax.optimizers import Transformation, direction, make_optimizer
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Params,
    Phase,
    Predictor,
    Pretraining,
    PyTree,
    Spec,
    StepPlan,
)

__all__ = [
    "State", "epochs_for", "from_task_1", "plain_update", "pretrained", "scheduled", "source_steps",
]  # fmt: skip

Update: TypeAlias = Callable[[PyTree, Batch, PyTree], tuple[PyTree, Info]]


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


def pretrained(method: Method, how: Pretraining | None = None) -> Method:
    """A method that begins with its second task, from weights that plain training left.

    ``cljax.run`` does this by itself on streams that say so (``Stream.pretraining``). A method
    with a phase named pretrain learns the first task in its own way, and stays as it is.

    Args:
      method: whose state has ``params`` and ``model_state``.
      how: of the pretraining; None: 3000 steps of 128 examples with momentum, at rate 0.1.

    Raises:
      UserError: for counts below 1, a rate that is not finite, or shares outside (0, 1).
    """
    how = Pretraining() if how is None else how
    check_positive(pretrain_steps=how.steps, pretrain_batch_size=how.batch_size)
    check_rate(pretrain_lr=how.lr)
    if not all(0 < share < 1 for share in how.milestones):
        raise UserError(
            f"pretrain_milestones are {list(how.milestones)}, but they are shares of the steps, "
            "between 0 and 1."
        )
    towards = direction(how.optimizer, weight_decay=how.weight_decay)

    def bind(model: Model, spec: Spec) -> Learner:
        learner = method.bind(model, spec)
        if any(phase.name == "pretrain" for phase in learner.phases):
            return learner
        learn = source_steps(model, spec, how, towards)

        def init(key: Array) -> State:
            inner = learner.init(key)
            if not (hasattr(inner, "params") and hasattr(inner, "model_state")):
                raise UserError(
                    f"The state of {method.name} has no params and model_state to pretrain."
                )
            return State(inner, towards.init(inner.params))

        def draw(state: State, batch: Batch, key: Array) -> PyTree:
            return learner.draw(state.inner, batch, key)

        later = from_task_1(learner.update)

        def update(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
            inner, info = later(state.inner, batch, draws)
            return state._replace(inner=inner), info

        def pretrain(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
            inner = state.inner
            after, loss = learn(
                Descent(inner.params, inner.model_state, state.opt_state, ()), batch
            )
            inner = inner._replace(params=after.params, model_state=after.model_state)
            return State(inner, after.opt_state), Info(loss)

        def lifted(phase: Phase) -> Phase:
            def step(state: State, batch: Batch, draws: PyTree) -> tuple[State, Info]:
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
            return predictor._replace(prepare=lambda state: predictor.prepare(state.inner))

        recall, rule = learner.recall, learner.rule
        if recall is not None:
            recall = lambda state, *rest: learner.recall(state.inner, *rest)  # type: ignore[misc]
        if rule is not None:
            rule = lambda state: learner.rule(state.inner)  # type: ignore[misc]
        first = Phase(
            "pretrain", epochs_for(how), lambda state, batch, key: (), pretrain, before=True,
            augment=True,
        )  # fmt: skip
        return learner._replace(
            init=init, draw=draw, update=update, recall=recall, rule=rule,
            predictors={name: of_inner(p) for name, p in learner.predictors.items()},
            phases=(first, *map(lifted, learner.phases)),
        )  # fmt: skip

    if method.make is None:
        return method._replace(bind=bind)
    again = method.make

    def make(**options: Any) -> Method:
        return pretrained(again(**options), how)

    make.__signature__ = inspect.signature(again)  # type: ignore[attr-defined]
    return method._replace(bind=bind, make=make)


def from_task_1(update: Update) -> Update:
    """The update, but nothing while task 0 is learned, which pretraining has done."""

    def later(state: PyTree, batch: Batch, draws: PyTree) -> tuple[PyTree, Info]:
        def own(state: PyTree) -> tuple[PyTree, Array]:
            state, info = update(state, batch, draws)
            return state, info.loss

        dtype = jax.eval_shape(own, state)[1].dtype
        nothing = lambda state: (state, jnp.zeros((), dtype))
        state, loss = jax.lax.cond(batch.clock.task > 0, own, nothing, state)
        return state, Info(loss)

    return later


def plain_update(model: Model, spec: Spec, lr: Array | float) -> Update:
    """Gradient steps on the stream, for states with ``params`` and ``model_state``.

    There are none in task 0 where the stream says how pretraining learns it.
    """
    loss_fn, step = classification_loss(model, spec), make_optimizer("sgd", lr)

    def update(state: PyTree, batch: Batch, draws: PyTree) -> tuple[PyTree, Info]:
        after, loss = descend(
            Descent(state.params, state.model_state, (), ()),
            Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask), batch,
            loss_fn=loss_fn, optimizer=step,
        )  # fmt: skip
        return state._replace(params=after.params, model_state=after.model_state), Info(loss)

    return update if spec.pretraining is None else from_task_1(update)


def source_steps(model: Model, spec: Spec, how: Pretraining, towards: Transformation) -> Any:
    """``(Descent, batch) -> (Descent, loss)``: one step of pretraining; no penalty in it."""
    loss_fn = classification_loss(model, spec)

    def step(at: Descent, batch: Batch) -> tuple[Descent, Array]:
        return descend(
            at, Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask), batch,
            loss_fn=loss_fn, optimizer=scheduled(how, towards, batch.clock.step),
        )  # fmt: skip

    return step


def scheduled(how: Pretraining, towards: Transformation, step: Array) -> Transformation:
    """The optimiser of a ``step`` [] int32 of pretraining: a direction, at the rate of then."""
    marks = np.array([round(share * how.steps) for share in how.milestones], np.int32)
    reached = jnp.sum(step >= jnp.asarray(marks))
    rate = how.lr * jnp.asarray(0.1, jnp.result_type(float)) ** reached

    def update(grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        found, state = towards.update(grads, state, params)
        return jax.tree.map(lambda d: -rate.astype(d.dtype) * d, found), state

    return Transformation(towards.init, update)


def epochs_for(how: Pretraining, more: np.ndarray | None = None) -> Any:
    """The plan of a phase: so many steps over the first task's examples, epoch after epoch.

    Args:
      more: [n] other rows, which are shuffled among them.
    """

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task:
            return None
        own, first = np.unique(rows.index[rows.mask], return_index=True)
        own = own[np.argsort(first)]  # in the order of arrival, which the seed chooses
        if more is not None:
            own = np.concatenate([own, more.astype(own.dtype)])
        epochs = -(-how.steps * how.batch_size // len(own))
        owner = np.zeros(len(own), np.int32)
        found = epochs_of(own, owner, how.batch_size, 0, epochs, "pretrain")
        return StepPlan(*(column[: how.steps] for column in found))

    return plan
