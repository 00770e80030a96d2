"""BiC: distillation with exemplars, then a correction of the bias towards new classes.

    before task s:   teacher = theta, with its correction
    stage 1, each epoch of D(s) and M(s - 1), less what is held out, in batches:
        L     = lambda KL(softmax(z^ / tau) || softmax(y / tau)) over old outputs
                + (1 - lambda) CE(y) over outputs seen,    lambda = n_old / (n_old + n_new)
        theta = theta - rate * Opt(grad mean_B L)
    stage 2, each epoch of what is held out:
        a, b = one step on CE(z) + decay b^2,    theta frozen
    after them:      M(s) = herded from D(s), and the best of the old ones
    z_c = a y_c + b for outputs c of the newest task, y_c for others;   y are the network's logits

Images are held out of stage 1 for good: of each class that comes, as many as a tenth of the slots
(by ``held_out``, at least one) that an old class has then, the last in the first epoch's order.
They never become exemplars and are kept within the budget, a tenth of it, the exemplars the rest;
as the budget's slots of a class get fewer, so do both. So stage 2 sees all classes alike, in images
that the network never learned from. At least one image of each class stays in stage 1.

Symbols: theta ``params``, a and b ``correction``, tau ``temperature``, M ``exemplars``, decay
``correction_decay``.

Source: Wu et al., "Large Scale Incremental Learning", CVPR 2019 (arXiv:1905.13260), equations 1
to 5.

Differs: the KL divergence differs from their cross-entropy by a constant. The size of stage 2's
rate and decay, and its passes, are ours. The teacher's outputs are those of the example as it is
augmented. Others keep every task's pair applied, in training too, and fit by Adam:
``pairs="all", correction_optimizer="adam", correction_decay=0``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError
from cljax.losses import distillation, masked_mean, weighted
from cljax.memory.exemplars import Budget
from cljax.method import Problem
from cljax.methods.class_incremental import ClassIncremental, State
from cljax.methods.groups.exemplars import recall
from cljax.methods.incremental import Outputs, blanked, classification, seen_outputs
from cljax.optimizers import Optimizer, Transformation, make_optimizer
from cljax.options import Count, Positive, Rate, StaticShare
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation
from cljax.types import (
    Array,
    Batch,
    Info,
    Output,
    Params,
    Phase,
    Predictor,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = [
    "BiC", "Bias", "Correction", "corrected", "corrected_predictor", "holding_out", "reserved",
]  # fmt: skip


class Correction(NamedTuple):
    """What each task's outputs are multiplied by, and what is added: (1, 0) where not fitted."""

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


class BiC(ClassIncremental, name="bic"):
    """BiC: distillation on data and exemplars, and a bias correction fitted on a balanced part.

    Paper: Wu et al., CVPR 2019 (arXiv:1905.13260). Pseudo-code, symbols and what differs:
    ``cljax.methods.bic``.

    Example:
        >>> import cljax
        >>> method = cljax.BiC(lr=0.3, correction_epochs=20)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16", epochs=5)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    temperature: Positive = 2.0
    """Softens both networks' outputs in the distillation."""
    held_out: StaticShare = 0.1
    """Share of the budget that holds images which stage 2 alone learns from."""
    correction_lr: Positive = 0.01
    """Step size of stage 2."""
    correction_epochs: Count = 200
    """Passes of stage 2 over what is held out."""
    correction_optimizer: Optimizer = "momentum"
    """Of stage 2: sgd, momentum (0.9), adam or radam."""
    correction_decay: Rate = 0.1
    """Of the squared shift in stage 2's loss."""
    pairs: Literal["newest", "all"] = "newest"
    """The newest task's pair alone corrects logits, or those of all tasks, each fitted on logits
    that the earlier ones correct, and in training too."""

    def check(self) -> None:
        super().check()
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out is {self.held_out}, but it must be a share between 0 and 1.")
        make_optimizer(self.correction_optimizer, self.correction_lr)

    @property
    def _step(self) -> Transformation:
        return make_optimizer(self.correction_optimizer, self.correction_lr)

    def exemplar_budget(self, spec: Spec) -> Budget:
        return reserved(self.budget(spec), self.held_out)

    def init_own(self, problem: Problem) -> Bias:
        correction = _uncorrected(problem.spec.num_tasks)
        return Bias(correction, self._step.init(_pair(correction, jnp.zeros((), jnp.int32))))

    def begin_own(self, problem: Problem, own: Bias, task: Array) -> Bias:
        return own._replace(opt_state=self._step.init(_pair(own.correction, task)))

    def objective(
        self,
        problem: Problem,
        params: Params,
        output: Output,
        old: Output,
        own: Bias,
        batch: Batch,
        outputs: Outputs,
    ) -> Array:
        """L [] of stage 1 on a batch, in nats."""
        correct = functools.partial(
            corrected, correction=own.correction, class_mask=problem.spec.class_mask
        )
        logits = correct(output.logits) if self.pairs == "all" else output.logits
        share = jnp.sum(outputs.past) / jnp.maximum(jnp.sum(outputs.seen), 1)  # lambda
        apart = distillation(logits, correct(old.logits), outputs.past, self.temperature)
        each = classification("softmax", logits, batch.y, outputs.seen)
        each = weighted(problem.spec, each, batch.y)
        return masked_mean(share * apart + (1 - share) * each, batch.mask)

    def adjusted(self, problem: Problem, logits: Array, own: Bias) -> Array:
        return corrected(logits, own.correction, problem.spec.class_mask)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        """The corrected logits, the nearest class mean, and the logits as the head gives them."""
        result = super().predictors(problem)
        own = corrected_predictor(result["logits"], problem.spec.class_mask)
        return {**result, "logits": own, "uncorrected": result["logits"]}

    def stages(self, problem: Problem) -> tuple[Phase, ...]:
        """Fits the newest pair to what the task's plan held out."""
        (model, spec), step = problem, self._step

        def plan(task: int, rows: StepPlan) -> StepPlan | None:
            if task == 0:
                return None
            index, tasks, mask = (a[rows.epoch == 0] for a in (rows.index, rows.task, rows.mask))
            # Padding repeats a row that is valid elsewhere, or one held out.
            held, where = np.unique(index, return_index=True)
            some = (held != -1) & ~np.isin(held, index[mask])
            # By arrival, which the seed chooses: by row, all seeds would have one order of classes.
            arrival = np.argsort(where[some])
            held, where = held[some][arrival], where[some][arrival]
            tasks, parts = tasks.reshape(-1)[where], []
            for epoch in range(self.correction_epochs):
                order = permutation(len(held), "bic", task, epoch)
                parts.append(
                    batches(
                        held[order],
                        tasks[order],
                        index.shape[1],
                        current=task,
                        epoch=epoch,
                        last=epoch == self.correction_epochs - 1,
                    )  # fmt: skip
                )
            return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

        def update(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
            batch, task, own = blanked(batch), batch.clock.task, state.own
            variables = Variables(state.params, state.model_state)
            logits = model.apply(variables, batch.x, False)[0].logits
            seen = seen_outputs(spec.class_mask, task)
            others = own.correction if self.pairs == "all" else _uncorrected(spec.num_tasks)

            def put(pair: Correction) -> Correction:
                return jax.tree.map(lambda a, new: a.at[task].set(new), others, pair)

            def objective(pair: Correction) -> tuple[Array, Array]:
                z = corrected(logits, put(pair), spec.class_mask)
                each = classification("softmax", z, batch.y, seen)
                loss = masked_mean(weighted(spec, each, batch.y), batch.mask)
                return loss + self.correction_decay * pair.shift**2, loss

            pair = _pair(own.correction, task)
            grads, loss = jax.grad(objective, has_aux=True)(pair)
            updates, opt_state = step.update(grads, own.opt_state, pair)
            fitted = put(tree.add_scaled(pair, updates, 1.0))
            some = jnp.any(batch.mask)  # decay and momentum alone are no step
            return state._replace(own=tree.select(some, Bias(fitted, opt_state), own)), Info(loss)

        return (Phase("correction", plan, lambda state, batch, key: (), update, recall=recall),)

    def arrange(self, stream: Stream) -> Stream:
        stream, labels = super().arrange(stream), np.asarray(stream.train_y)
        whole, budget = stream.planner, self.budget(stream.spec(1))
        assert whole is not None

        def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
            return holding_out(whole(seed, batch_size, epochs), labels, budget, self.held_out)

        mark = checksum(stream.checksum, {}, "held out", self.held_out)
        return replace(stream, planner=planner, checksum=mark)


def _held_counts(budget: Budget, share: float) -> np.ndarray:
    """[T] images of each old class that stage 2 sees in the task after each."""
    return np.maximum(1, np.round(share * budget.shares)).astype(int)


def reserved(budget: Budget, share: float) -> Budget:
    """What is left for exemplars of a budget that holds the images of stage 2 too.

    Raises:
      UserError: for a budget below two a class.
    """
    if budget.shares[-1] < 2:
        raise UserError(
            f"bic stores {budget.shares[-1]} image of each class at the end, but it needs "
            "at least 2, one of them held out; raise the budget of exemplars."
        )
    shares = budget.shares - _held_counts(budget, share)
    return budget._replace(shares=shares, capacity=int((shares * budget.seen).max()))


def holding_out(rows: StepPlan, labels: np.ndarray, budget: Budget, share: float) -> StepPlan:
    """A plan with all the budget's slots in which what stage 2 learns from is masked.

    Slots are renumbered as ``reserved`` has them. The others of an old class name the images that
    it held out, masked; where a class had too few images for either, their index is -1.
    """
    index, mask = rows.index.copy(), rows.mask.copy()
    left, counts = reserved(budget, share), _held_counts(budget, share)
    trained = np.zeros(len(budget.classes), int)  # images of each class that stage 1 learned from
    held: list[np.ndarray] = [np.zeros(0, index.dtype)] * len(budget.classes)
    for task in range(len(budget.seen)):
        own, before = rows.current == task, max(task - 1, 0)
        count = int(counts[before])
        if task:
            named = _named(budget, left, before, trained, held, count)
            slots = index[own] < -1
            result = np.where(slots, named[np.where(slots, -2 - index[own], 0)], index[own])
            mask[own] &= ~slots | (result < -1)
            index[own] = result
        first = own & (rows.epoch == 0)
        arrived = index[first][mask[first]]
        arrived = arrived[arrived >= 0]
        for k in np.flatnonzero(budget.task == task):
            members = arrived[labels[arrived] == budget.classes[k]]
            trained[k] = max(len(members) - count, min(len(members), 1))
            held[k] = members[trained[k] :]
            mask[own] &= ~np.isin(index[own], held[k])
    return rows._replace(index=index, mask=mask)


def _named(
    budget: Budget, left: Budget, task: int, trained: np.ndarray, held: list[np.ndarray], count: int
) -> np.ndarray:
    """What a plan's rows name for each slot of the whole budget once ``task`` has ended."""
    share, fewer, seen = int(budget.shares[task]), int(left.shares[task]), int(budget.seen[task])
    named = np.full((seen, share), -1)
    for k in range(seen):
        slots = min(trained[k], fewer)
        images = held[k][:count]
        named[k, :slots] = -2 - (k * fewer + np.arange(slots))
        named[k, slots : slots + len(images)] = images
    return named.ravel()


def _uncorrected(num_tasks: int) -> Correction:
    return Correction(jnp.ones(num_tasks), jnp.zeros(num_tasks))


def _pair(correction: Correction, task: Array) -> Correction:
    return jax.tree.map(lambda a: a[task], correction)


def corrected_predictor(raw: Predictor, class_mask: np.ndarray) -> Predictor:
    """Scores of a predictor, corrected as the state says."""

    def prepare(state: State) -> tuple[PyTree, Correction]:
        return raw.prepare(state), state.own.correction

    def scores(view: tuple[PyTree, Correction], batch: Batch) -> Array:
        return corrected(raw.scores(view[0], batch), view[1], class_mask)

    return Predictor(prepare, scores)
