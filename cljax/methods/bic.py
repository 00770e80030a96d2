"""BiC: distillation with exemplars, then a correction of the bias towards new classes.

    before task s:   teacher = theta, with its corrections
    stage 1, each epoch of D(s) and M(s - 1), less what is held out, in batches:
        L     = lambda KL(softmax(z^ / tau) || softmax(z / tau)) over old outputs
                + (1 - lambda) CE(z) over outputs seen,    lambda = n_old / (n_old + n_new)
        theta = theta - rate * Opt(grad mean_B L)
    stage 2, each epoch of what is held out:
        a_s, b_s = one step on CE(z),    theta frozen
    after them:      M(s) = herded from D(s), and the best of the old ones
    z_c = a_j y_c + b_j,    j the task of output c,  y the network's logits,  a, b = 1, 0 at first

A tenth of the exemplars of each old class (by ``held_out``, at least one), the last of them, and as
many images of each new class, the last in the first epoch's order, are held out of stage 1. The old
ones were learned from in earlier tasks; the images never become exemplars. At least one of each
class stays in stage 1. All pairs stay applied, in training, at test and in the teacher.

Symbols: theta ``params``, a and b ``correction``, tau ``temperature``, M ``exemplars``.

Source: Wu et al., "Large Scale Incremental Learning", CVPR 2019 (arXiv:1905.13260), equations 1
to 5; the KL divergence differs from their cross-entropy by a constant. The first task has no
stage 2 and the teacher's outputs are those of the example as it is augmented.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError, check_finite, check_positive
from cljax.losses import distillation, masked_mean
from cljax.memory.exemplars import Budget
from cljax.memory.policies import Policy
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import (
    Descent,
    blanked,
    check_single_head,
    classification,
    descend,
    descent,
    past_outputs,
    seen_outputs,
    training,
)
from cljax.methods.rehearsal import recall, rehearsal
from cljax.methods.sessions import session
from cljax.optimizers import Optimizer, Transformation, make_optimizer
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    Phase,
    Predictor,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = ["Correction", "Draws", "State", "bic", "corrected", "draw", "holding_out", "update"]


class Correction(NamedTuple):
    """What each task's outputs are multiplied by, and what is added: (1, 0) until it is fitted."""

    scale: Array  # [T]
    shift: Array  # [T]


class State(NamedTuple):
    """``teacher`` is the network when the last task ended."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    teacher: Variables
    correction: Correction
    correction_opt: PyTree
    exemplars: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
    return Draws()


def corrected(logits: Array, correction: Correction, class_mask: np.ndarray) -> Array:
    """Logits [B, C] scaled and shifted as their tasks' pairs say; an output of no task is kept."""
    owner, owned = class_mask.argmax(axis=0), jnp.any(class_mask, axis=0)
    pair = jax.tree.map(lambda a: a[owner][None], correction)
    return jnp.where(owned[None], pair.scale * logits + pair.shift, logits)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    temperature: Array | float,
    by: Descent,
) -> tuple[State, Info]:
    """One gradient step of stage 1 on the batch; ``info.loss`` is in nats."""
    batch, task = blanked(batch), batch.clock.task
    seen, past = seen_outputs(class_mask, task), past_outputs(class_mask, task)
    correct = functools.partial(corrected, correction=state.correction, class_mask=class_mask)
    old = correct(model.apply(state.teacher, batch.x, False)[0].logits)
    share = jnp.sum(past) / jnp.maximum(jnp.sum(seen), 1)  # lambda

    def losses(logits: Array) -> Array:
        logits = correct(logits)
        apart = distillation(logits, old, past, temperature)
        return share * apart + (1 - share) * classification("softmax", logits, batch.y, seen)

    state, value = descend(state, batch, losses, forward=training(model), by=by)
    return state, Info(value)


def bic(
    *,
    lr: Array | float = 0.1,
    temperature: Array | float = 2.0,
    held_out: float = 0.1,
    correction_lr: Array | float = 0.01,
    correction_epochs: int = 200,
    capacity: int | None = 2000,
    per_class: int | None = None,
    exemplars: Policy = "herding",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
) -> Method:
    """BiC: distillation on data and exemplars, and a bias correction fitted on a balanced part.

    Args:
      lr: step size. May be traced.
      temperature: softens both networks' outputs in the distillation. May be traced.
      held_out: share of each old class's exemplars that stage 2 alone learns from.
      correction_lr: step size of stage 2, whose optimiser is Adam. May be traced.
      correction_epochs: passes of stage 2 over what is held out.
      capacity: exemplars of all classes together; None with per_class.
      per_class: exemplars of each class, instead of a total.
      exemplars: herding, random or first, or an ``ExemplarPolicy``.
      optimizer: sgd, momentum, adam, radam, or directions of your own (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.

    Raises:
      UserError: for counts below 1, values that are not finite, a share out of range, unknown
        choices, a budget below two exemplars a class, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_finite(temperature=temperature, correction_lr=correction_lr)
    check_positive(correction_epochs=correction_epochs)
    if not 0 < held_out < 1:
        raise UserError(f"held_out is {held_out}, but it must be a share between 0 and 1.")
    held = rehearsal(exemplars, capacity, per_class, first_epochs)
    adam = make_optimizer("adam", correction_lr)
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head("bic", spec)
        budget = held.budget(spec.class_mask)
        if budget.shares[-1] < 2:
            raise UserError(
                f"bic keeps {budget.shares[-1]} exemplar of each class at the end, but it needs "
                "at least 2, one of them held out; raise capacity or per_class."
            )

        def init(key: Array) -> State:
            variables = initial(model, spec, key)
            one = jnp.ones(spec.num_tasks, jax.tree.leaves(variables.params)[0].dtype)
            correction = Correction(one, 0 * one)
            return State(
                *variables, by.optimizer.init(variables.params), variables, correction,
                adam.init(_pair(correction, jnp.zeros((), jnp.int32))),
                held.policy.init(spec, budget),
            )  # fmt: skip

        def begin(state: State, task: Array) -> State:
            return state._replace(
                teacher=Variables(state.params, state.model_state),
                opt_state=by.optimizer.init(state.params),
                correction_opt=adam.init(_pair(state.correction, task)),
            )

        return Learner(
            init,
            draw,
            functools.partial(
                update, model=model, class_mask=spec.class_mask, temperature=temperature, by=by
            ),
            {
                "logits": _corrected_predictor(model, spec.class_mask),
                "uncorrected": logits_predictor(model),
            },
            (
                session(begin),
                _stage_2(model, spec.class_mask, adam, correction_epochs),
                *held.policy.phases(model, spec, budget),
            ),
            recall=recall,
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    def arrange(stream: Stream) -> Stream:
        arranged, budget = held.arrange(stream), held.budget(stream.class_mask)
        whole, labels = arranged.planner, np.asarray(stream.train_y)
        assert whole is not None

        def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
            return holding_out(whole(seed, batch_size, epochs), labels, budget, held_out)

        mark = checksum(arranged.checksum, {}, "held out", held_out)
        return replace(arranged, planner=planner, checksum=mark)

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method("bic", bind, needs, options, arrange=arrange, make=bic)


def holding_out(rows: StepPlan, labels: np.ndarray, budget: Budget, share: float) -> StepPlan:
    """A plan with exemplars in which what stage 2 learns from is masked.

    A class that had so few images that what it held out leaves slots empty has no row for those:
    their index is -1.
    """
    index, mask = rows.index.copy(), rows.mask.copy()
    kept = np.zeros(len(budget.classes), int)  # images of each class that may become exemplars
    for task, seen in enumerate(budget.seen):
        own = rows.current == task
        if task:
            slots, empty = _slots(budget, task, kept)
            index[own] = np.where(np.isin(index[own], empty), -1, index[own])
            mask[own] &= index[own] != -1
            most = max(1, round(share * int(budget.shares[task - 1])))
        first = own & (rows.epoch == 0)
        arrived = index[first][mask[first]]
        lasts = []
        for k in range(int(seen)):
            if budget.task[k] == task:
                members = arrived[arrived >= 0]
                members = members[labels[members] == budget.classes[k]]
            else:
                members = slots[k]
            count = min(most, max(len(members) - 1, 0)) if task else 0
            lasts.append(members[len(members) - count :])
            if budget.task[k] == task:
                kept[k] = len(members) - count
        mask[own] &= ~np.isin(index[own], np.concatenate(lasts))
    return rows._replace(index=index, mask=mask)


def _slots(budget: Budget, task: int, kept: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of a plan that name each old class's exemplars, and those that name empty slots."""
    share, old = int(budget.shares[task - 1]), int(budget.seen[task - 1])
    rows = -2 - np.arange(old * share).reshape(old, share)
    filled = np.arange(share) < kept[:old, None]
    return [own[some] for own, some in zip(rows, filled, strict=True)], rows[~filled]


def _stage_2(model: Model, class_mask: np.ndarray, adam: Transformation, epochs: int) -> Phase:
    """Fits the newest pair to what the task's plan held out."""

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task == 0:
            return None
        index, tasks, mask = (a[rows.epoch == 0] for a in (rows.index, rows.task, rows.mask))
        # Padding repeats a row that is valid elsewhere, or one held out.
        held, where = np.unique(index, return_index=True)
        some = (held != -1) & ~np.isin(held, index[mask])
        held, tasks = held[some], tasks.reshape(-1)[where[some]]
        parts = []
        for epoch in range(epochs):
            order = permutation(len(held), "bic", task, epoch)
            parts.append(
                batches(
                    held[order],
                    tasks[order],
                    index.shape[1],
                    current=task,
                    epoch=epoch,
                    last=epoch == epochs - 1,
                )  # fmt: skip
            )
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def update(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
        task, variables = batch.clock.task, Variables(state.params, state.model_state)
        logits = model.apply(variables, batch.x, False)[0].logits
        seen = seen_outputs(class_mask, task)

        def put(pair: Correction) -> Correction:
            return jax.tree.map(lambda a, new: a.at[task].set(new), state.correction, pair)

        def objective(pair: Correction) -> Array:
            z = corrected(logits, put(pair), class_mask)
            return masked_mean(classification("softmax", z, batch.y, seen), batch.mask)

        pair = _pair(state.correction, task)
        loss, grads = jax.value_and_grad(objective)(pair)
        updates, opt_state = adam.update(grads, state.correction_opt, pair)
        fitted = put(tree.add_scaled(pair, updates, 1.0))
        return state._replace(correction=fitted, correction_opt=opt_state), Info(loss)

    return Phase("correction", plan, lambda state, batch, key: (), update, recall=recall)


def _pair(correction: Correction, task: Array) -> Correction:
    return jax.tree.map(lambda a: a[task], correction)


def _corrected_predictor(model: Model, class_mask: np.ndarray) -> Predictor:
    raw = logits_predictor(model)

    def prepare(state: State) -> tuple[PyTree, Correction]:
        return raw.prepare(state), state.correction

    def scores(view: tuple[PyTree, Correction], batch: Batch) -> Array:
        return corrected(raw.scores(view[0], batch), view[1], class_mask)

    return Predictor(prepare, scores)
