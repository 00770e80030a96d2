"""Fixed representation: the first task teaches the features, later ones only their own outputs.

    update(batch of task 0):   theta, phi_0 = one step on CE(theta, phi; batch)
    update(batch of task s):   phi_s        = one step on CE(theta, phi; batch)

The cross-entropy is over all outputs seen: of a softmax, so that new rows learn against the old,
frozen ones, or, mean over outputs, of sigmoids, where each row learns for itself. There is no
memory. From task 1 on BatchNorm's statistics are frozen as well, and normalise.

Symbols: phi_s the head's rows of task s, theta all other parameters.

Source: the baseline "fixed representation" of Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR
2017 (arXiv:1611.07725), section 4.1, with a linear head on all classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known
from cljax.losses import masked_mean
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import (
    Descent,
    Loss,
    blanked,
    check_single_head,
    classification,
    descend,
    descent,
    seen_outputs,
    training,
)
from cljax.methods.sessions import fresh_optimizer
from cljax.optimizers import Optimizer
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Output,
    Params,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["Draws", "State", "draw", "fixed_rep", "update"]


class State(NamedTuple):
    """Parameters, statistics and the optimiser's state."""

    params: Params
    model_state: PyTree
    opt_state: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    loss: Loss,
    by: Descent,
) -> tuple[State, Info]:
    """One gradient step on what may still learn; ``info.loss`` is in nats."""
    assert model.head is not None
    batch, task = blanked(batch), batch.clock.task
    seen, first = seen_outputs(class_mask, task), task == 0
    shared = model.head(state.params, jnp.zeros(class_mask.shape[1], bool))  # no output's rows
    learns = jax.tree.map(
        lambda rows, body: rows & (first | ~body),
        model.head(state.params, jnp.asarray(class_mask)[task]),
        shared,
    )

    def forward(variables: Variables, x: PyTree, mask: Array) -> tuple[Output, PyTree]:
        train = lambda: training(model)(variables, x, mask)
        if not jax.tree.leaves(variables.model_state):
            return train()
        return jax.lax.cond(first, train, lambda: model.apply(variables, x, False))

    def objective(params: Params, output: Output) -> Array:
        return masked_mean(classification(loss, output.logits, batch.y, seen), batch.mask)

    state, value = descend(state, batch, objective, forward=forward, by=by, learns=learns)
    return state, Info(value)


def fixed_rep(
    *,
    lr: Array | float = 0.1,
    loss: Loss = "softmax",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
) -> Method:
    """Features of the first task, frozen, and a linear head that grows.

    Args:
      lr: step size. May be traced.
      loss: softmax, or sigmoid for the mean binary cross-entropy, over all outputs seen.
      optimizer: sgd, momentum, adam, radam, or directions of your own (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.

    Raises:
      UserError: for values that are not finite, unknown choices, a network that does not
        say which parameters are its head, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_known("loss", loss, get_args(Loss))
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head("fixed-rep", spec)
        if model.head is None:
            raise UserError(
                "fixed-rep freezes all but the head, but this network does not say which of its "
                "parameters that is; give its Model a head (see cljax.types.Model)."
            )

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            return State(params, model_state, by.optimizer.init(params))

        return Learner(
            init,
            draw,
            functools.partial(update, model=model, class_mask=spec.class_mask, loss=loss, by=by),
            {"logits": logits_predictor(model)},
            (fresh_optimizer(by.optimizer),),
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method("fixed-rep", bind, needs, options, make=fixed_rep)
