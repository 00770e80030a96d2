"""Early stopping: a task's training ends when its validation score stops rising.

    each epoch of task t:   the method's updates;  then v = the mean score on validation rows of t
                            v above the best so far:  theta* = theta, no epoch waited
                            else:                     one epoch more waited
    waited P epochs:        the updates of the task's other epochs change nothing
    the end of task t:      theta = theta*   (``restore_best``)

The score is the accuracy, or what the stream is judged by, over the outputs of the tasks seen so
far (of the own task, where tasks have heads), in evaluation mode; images are augmented as in
training. theta are the network's variables: optimiser and memory stay as training left them, and
phases at a task's end see theta*. Validation rows are the stream's own, of its training images, and
the method learns from none of them.

What it costs: every epoch is planned and walked, so that shapes stay static. Validation takes a
forward pass over its rows an epoch. After a stop each update and pass left is skipped where seeds
run in threads or one after another; in a vmapped program all are computed and their results
dropped. Skipped updates report the last loss.

Symbols: P ``patience``, theta ``params`` and ``model_state``, theta* ``best``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError
from cljax.method import Cost, Problem, holds_network
from cljax.methods.incremental import seen_outputs
from cljax.methods.sessions import session
from cljax.methods.wrapper import Wrapper, lifted
from cljax.objectives import score_fn
from cljax.options import Count, positional
from cljax.streams.base import Stream, batches, checksum, plan
from cljax.types import (
    Array,
    Batch,
    Info,
    Needs,
    Params,
    Phase,
    PyTree,
    StepPlan,
    Variables,
)

__all__ = ["EarlyStopping", "State"]

_CHECKED, _CHECKED_LAST = -1, -2  # as epochs in a plan: validation rows, the last of a pass


class State(NamedTuple):
    """``inner`` is the method's; the rest is of the task being learned."""

    inner: PyTree
    best: Variables
    score: Array  # [] sum over the validation rows, the best so far
    total: Array  # [] the same of the pass under way
    waited: Array  # [] int32, epochs since the best
    loss: Array  # [] that the last update reported

    @property
    def params(self) -> Params:
        """The network's weights, for what looks into a state."""
        return self.inner.params

    @property
    def model_state(self) -> PyTree:
        """The network's running statistics, likewise."""
        return self.inner.model_state


class EarlyStopping(Wrapper):
    """A method that stops learning a task once validation no longer gains; its name is its own.

    ``cljax.run(method, stream, epochs=50, patience=3)`` does the same.

    Example:
      ``EarlyStopping(cljax.Finetune(lr=0.1), patience=3)``
    """

    patience: Count = positional(default=3)
    """Epochs without a better score after which a task's training ends (P)."""
    restore_best: bool = True
    """Go on from the variables of the best epoch, not those of the last."""

    @property
    def needs(self) -> Needs:
        return self.method.needs._replace(boundaries=True, epochs=True)

    def arrange(self, stream: Stream) -> Stream:
        """The stream as the method sees it, with validation rows after each epoch."""
        return _validated(self.method.arrange(stream), self.name)

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        if not holds_network(functools.partial(self.method.init, problem), problem):
            raise UserError(
                f"{self.name} cannot be stopped early, because its state has no params and "
                "model_state of one network to score; leave patience out."
            )

    def init(self, problem: Problem, key: Array) -> State:
        inner, zero = self.method.init(problem, key), jnp.zeros(())
        best = Variables(inner.params, inner.model_state)
        return State(inner, best, zero - jnp.inf, zero, jnp.zeros((), jnp.int32), zero)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: PyTree
    ) -> tuple[State, Info]:
        """An update of the method's, or of the score on validation rows."""
        learn = functools.partial(self.method.update, problem)
        shape = jax.eval_shape(learn, state.inner, batch, draws)[1].metrics
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)

        def train(state: State) -> tuple[State, Any]:
            inner, info = learn(state.inner, batch, draws)
            return state._replace(
                inner=inner, loss=info.loss.astype(state.loss.dtype)
            ), info.metrics

        def validate(state: State) -> tuple[State, Any]:
            total = state.total + _scored(problem, state, batch)
            state = state._replace(total=total)
            over = batch.clock.epoch == _CHECKED_LAST
            return tree.select(over, self._judged(state), state), empty

        def step(state: State) -> tuple[State, Any]:
            return jax.lax.cond(batch.clock.epoch < 0, validate, train, state)

        stopped = state.waited >= self.patience
        state, metrics = jax.lax.cond(stopped, lambda state: (state, empty), step, state)
        if self.restore_best:
            inner, best = state.inner, state.best
            restored = inner._replace(params=best.params, model_state=best.model_state)
            state = state._replace(inner=tree.select(batch.clock.last, restored, inner))
        return state, Info(state.loss, metrics)

    def _judged(self, state: State) -> State:
        """What the end of a pass over the validation rows decides."""
        better, inner = state.total > state.score, state.inner
        now = Variables(inner.params, inner.model_state)
        return state._replace(
            best=tree.select(better, now, state.best),
            score=jnp.where(better, state.total, state.score),
            total=jnp.zeros_like(state.total),
            waited=jnp.where(better, 0, state.waited + 1),
        )

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """The method's own, on the rows that it learns from, after one that begins the task."""

        def begin(state: State, task: Array) -> State:
            now = Variables(state.inner.params, state.inner.model_state)
            nothing = jnp.full_like(state.score, -jnp.inf)
            zero = jnp.zeros_like(state.waited)
            return state._replace(
                best=now, score=nothing, total=jnp.zeros_like(state.total), waited=zero
            )

        own = [_on_training(lifted(phase)) for phase in self.method.phases(problem)]
        # After the method's, which may change the network before a task.
        return (*own, session(begin)._replace(name="early-stopping"))

    def cost(self, problem: Problem) -> Cost:
        return Cost()  # it depends on when it stops


def _scored(problem: Problem, state: State, batch: Batch) -> Array:
    """The sum of the scores of a batch's valid rows, []."""
    (model, spec), inner = problem, state.inner
    outputs = model.apply(Variables(inner.params, inner.model_state), batch.x, False)[0].logits
    score = score_fn(spec.objective)
    if score is None:
        seen = seen_outputs(spec.class_mask, batch.clock.task)[None]
        allowed = jnp.asarray(spec.class_mask)[batch.task] if spec.multi_head else seen
        guess = jnp.argmax(jnp.where(allowed, outputs, -jnp.inf), axis=-1)
        rows = (guess == batch.y).astype(state.total.dtype)
    else:
        rows = score(outputs, batch.y).astype(state.total.dtype)
    return jnp.sum(jnp.where(batch.mask, rows, 0.0))


def _on_training(phase: Phase) -> Phase:
    """A phase that plans by the rows that are learned from, without those that validate."""

    def chosen(task: int, rows: StepPlan) -> StepPlan | None:
        learned = np.asarray(rows.epoch) >= 0
        rows = StepPlan(*(np.asarray(column)[learned] for column in rows))
        last = np.zeros_like(rows.last)
        last[-1:] = True
        return phase.plan(task, rows._replace(last=last))

    return phase._replace(plan=chosen)


def _validated(stream: Stream, name: str) -> Stream:
    """The stream whose plan shows a task's validation rows after each of its epochs."""
    if not stream.boundaries:
        raise UserError(
            f"{name} cannot be stopped early on {stream.name}, because it has no task whose end "
            "could come sooner; leave patience out."
        )

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        if epochs < 2:
            raise UserError(
                f"Early stopping needs several epochs to choose from, but epochs is {epochs}; give "
                "as many as a task may take at most."
            )
        rows, valid = plan(stream, seed, batch_size, epochs), stream.valid(seed)
        empty = [task for task, own in enumerate(valid) if not len(own)]
        if empty:
            raise UserError(
                f"Early stopping needs validation rows, but {stream.name} has none for task "
                f"{empty[0]}; give its tasks fewer training examples."
            )
        ends = np.flatnonzero((np.diff(rows.current) != 0) | (np.diff(rows.epoch) != 0)) + 1
        parts: list[StepPlan] = []
        for begin, end in zip([0, *ends], [*ends, len(rows.current)], strict=True):
            part = StepPlan(*(column[begin:end] for column in rows))
            parts += [part._replace(last=np.zeros_like(part.last)), _checks(part, valid)]
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    mark = checksum(stream.checksum, {}, "early stopping")
    return dataclasses.replace(stream, planner=planner, checksum=mark)


def _checks(part: StepPlan, valid: tuple[np.ndarray, ...]) -> StepPlan:
    """The validation rows of an epoch's task, in batches as wide as its own."""
    task, width = int(part.current[0]), part.index.shape[1]
    tasks = np.full(len(valid[task]), task, np.int32)
    checks = batches(valid[task], tasks, width, current=task, epoch=_CHECKED)
    checks.epoch[-1], checks.last[-1] = _CHECKED_LAST, part.last[-1]
    return checks._replace(first_pass=np.zeros_like(checks.first_pass))
