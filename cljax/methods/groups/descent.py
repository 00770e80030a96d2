"""Gradient descent with a penalty: the options, and the one step that methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.method import Cost, Problem
from cljax.methods.sessions import AtBorder, session
from cljax.optimizers import Optimizer, Transformation, make_optimizer
from cljax.options import Bound, Options, Rate, added_later
from cljax.penalty import Penalty, check_penalty, penalised, penalty_phases, penalty_state
from cljax.types import Array, Batch, Examples, Needs, Params, Phase, PyTree, Variables

__all__ = ["Descent", "DescentOptions", "Objective", "PenaltyOptions", "mean_weights"]

# params -> (loss [], (model_state, anything else of the forward pass))
Objective: TypeAlias = Callable[[Params], tuple[Array, tuple[PyTree, Any]]]


class Descent(NamedTuple):
    """What a gradient step changes; ``penalty`` is ``()`` where there is none."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree


def mean_weights(mask: Array) -> Array:
    """Weights ``[B]`` that make a sum the mean over the valid examples."""
    return mask / jnp.maximum(jnp.sum(mask), 1)


class PenaltyOptions(Options):
    """Of methods that carry a penalty; their state has the fields ``params`` and ``penalty``."""

    penalty: Penalty | None = None
    """A regulariser beside the loss, such as ``cljax.penalties.EWC(100.0)``; None is without."""

    def check(self) -> None:
        check_penalty(self.penalty)

    @property
    def needs(self) -> Needs:
        """Where tasks end, if a penalty consolidates there."""
        return Needs(boundaries=self.penalty is not None)

    @property
    def needs_classes(self) -> str:
        """As the penalty's."""
        return "" if self.penalty is None else self.penalty.needs_classes

    def penalty_state(self, variables: Variables) -> PyTree:
        """What the state keeps for the penalty, () without one."""
        return penalty_state(self.penalty, variables)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """The phase that consolidates the penalty, if there is one."""
        return penalty_phases(self.penalty, problem.network)


class DescentOptions(PenaltyOptions):
    """Of methods that step down a gradient."""

    lr: Rate = 0.01
    """Step size; an optax optimiser of your own brings its own."""
    optimizer: Optimizer = "sgd"
    """Sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``."""
    clip_norm: Bound | None = None
    """Bound of the global norm of the gradient; None disables."""
    optimizer_at_border: AtBorder = added_later(default="keep")
    """Where a new task begins: keep the optimiser's state (moments, the count of a schedule), or
    reset it to that before the first step, which asks for task borders."""

    def check(self) -> None:
        super().check()
        make_optimizer(self.optimizer, self.lr)

    @property
    def needs(self) -> Needs:
        """Where tasks begin, if the optimiser starts anew there."""
        own = super().needs
        return own._replace(boundaries=own.boundaries or self.optimizer_at_border == "reset")

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """The penalty's, and one before each task that resets the optimiser, where asked."""
        own = super().phases(problem)
        if self.optimizer_at_border == "keep":
            return own
        fresh = lambda state, task: state._replace(opt_state=self.step.init(state.params))
        return (session(fresh), *own)

    @property
    def step(self) -> Transformation:
        """The optimiser."""
        return make_optimizer(self.optimizer, self.lr)

    def start(self, problem: Problem, key: Array) -> Descent:
        """What the first step starts from."""
        variables = problem.variables(key)
        opt_state, kept = self.step.init(variables.params), self.penalty_state(variables)
        return Descent(variables.params, variables.model_state, opt_state, kept)

    def descend(
        self, problem: Problem, at: Descent, examples: Examples, weights: Array, batch: Batch
    ) -> tuple[Descent, Array]:
        """One step on ``sum_i weights_i * loss_i``, plus the penalty; none on a batch of padding.

        Args:
          examples: leaves ``[B, ...]``. weights: ``[B]``, 0 for padding.
          batch: the incoming batch, for penalties on outputs; without a valid row nothing changes.

        Returns:
          What comes after the step, and the loss ``[]`` without the penalty.
        """

        def weighted(params: Params) -> tuple[Array, tuple[PyTree, tuple[()]]]:
            losses, model_state = problem.loss_fn(params, at.model_state, examples, weights > 0)
            return jnp.sum(losses * weights), (model_state, ())

        after, loss, _ = self.descend_on(problem, at, weighted, batch)
        return after, loss

    def descend_on(
        self, problem: Problem, at: Descent, objective: Objective, batch: Batch
    ) -> tuple[Descent, Array, Any]:
        """``descend`` on a loss of the method's own.

        Args:
          objective: params -> (loss [], (model_state, more)).

        Returns:
          What comes after the step, the loss [] without the penalty, and ``more``.
        """
        (loss, (model_state, more)), grads = jax.value_and_grad(objective, has_aux=True)(at.params)
        total, penalty = grads, self.penalty
        if penalty is not None:
            network = problem.network(at.model_state)
            total = penalised(grads, penalty, at.penalty, at.params, batch, network)
        total = tree.clip_norm(total, self.clip_norm)
        updates, opt_state = self.step.update(total, at.opt_state, at.params)
        penalty_state = at.penalty
        if penalty is not None:
            penalty_state = penalty.observe(at.penalty, at.params, grads, updates)
        params = jax.tree.map(jnp.add, at.params, updates)
        some = jnp.any(batch.mask)  # replay alone, decay or momentum are no step
        after = tree.select(some, Descent(params, model_state, opt_state, penalty_state), at)
        return after, jnp.where(some, loss, 0.0), more

    def cost(self, problem: Problem) -> Cost:
        """One gradient on a batch."""
        return Cost(1, problem.spec.batch_size)
