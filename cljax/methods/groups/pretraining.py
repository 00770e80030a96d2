"""Pretraining: its optimiser and plan, and the methods that practise in it and then plainly go on.

rate(step) = lr * 0.1^(milestones reached);  a milestone is a share of the steps
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax.memory.exemplars import epochs_of
from cljax.method import Cost, Problem
from cljax.methods.groups.descent import Descent, DescentOptions, mean_weights
from cljax.optimizers import Transformation, make_optimizer
from cljax.options import Options, Rate
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Needs,
    Pretraining,
    PyTree,
    Spec,
    StepPlan,
)

__all__ = [
    "PlainOptions", "epochs_for", "from_task_1", "optimizer_of", "pretraining_of", "source_step",
]  # fmt: skip

Update: TypeAlias = Callable[[PyTree, Batch, PyTree], tuple[PyTree, Info]]


class PlainOptions(Options):
    """Of methods that practise in pretraining; then they take plain gradient steps.

    Their state has ``params`` and ``model_state``. In task 0 there are no steps where the stream
    says how pretraining learns it.
    """

    lr: Rate = 0.1
    """Step size on the stream."""

    @property
    def needs_classes(self) -> str:
        """Episodes are drawn from classes that the stream holds out, with heads of their own."""
        return "practises on classes that the stream holds out"

    @property
    def fixed_loss(self) -> str:
        """Pretraining minimises the cross-entropy over held classes."""
        return self.needs_classes

    @property
    def unweighted(self) -> str:
        """Held classes have no weights."""
        return self.needs_classes

    @property
    def needs(self) -> Needs:
        """Ends and ids of tasks."""
        return Needs(boundaries=True, task_ids_train=True)

    def update(
        self, problem: Problem, state: Any, batch: Batch, draws: tuple[()]
    ) -> tuple[Any, Info]:
        """One step of plain descent."""
        plain = DescentOptions(lr=self.lr)

        def own(state: Any, batch: Batch, draws: tuple[()]) -> tuple[Any, Info]:
            at = Descent(state.params, state.model_state, (), ())
            examples, weights = Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask)
            after, loss = plain.descend(problem, at, examples, weights, batch)
            return state._replace(params=after.params, model_state=after.model_state), Info(loss)

        stepped = own if problem.spec.pretraining is None else from_task_1(own)
        return stepped(state, batch, draws)

    def cost(self, problem: Problem) -> Cost:
        """One gradient on a batch."""
        return Cost(1, problem.spec.batch_size)


def pretraining_of(spec: Spec) -> Pretraining:
    """The stream's pretraining, or the usual one."""
    return Pretraining() if spec.pretraining is None else spec.pretraining


def optimizer_of(
    how: Pretraining, step: Array | int = 0, *, weight_decay: float | None = None
) -> Transformation:
    """Pretraining's optimiser at a ``step`` [] int32, whose rate drops at the milestones.

    Args:
      weight_decay: another one than pretraining's.
    """
    marks = np.array([round(share * how.steps) for share in how.milestones], np.int32)
    reached = jnp.sum(step >= jnp.asarray(marks))
    rate = how.lr * jnp.asarray(0.1, jnp.result_type(float)) ** reached
    decay = how.weight_decay if weight_decay is None else weight_decay
    return make_optimizer(how.optimizer, rate, weight_decay=decay)


def source_step(
    problem: Problem, how: Pretraining, at: Descent, batch: Batch
) -> tuple[Descent, Array]:
    """One step of pretraining, and its loss []; no penalty in it."""
    by = DescentOptions(optimizer=optimizer_of(how, batch.clock.step))
    examples, weights = Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask)
    return by.descend(problem, at, examples, weights, batch)


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
        rows = epochs_of(own, owner, how.batch_size, 0, epochs, "pretrain")
        return StepPlan(*(column[: how.steps] for column in rows))

    return plan
