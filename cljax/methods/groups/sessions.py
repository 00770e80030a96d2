"""Class-incremental methods learn each task in a session of epochs: their options and steps.

    step(batch):   theta = theta + Opt(grad objective(theta)),   a name's steps by -rate

Rates drop at milestones of every task, whose optimiser starts anew, or is kept
(``optimizer_at_border``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import masked_mean, weighted
from cljax.method import Cost, Problem
from cljax.methods.incremental import ClassLoss, Forward, check_single_head, classification
from cljax.methods.sessions import AtBorder, check_milestones, rate, session
from cljax.optimizers import Optimizer, Transformation, make_optimizer
from cljax.options import Options, Rate, StaticRate, StaticShare, added_later
from cljax.types import (
    Array,
    Batch,
    Clock,
    Needs,
    Output,
    Params,
    Phase,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["LossOptions", "SessionOptions"]


class SessionOptions(Options):
    """Of methods that learn one head for all classes, a task's in each session.

    Their state has the fields ``params``, ``model_state`` and ``opt_state``.
    """

    lr: Rate = 0.1
    """Step size."""
    optimizer: Optimizer = "sgd"
    """Sgd, momentum, adam, radam, or an ``optax.GradientTransformation``, which brings its own step
    size, schedule and decay."""
    momentum: StaticShare = 0.9
    """Of the optimiser "momentum"."""
    weight_decay: StaticRate = 0.0
    """Adds so many parameters to the gradient."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the rate drops."""
    decay: Rate = 0.1
    """By this factor."""
    optimizer_at_border: AtBorder = added_later(default="reset")
    """Where a new task begins: reset the optimiser's state (moments, the count of a schedule) to
    that before the first step, or keep it."""

    def check(self) -> None:
        super().check()
        check_milestones(milestones=self.milestones)
        self.step(self.lr)
        if not isinstance(self.optimizer, str) and (self.milestones or self.weight_decay):
            raise UserError(
                "An optimizer of your own brings its own schedule and decay, so milestones "
                f"{list(self.milestones)} and weight_decay {self.weight_decay} would do nothing; "
                "leave them out."
            )

    @property
    def needs(self) -> Needs:
        """Ends and ids of tasks, and several passes."""
        return Needs(boundaries=True, task_ids_train=True, epochs=True)

    @property
    def needs_classes(self) -> str:
        """Its head grows by the classes of each task."""
        return "learns an output for each class"

    @property
    def fixed_loss(self) -> str:
        """The loss is its own, over the outputs seen so far."""
        return "minimises a loss of its own over the classes seen so far"

    def fit(self, problem: Problem) -> None:
        """Raises UserError for a problem without classes of each task's own."""
        check_single_head(self.kind, problem.spec)

    def step(self, size: Array | float) -> Transformation:
        """The optimiser, where it is one by name with steps of this size."""
        return make_optimizer(
            self.optimizer, size, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def opt_state(self, params: Params) -> PyTree:
        """The optimiser's state before its first step."""
        return self.step(self.lr).init(params)

    def rate(self, clock: Clock) -> Array:
        """The step size [] at a clock."""
        return rate(clock, self.lr, self.milestones, self.decay)

    def fresh_optimizer(self) -> tuple[Phase, ...]:
        """Makes the optimiser's state anew before each task, unless it is kept there."""
        if self.optimizer_at_border == "keep":
            return ()
        fresh = lambda state, task: state._replace(opt_state=self.opt_state(state.params))
        return (session(fresh),)

    def descend(
        self,
        state: Any,
        batch: Batch,
        objective: Callable[[Params, Output], Array],
        *,
        forward: Forward,
        size: Array | None = None,
        learns: PyTree | None = None,
    ) -> tuple[Any, Array]:
        """One step; none on a batch of padding.

        Args:
          objective: (params, output on the batch) -> loss [].
          forward: (variables, x, mask) -> (output, model_state).
          size: of the step, []; None is the rate at the batch's clock.
          learns: pytree of bools that broadcast to the parameters, False where they are frozen.

        Returns:
          The state after it, and the loss [].
        """

        def value(params: Params) -> tuple[Array, PyTree]:
            output, after = forward(Variables(params, state.model_state), batch.x, batch.mask)
            return objective(params, output), after

        size = self.rate(batch.clock) if size is None else size
        (loss, model_state), grads = jax.value_and_grad(value, has_aux=True)(state.params)
        updates, opt_state = self.step(size).update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        some = jnp.any(batch.mask)
        moves = jax.tree.map(lambda leaf: some, params)
        if learns is not None:  # momentum and decay would move what has no gradient
            moves = jax.tree.map(lambda where: where & some, learns)
        keep = lambda where, new, old: jnp.where(jnp.broadcast_to(where, old.shape), new, old)
        return state._replace(
            params=jax.tree.map(keep, moves, params, state.params),
            model_state=model_state,
            opt_state=tree.select(some, opt_state, state.opt_state),
        ), loss

    def cost(self, problem: Problem) -> Cost:
        """One gradient on a batch."""
        return Cost(1, problem.spec.batch_size)


class LossOptions(SessionOptions):
    """Of those whose loss is a cross-entropy over all outputs seen."""

    loss: ClassLoss = "softmax"
    """Softmax, or sigmoid for the mean binary cross-entropy, over all outputs seen."""

    def mean_loss(self, spec: Spec, logits: Array, batch: Batch, seen: Array) -> Array:
        """Its mean [] over a batch's valid rows, in nats; ``seen`` [C] are the outputs."""
        losses = classification(self.loss, logits, batch.y, seen)
        return masked_mean(weighted(spec, losses, batch.y), batch.mask)
