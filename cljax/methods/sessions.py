"""What methods that learn each task in many epochs share: rates that drop, a step before a task.

rate(task, epoch) = lr * decay^(milestones reached),  times last_factor in the last task
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, in_words
from cljax.types import Array, Batch, Clock, Info, Phase, PyTree, StepPlan

__all__ = ["AtBorder", "check_milestones", "rate", "session"]

AtBorder: TypeAlias = Literal["keep", "reset"]


def check_milestones(**milestones: Sequence[int]) -> None:
    """Raises UserError unless milestones are epochs from 1 on, in order."""
    for name, epochs in milestones.items():
        try:
            whole = [0, *(operator.index(epoch) for epoch in epochs)]
        except TypeError:  # no sequence, or not of whole numbers
            whole = [0, 0]
        else:
            epochs = whole[1:]
        if any(later <= sooner for sooner, later in itertools.pairwise(whole)):
            raise UserError(
                f"{name} are {in_words(epochs)}, but they must be epochs from 1 on, in order."
            )


def rate(
    clock: Clock,
    lr: Array | float,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    *,
    num_tasks: int | None = None,
    last_factor: Array | float = 1.0,
) -> Array:
    """The step size [] at a clock: it drops when an epoch reaches a milestone, in every task anew.

    Args:
      milestones: epochs, from 0, at whose beginning the rate drops. decay: by this factor.
      num_tasks: with it, the last task's rates are ``last_factor`` times the others'.
    """
    reached = jnp.sum(clock.epoch >= jnp.asarray(milestones, jnp.int32))
    dropped = lr * jnp.asarray(decay, jnp.result_type(float)) ** reached
    if num_tasks is None:
        return dropped
    return jnp.where(clock.task == num_tasks - 1, dropped * last_factor, dropped)


def session(begin: Callable[[PyTree, Array], PyTree]) -> Phase:
    """A phase of one step before each task: ``begin(state, task) -> state``."""

    def plan(task: int, rows: StepPlan) -> StepPlan:
        return StepPlan(*(column[:1] for column in rows))._replace(
            index=np.zeros_like(rows.index[:1]), mask=np.zeros_like(rows.mask[:1]),
            last=np.ones(1, bool),
        )  # fmt: skip

    def update(state: PyTree, batch: Batch, draws: tuple[()]) -> tuple[PyTree, Info]:
        return begin(state, batch.clock.task), Info(jnp.zeros(()))

    return Phase("session", plan, lambda state, batch, key: (), update, before=True, stored=True)
