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
class stays in stage 1. All pairs stay applied, in training and fine-tuning, at test and in the
teacher.

Symbols: theta ``params``, a and b ``correction``, tau ``temperature``, M ``exemplars``.

Source: Wu et al., "Large Scale Incremental Learning", CVPR 2019 (arXiv:1905.13260), equations 1
to 5; the KL divergence differs from their cross-entropy by a constant. The first task has no
stage 2 and the teacher's outputs are those of the example as it is augmented.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError, check_above_zero, check_flag, check_positive, check_share
from cljax.factories import with_part
from cljax.losses import distillation, masked_mean
from cljax.memory.exemplars import Budget
from cljax.methods.class_incremental import (
    Objective,
    State,
    Terms,
    class_incremental,
)
from cljax.methods.common import logits_predictor
from cljax.methods.incremental import Outputs, classification, seen_outputs
from cljax.methods.nearest import nearest_mean
from cljax.methods.rehearsal import Rehearsal, recall
from cljax.optimizers import Transformation, make_optimizer
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation
from cljax.types import (
    Array,
    Batch,
    Info,
    Model,
    Output,
    Params,
    Phase,
    Predictor,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = ["Bias", "Correction", "bic", "bic_objective", "corrected", "holding_out", "objective"]


class Correction(NamedTuple):
    """What each task's outputs are multiplied by, and what is added: (1, 0) until it is fitted."""

    scale: Array  # [T]
    shift: Array  # [T]


class Bias(NamedTuple):
    """The corrections, and the state of the optimiser that fits the newest."""

    correction: Correction
    opt_state: PyTree


def corrected(logits: Array, correction: Correction, class_mask: np.ndarray) -> Array:
    """Logits [B, C] scaled and shifted as their tasks' pairs say; an output of no task is kept."""
    owner, owned = class_mask.argmax(axis=0), jnp.any(class_mask, axis=0)
    pair = jax.tree.map(lambda a: a[owner][None], correction)
    return jnp.where(owned[None], pair.scale * logits + pair.shift, logits)


def objective(
    params: Params,
    output: Output,
    old: Output,
    own: Bias,
    batch: Batch,
    outputs: Outputs,
    *,
    class_mask: np.ndarray,
    temperature: Array | float,
) -> Array:
    """L [] of stage 1 on a batch, in nats."""
    correct = functools.partial(corrected, correction=own.correction, class_mask=class_mask)
    logits = correct(output.logits)
    share = jnp.sum(outputs.past) / jnp.maximum(jnp.sum(outputs.seen), 1)  # lambda
    apart = distillation(logits, correct(old.logits), outputs.past, temperature)
    each = classification("softmax", logits, batch.y, outputs.seen)
    return masked_mean(share * apart + (1 - share) * each, batch.mask)


def bic_objective(
    *,
    temperature: Array | float = 2.0,
    held_out: float = 0.1,
    correction_lr: Array | float = 0.01,
    correction_epochs: int = 200,
    mirror: bool = False,
) -> Objective:
    """BiC: distillation on data and exemplars, and a bias correction fitted on a balanced part.

    Args:
      temperature: softens both networks' outputs in the distillation. May be traced.
      held_out: share of each old class's exemplars that stage 2 alone learns from.
      correction_lr: step size of stage 2, whose optimiser is Adam. May be traced.
      correction_epochs: passes of stage 2 over what is held out.
      mirror: class means over the exemplars and their mirror images.

    Raises:
      UserError: for counts below 1, values that are not finite, a share out of range, unknown
        choices, a budget below two exemplars a class, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_above_zero(temperature=temperature, correction_lr=correction_lr)
    check_positive(correction_epochs=correction_epochs)
    check_share(held_out=held_out)
    check_flag(mirror=mirror)
    if not 0 < held_out < 1:
        raise UserError(f"held_out is {held_out}, but it must be a share between 0 and 1.")
    adam = make_optimizer("adam", correction_lr)

    def bind(model: Model, spec: Spec, budget: Budget) -> Terms:
        if budget.shares[-1] < 2:
            raise UserError(
                f"bic keeps {budget.shares[-1]} exemplar of each class at the end, but it needs "
                "at least 2, one of them held out; raise the budget of exemplars."
            )

        def init() -> Bias:
            one = jnp.ones(spec.num_tasks)
            correction = Correction(one, 0 * one)
            return Bias(correction, adam.init(_pair(correction, jnp.zeros((), jnp.int32))))

        def begin(own: Bias, task: Array) -> Bias:
            return own._replace(opt_state=adam.init(_pair(own.correction, task)))

        predictors = {
            "logits": _corrected_predictor(model, spec.class_mask),
            "nearest-mean": nearest_mean(model, spec, mirror=mirror),
            "uncorrected": logits_predictor(model),
        }
        loss = functools.partial(objective, class_mask=spec.class_mask, temperature=temperature)
        stage_2 = _stage_2(model, spec.class_mask, adam, correction_epochs)
        return Terms(
            loss, predictors, init, begin, (stage_2,),
            lambda logits, own: corrected(logits, own.correction, spec.class_mask),
        )  # fmt: skip

    def arrange(stream: Stream, held: Rehearsal) -> Stream:
        whole, labels = stream.planner, np.asarray(stream.train_y)
        budget = held.budget(stream.spec(1))
        assert whole is not None

        def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
            return holding_out(whole(seed, batch_size, epochs), labels, budget, held_out)

        mark = checksum(stream.checksum, {}, "held out", held_out)
        return replace(stream, planner=planner, checksum=mark)

    return Objective(bind, arrange, "bic", options)


bic = with_part(class_incremental, "bic", "objective", bic_objective)


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
        task, own = batch.clock.task, state.own
        variables = Variables(state.params, state.model_state)
        logits = model.apply(variables, batch.x, False)[0].logits
        seen = seen_outputs(class_mask, task)

        def put(pair: Correction) -> Correction:
            return jax.tree.map(lambda a, new: a.at[task].set(new), own.correction, pair)

        def objective(pair: Correction) -> Array:
            z = corrected(logits, put(pair), class_mask)
            return masked_mean(classification("softmax", z, batch.y, seen), batch.mask)

        pair = _pair(own.correction, task)
        loss, grads = jax.value_and_grad(objective)(pair)
        updates, opt_state = adam.update(grads, own.opt_state, pair)
        fitted = put(tree.add_scaled(pair, updates, 1.0))
        return state._replace(own=Bias(fitted, opt_state)), Info(loss)

    return Phase("correction", plan, lambda state, batch, key: (), update, recall=recall)


def _pair(correction: Correction, task: Array) -> Correction:
    return jax.tree.map(lambda a: a[task], correction)


def _corrected_predictor(model: Model, class_mask: np.ndarray) -> Predictor:
    raw = logits_predictor(model)

    def prepare(state: State) -> tuple[PyTree, Correction]:
        return raw.prepare(state), state.own.correction

    def scores(view: tuple[PyTree, Correction], batch: Batch) -> Array:
        return corrected(raw.scores(view[0], batch), view[1], class_mask)

    return Predictor(prepare, scores)
