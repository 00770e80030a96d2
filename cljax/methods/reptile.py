"""Reptile and first-order MAML over the tasks of a mini-batch, with exemplars of earlier tasks.

    for each mini-batch B of the task's data and the exemplars of earlier ones:
        for each task i of B, with its examples B_i:
            reptile:  Phi_i = Phi;   for each of r parts of B_i:
                          Phi_i = Phi_i - rate * Opt(grad L(Phi_i; part))
            fomaml:   Phi_i = Phi;   r times:
                          Phi_i = Phi_i - inner_lr * grad L(Phi_i; first half of B_i)
                      g_i   = grad L(Phi_i; second half)
        reptile:  Phi = Phi + epsilon * mean_i (Phi_i - Phi)
        fomaml:   Phi = Phi - rate * Opt(mean_i g_i)

L is over all outputs seen so far, of sigmoids (mean over outputs, as iTAML's) or a softmax. Of an
odd number of examples the second half has one more, so that a single example has a gradient.
Reptile's optimiser goes on from task to task, and part to part.

Symbols: Phi ``params``, r ``inner_steps``, epsilon ``epsilon``.

Source: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018
(arXiv:1803.02999), Reptile; Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", ICML 2017
(arXiv:1703.03400), section 5.2, first order; made class-incremental as baselines of iTAML
(Rajasegaran et al., CVPR 2020, arXiv:2003.11652), which does not say how: parts, halves and what
happens to BatchNorm are ours. Every part is normalised by its own statistics, and the running ones
follow the whole mini-batch at Phi, as in our iTAML.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.method import Cost, Method, Problem
from cljax.methods.groups.exemplars import ExemplarOptions
from cljax.methods.groups.sessions import LossOptions
from cljax.methods.incremental import ClassLoss, blanked, seen_outputs
from cljax.methods.micro_batches import over_tasks, part
from cljax.nets.masked import masked
from cljax.optimizers import Optimizer
from cljax.options import Count, Rate
from cljax.types import Array, Batch, Info, Model, Params, Phase, PyTree, Variables

__all__ = ["FOMAML", "OverTasks", "Reptile", "State"]


class State(NamedTuple):
    """``opt_state`` is of the inner steps in Reptile, of the outer ones in FOMAML."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    exemplars: PyTree


class _Tasks(NamedTuple):
    """What the loop over a mini-batch's tasks carries; sums are over tasks."""

    total: Params  # of Phi_i - Phi, or of g_i
    opt_state: PyTree
    loss: Array


class OverTasks(ExemplarOptions, LossOptions, Method):
    """What the two share: exemplars, and a loss of each task that a mini-batch holds."""

    loss: ClassLoss = "sigmoid"
    """Sigmoid, the mean binary cross-entropy, or softmax, over all outputs seen."""

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        opt_state = self.opt_state(params)
        return State(params, model_state, opt_state, self.no_exemplars(problem))

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        return (*self.fresh_optimizer(), *self.choices(problem))

    def cost(self, problem: Problem) -> Cost:
        return Cost()  # it depends on how many tasks there are

    def _gradient(
        self, problem: Problem, model_state: PyTree
    ) -> Callable[[Params, Batch], tuple[Array, Params]]:
        """``(params, batch) -> (loss, gradient)`` of the mean over the batch's valid rows."""

        def mean(params: Params, batch: Batch) -> Array:
            variables = Variables(params, model_state)
            logits = masked(problem.model, variables, batch.x, batch.mask)[0].logits
            seen = seen_outputs(problem.spec.class_mask, batch.clock.task)
            return self.mean_loss(problem.spec, logits, batch, seen)

        return jax.value_and_grad(mean)


class Reptile(OverTasks):
    """Reptile over the tasks of each mini-batch, with exemplars of earlier tasks.

    Paper: Nichol, Achiam, Schulman 2018 (arXiv:1803.02999); as in iTAML (arXiv:2003.11652).
    Pseudo-code and symbols: ``cljax.methods.reptile``.

    Example:
        >>> import cljax
        >>> method = cljax.Reptile()
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16", epochs=3)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.1
    """Step size of the inner loop."""
    epsilon: Rate = 1.0
    """How far the model moves towards the mean of the tasks' models."""
    inner_steps: Count = 2
    """Parts of a task's examples, a step on each (r)."""
    optimizer: Optimizer = "sgd"
    """Of the inner loop: sgd, momentum, adam, radam, or an ``optax.GradientTransformation``, which
    brings its own step size, schedule and decay."""

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One mini-batch; ``info.loss`` is the mean over tasks and parts, in nats."""
        batch, optimizer = blanked(batch), self.step(self.rate(batch.clock))
        grad = self._gradient(problem, state.model_state)

        def train(task: Array, micro: Batch, carry: _Tasks) -> _Tasks:
            def step(j: Array, at: tuple[Params, PyTree, Array]) -> tuple[Params, PyTree, Array]:
                params, opt_state, total = at
                own = part(micro, j, self.inner_steps)
                value, grads = grad(params, own)
                updates, after = optimizer.update(grads, opt_state, params)
                moved = jax.tree.map(jnp.add, params, updates)
                some = jnp.any(own.mask)  # an empty part would still move by momentum
                return *tree.select(some, (moved, after), (params, opt_state)), total + value

            start = (state.params, carry.opt_state, jnp.zeros_like(carry.loss))
            params, opt_state, value = jax.lax.fori_loop(0, self.inner_steps, step, start)
            moved = jax.tree.map(jnp.subtract, params, state.params)
            parts = jnp.minimum(self.inner_steps, jnp.sum(micro.mask))
            return _Tasks(
                jax.tree.map(jnp.add, carry.total, moved), opt_state, carry.loss + value / parts
            )

        tasks, present = over_tasks(batch, problem.spec.num_tasks, train, _none(state))
        present = jnp.maximum(present, 1)
        params = tree.add_scaled(state.params, tasks.total, self.epsilon / present)
        model_state = _statistics(problem.model, state, batch)
        state = state._replace(params=params, opt_state=tasks.opt_state, model_state=model_state)
        return state, Info(tasks.loss / present)


class FOMAML(OverTasks):
    """First-order MAML over the tasks of each mini-batch, with exemplars of earlier tasks.

    Paper: Finn, Abbeel, Levine, ICML 2017 (arXiv:1703.03400); as in iTAML (arXiv:2003.11652).
    Pseudo-code and symbols: ``cljax.methods.reptile``.

    Example:
        >>> import cljax
        >>> method = cljax.FOMAML()
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16", epochs=3)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.1
    """Step size of the outer loop."""
    inner_lr: Rate = 0.1
    """Step size of the inner loop, which is plain gradient descent."""
    inner_steps: Count = 1
    """Inner steps, each on the whole first half of a task's examples (r)."""
    optimizer: Optimizer = "sgd"
    """Of the outer loop: sgd, momentum, adam, radam, or an ``optax.GradientTransformation``, which
    brings its own step size, schedule and decay."""

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One mini-batch; ``info.loss`` is the mean over tasks of the second halves', in nats."""
        batch = blanked(batch)
        grad = self._gradient(problem, state.model_state)

        def train(task: Array, micro: Batch, carry: _Tasks) -> _Tasks:
            support, query = part(micro, 0, 2), part(micro, 1, 2)

            def step(j: Array, params: Params) -> Params:
                return tree.add_scaled(
                    params, grad(params, support)[1], -jnp.asarray(self.inner_lr)
                )

            value, grads = grad(jax.lax.fori_loop(0, self.inner_steps, step, state.params), query)
            total = jax.tree.map(jnp.add, carry.total, grads)
            return _Tasks(total, carry.opt_state, carry.loss + value)

        tasks, present = over_tasks(batch, problem.spec.num_tasks, train, _none(state))
        mean = jax.tree.map(lambda g: g / jnp.maximum(present, 1), tasks.total)
        optimizer = self.step(self.rate(batch.clock))
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        # Momentum and decay alone are no step.
        before = state.params, state.opt_state
        params, opt_state = tree.select(present > 0, (params, opt_state), before)
        model_state = _statistics(problem.model, state, batch)
        state = state._replace(params=params, opt_state=opt_state, model_state=model_state)
        return state, Info(tasks.loss / jnp.maximum(present, 1))


def _none(state: State) -> _Tasks:
    zero = jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)
    return _Tasks(tree.full_like(state.params, 0.0), state.opt_state, zero)


def _statistics(model: Model, state: State, batch: Batch) -> PyTree:
    """BatchNorm's running statistics after the whole mini-batch, at the parameters before it."""
    if not jax.tree.leaves(state.model_state):
        return state.model_state
    return masked(model, Variables(state.params, state.model_state), batch.x, batch.mask)[1]
