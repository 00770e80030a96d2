"""Replayed: gradient descent on a task's data and the exemplars of earlier tasks, together.

    each epoch of task s:   the examples of D(s) and M(s - 1), shuffled, in batches
    update(batch):          theta = theta - rate * Opt(grad mean_B CE(theta; batch))
    after task s:           M(s) = exemplars chosen from D(s), and the best of the old ones

The cross-entropy is over all outputs seen so far, of a softmax or, mean over outputs, of sigmoids.
It is what iTAML's figure 5 calls Joint. ``oracle`` replays all past examples instead.

Symbols: theta ``params``, D(s) the data of task s, M ``exemplars``.

Source: Rajasegaran, Khan, Hayat, Khan, Shah, "iTAML", CVPR 2020 (arXiv:2003.11652), section 4.2;
the paper names the method only, and the code released with it has none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np

from cljax.errors import check_known, check_positive, given
from cljax.factories import variant
from cljax.losses import masked_mean
from cljax.memory import exemplars as memory
from cljax.memory.policies import Policy
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
from cljax.methods.rehearsal import recall, rehearsal
from cljax.methods.sessions import fresh_optimizer
from cljax.optimizers import Optimizer
from cljax.streams.base import Stream
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
)

__all__ = ["Draws", "State", "draw", "oracle", "replayed", "update"]


class State(NamedTuple):
    """``exemplars`` is ``()`` where all past examples are replayed."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    exemplars: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
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
    """One gradient step on the batch; ``info.loss`` is in nats."""
    batch, seen = blanked(batch), seen_outputs(class_mask, batch.clock.task)

    def objective(params: Params, output: Output) -> Array:
        return masked_mean(classification(loss, output.logits, batch.y, seen), batch.mask)

    state, value = descend(state, batch, objective, forward=training(model), by=by)
    return state, Info(value)


def replayed(
    *,
    lr: Array | float = 0.1,
    loss: Loss = "softmax",
    capacity: int | None = 2000,
    per_class: int | None = None,
    capacity_bytes: int | None = None,
    exemplars: Policy = "random",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
) -> Method:
    """Joint training on the current task's data and exemplars of the earlier ones.

    Args:
      lr: step size. May be traced.
      loss: softmax, or sigmoid for the mean binary cross-entropy, over all outputs seen.
      capacity: exemplars of all classes together; None with per_class or capacity_bytes. All three
        None replay all past examples.
      per_class: exemplars of each class, instead of a total.
      capacity_bytes: all exemplars together in bytes, as the stream stores examples, instead.
      exemplars: random, first or herding, or an ``ExemplarPolicy``.
      optimizer: sgd, momentum, adam, radam, or directions of your own (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    check_known("loss", loss, get_args(Loss))
    check_positive(**given(first_epochs=first_epochs))
    held = None
    if any(count is not None for count in (capacity, per_class, capacity_bytes)):
        held = rehearsal(exemplars, capacity, per_class, capacity_bytes, first_epochs)
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head("oracle" if held is None else "replayed", spec)
        policy = budget = None
        if held is not None:
            policy, budget = held.policy, held.budget(spec)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            kept = () if policy is None else policy.init(model, spec, budget)
            return State(params, model_state, by.optimizer.init(params), kept)

        chosen = () if policy is None else policy.phases(model, spec, budget)
        return Learner(
            init,
            draw,
            functools.partial(update, model=model, class_mask=spec.class_mask, loss=loss, by=by),
            {"logits": logits_predictor(model)},
            (fresh_optimizer(by.optimizer), *chosen),
            recall=None if policy is None else recall,
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    def arrange(stream: Stream) -> Stream:
        if held is not None:
            return held.arrange(stream)
        return memory.replayed(stream, None, first_epochs=first_epochs)

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method("replayed", bind, needs, options, arrange=arrange, make=replayed)


oracle = variant(
    replayed,
    "oracle",
    "Oracle: joint training on the current task's data and all data of the earlier ones.",
    fixed={"capacity": None, "per_class": None, "capacity_bytes": None, "exemplars": "random"},
)
