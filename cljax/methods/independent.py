"""Independent: a network for each task, which no other task touches.

    update(batch of task t):
      at the first one, theta_t = theta_{t-1}               # transfer
      theta_t = theta_t - lr * grad CE(theta_t; batch)
    prediction for task t:  network t                       # the task is known

For a fair count of parameters give it networks of about 1/T of the width.

Symbols: theta_t ``params[t]``, T tasks.

Source: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017
(arXiv:1706.08840), section 5.2, the baseline "independent", initialised from the last task's
network; Riemer et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import check_flag, check_rate
from cljax.losses import classification_loss
from cljax.methods.common import Descent, descend, initial, mean_weights
from cljax.optimizers import Optimizer, make_optimizer
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Output,
    Params,
    Predictor,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["Draws", "State", "draw", "independent"]


class State(NamedTuple):
    """``params`` and ``model_state`` have a leading axis of tasks; ``opt_state`` is of ``task``."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    task: Array  # [] int32, the task of the last update


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


def independent(
    *,
    lr: Array | float = 0.01,
    optimizer: Optimizer = "sgd",
    transfer: bool = True,
) -> Method:
    """A network for each task; needs the task of every test example.

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.
      transfer: a new task's network starts from the last task's, not from the first weights.

    Raises:
      UserError: for a rate that is not finite or an unknown optimiser.
    """
    options = dict(locals())
    check_rate(lr=lr)
    check_flag(transfer=transfer)
    step = make_optimizer(optimizer, lr)

    def bind(model: Model, spec: Spec) -> Learner:
        loss_fn = classification_loss(model, spec)

        def init(key: Array) -> State:
            variables = initial(model, spec, key)
            every = jax.tree.map(lambda a: jnp.stack([a] * spec.num_tasks), variables)
            opt_state, task = step.init(variables.params), jnp.zeros((), jnp.int32)
            return State(every.params, every.model_state, opt_state, task)

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            # The first valid example begins a task: padding is no step, also to a new network.
            task = jnp.where(jnp.any(batch.mask), batch.clock.task, state.task)
            new = task != state.task
            every = Variables(state.params, state.model_state)
            own = _at(every, jnp.where(new & transfer, state.task, task))
            opt_state = tree.select(new, step.init(own.params), state.opt_state)
            after, loss = descend(
                Descent(own.params, own.model_state, opt_state, ()),
                Examples(batch.x, batch.y, batch.task),
                mean_weights(batch.mask),
                batch,
                loss_fn=loss_fn,
                optimizer=step,
            )
            every = jax.tree.map(
                lambda all_tasks, one: all_tasks.at[task].set(one),
                every,
                Variables(after.params, after.model_state),
            )
            return State(every.params, every.model_state, after.opt_state, task), Info(loss)

        return Learner(
            init,
            draw,
            update,
            {
                "logits": _predictor(model, lambda output: output.logits),
                "features": _predictor(model, lambda output: output.features),
            },
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    needs = Needs(boundaries=True, task_ids_train=True, task_ids_test=True)
    return Method("independent", bind, needs, options, make=independent)


def _predictor(model: Model, part: Callable[[Output], Array]) -> Predictor:
    """A part of the output of the network of the examples' task, which a batch's share."""

    def prepare(state: State) -> Variables:
        return Variables(state.params, state.model_state)

    def scores(every: Variables, batch: Batch) -> Array:
        return part(model.apply(_at(every, batch.task[0]), batch.x, False)[0])

    return Predictor(prepare, scores, needs_task_ids=True)


def _at(every: Variables, task: Array) -> Variables:
    return jax.tree.map(lambda a: a[task], every)
