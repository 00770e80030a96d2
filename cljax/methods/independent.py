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

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.method import Method, Problem
from cljax.methods.groups.descent import Descent, DescentOptions, mean_weights
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Model,
    Needs,
    Output,
    Params,
    Phase,
    Predictor,
    PyTree,
    Variables,
)

__all__ = ["Independent", "State"]


class State(NamedTuple):
    """``params`` and ``model_state`` have a leading axis of tasks; ``opt_state`` is of ``task``."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    task: Array  # [] int32, the task of the last update


class Independent(DescentOptions, Method):
    """A network for each task; needs the task of every test example.

    Paper: Lopez-Paz, Ranzato, NeurIPS 2017 (arXiv:1706.08840), section 5.2. Pseudo-code and
    symbols: ``cljax.methods.independent``.

    Example:
        >>> import cljax
        >>> method = cljax.Independent(lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy("task"), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0])  # nothing is ever forgotten
        0.0
    """

    penalty: ClassVar[None] = None
    clip_norm: ClassVar[None] = None
    optimizer_at_border: ClassVar[Literal["reset"]] = "reset"

    transfer: bool = True
    """A new task's network starts from the last task's, not from the first weights."""

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True, task_ids_test=True)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """None: the first update of a task resets the optimiser."""
        return ()

    def init(self, problem: Problem, key: Array) -> State:
        variables = problem.variables(key)
        every = jax.tree.map(lambda a: jnp.stack([a] * problem.spec.num_tasks), variables)
        opt_state, task = self.step.init(variables.params), jnp.zeros((), jnp.int32)
        return State(every.params, every.model_state, opt_state, task)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        # The first valid example begins a task: padding is no step, also to a new network.
        task = jnp.where(jnp.any(batch.mask), batch.clock.task, state.task)
        new = task != state.task
        every = Variables(state.params, state.model_state)
        own = _at(every, jnp.where(new & self.transfer, state.task, task))
        opt_state = tree.select(new, self.step.init(own.params), state.opt_state)
        examples, weights = Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask)
        at = Descent(own.params, own.model_state, opt_state, ())
        after, loss = self.descend(problem, at, examples, weights, batch)
        every = jax.tree.map(
            lambda all_tasks, one: all_tasks.at[task].set(one),
            every,
            Variables(after.params, after.model_state),
        )
        return State(every.params, every.model_state, after.opt_state, task), Info(loss)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        return {
            "logits": _predictor(problem.model, lambda output: output.logits),
            "features": _predictor(problem.model, lambda output: output.features),
        }


def _predictor(model: Model, part: Callable[[Output], Array]) -> Predictor:
    """A part of the output of the network of the examples' task, which a batch's share."""

    def prepare(state: State) -> Variables:
        return Variables(state.params, state.model_state)

    def scores(every: Variables, batch: Batch) -> Array:
        return part(model.apply(_at(every, batch.task[0]), batch.x, False)[0])

    return Predictor(prepare, scores, needs_task_ids=True)


def _at(every: Variables, task: Array) -> Variables:
    return jax.tree.map(lambda a: a[task], every)
