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

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import check_known, check_positive, check_rate
from cljax.losses import masked_mean
from cljax.memory.policies import Policy
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import (
    Descent,
    Loss,
    blanked,
    check_single_head,
    classification,
    descent,
    seen_outputs,
)
from cljax.methods.micro import over_tasks, part
from cljax.methods.rehearsal import Rehearsal, recall, rehearsal
from cljax.methods.sessions import fresh_optimizer
from cljax.nets.masked import masked
from cljax.optimizers import Optimizer
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["Draws", "State", "draw", "fomaml", "reptile", "update_fomaml", "update_reptile"]


class State(NamedTuple):
    """``opt_state`` is of the inner steps in Reptile, of the outer ones in FOMAML."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    exemplars: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
    return Draws()


class _Tasks(NamedTuple):
    """What the loop over a mini-batch's tasks carries; sums are over tasks."""

    total: Params  # of Phi_i - Phi, or of g_i
    opt_state: PyTree
    loss: Array


def update_reptile(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    loss: Loss,
    by: Descent,
    inner_steps: int,
    epsilon: Array | float,
) -> tuple[State, Info]:
    """One mini-batch of Reptile; ``info.loss`` is the mean over tasks and parts, in nats."""
    batch, rate = blanked(batch), by.rate(batch.clock)
    grad = _gradient(model, state.model_state, class_mask, loss)

    def train(task: Array, micro: Batch, carry: _Tasks) -> _Tasks:
        def step(j: Array, at: tuple[Params, PyTree, Array]) -> tuple[Params, PyTree, Array]:
            params, opt_state, total = at
            own = part(micro, j, inner_steps)
            value, grads = grad(params, own)
            towards, after = by.optimizer.update(grads, opt_state, params)
            moved = tree.add_scaled(params, towards, -rate)
            some = jnp.any(own.mask)  # an empty part would still move by momentum
            return *tree.select(some, (moved, after), (params, opt_state)), total + value

        start = (state.params, carry.opt_state, jnp.zeros_like(carry.loss))
        params, opt_state, value = jax.lax.fori_loop(0, inner_steps, step, start)
        moved = jax.tree.map(jnp.subtract, params, state.params)
        parts = jnp.minimum(inner_steps, jnp.sum(micro.mask))
        return _Tasks(
            jax.tree.map(jnp.add, carry.total, moved), opt_state, carry.loss + value / parts
        )

    tasks, present = over_tasks(batch, len(class_mask), train, _none(state))
    present = jnp.maximum(present, 1)
    params = tree.add_scaled(state.params, tasks.total, epsilon / present)
    model_state = _statistics(model, state, batch)
    state = state._replace(params=params, opt_state=tasks.opt_state, model_state=model_state)
    return state, Info(tasks.loss / present)


def update_fomaml(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    loss: Loss,
    by: Descent,
    inner_steps: int,
    inner_lr: Array | float,
) -> tuple[State, Info]:
    """One mini-batch of FOMAML; ``info.loss`` is the mean over tasks of the second halves'."""
    batch = blanked(batch)
    grad = _gradient(model, state.model_state, class_mask, loss)

    def train(task: Array, micro: Batch, carry: _Tasks) -> _Tasks:
        support, query = part(micro, 0, 2), part(micro, 1, 2)

        def step(j: Array, params: Params) -> Params:
            return tree.add_scaled(params, grad(params, support)[1], -jnp.asarray(inner_lr))

        value, grads = grad(jax.lax.fori_loop(0, inner_steps, step, state.params), query)
        total = jax.tree.map(jnp.add, carry.total, grads)
        return _Tasks(total, carry.opt_state, carry.loss + value)

    tasks, present = over_tasks(batch, len(class_mask), train, _none(state))
    mean = jax.tree.map(lambda g: g / jnp.maximum(present, 1), tasks.total)
    towards, opt_state = by.optimizer.update(mean, state.opt_state, state.params)
    params = tree.add_scaled(state.params, towards, -by.rate(batch.clock))
    # Momentum and decay alone are no step.
    before = state.params, state.opt_state
    params, opt_state = tree.select(present > 0, (params, opt_state), before)
    model_state = _statistics(model, state, batch)
    state = state._replace(params=params, opt_state=opt_state, model_state=model_state)
    return state, Info(tasks.loss / jnp.maximum(present, 1))


def reptile(
    *,
    lr: Array | float = 0.1,
    epsilon: Array | float = 1.0,
    inner_steps: int = 2,
    loss: Loss = "sigmoid",
    capacity: int | None = 2000,
    per_class: int | None = None,
    capacity_bytes: int | None = None,
    exemplars: Policy = "random",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
) -> Method:
    """Reptile over the tasks of each mini-batch, with exemplars of earlier tasks.

    Args:
      lr: step size of the inner loop. May be traced.
      epsilon: how far the model moves towards the mean of the tasks' models. May be traced.
      inner_steps: parts of a task's examples, a step on each (r).
      loss: sigmoid, the mean binary cross-entropy, or softmax, over all outputs seen.
      capacity: exemplars of all classes together; None with per_class or capacity_bytes.
      per_class: exemplars of each class, instead of a total.
      capacity_bytes: all exemplars together in bytes, as the stream stores examples, instead.
      exemplars: random, first or herding, or an ``ExemplarPolicy``.
      optimizer: of the inner loop: sgd, momentum, adam, radam, or directions of your own
        (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    check_positive(inner_steps=inner_steps)
    check_known("loss", loss, get_args(Loss))
    check_rate(epsilon=epsilon)
    held = rehearsal(exemplars, capacity, per_class, capacity_bytes, first_epochs)
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip
    update = functools.partial(
        update_reptile, loss=loss, by=by, inner_steps=inner_steps, epsilon=epsilon
    )
    return _method("reptile", reptile, options, held, by, update)


def fomaml(
    *,
    lr: Array | float = 0.1,
    inner_lr: Array | float = 0.1,
    inner_steps: int = 1,
    loss: Loss = "sigmoid",
    capacity: int | None = 2000,
    per_class: int | None = None,
    capacity_bytes: int | None = None,
    exemplars: Policy = "random",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
) -> Method:
    """First-order MAML over the tasks of each mini-batch, with exemplars of earlier tasks.

    Args:
      lr: step size of the outer loop. May be traced.
      inner_lr: step size of the inner loop, which is plain gradient descent. May be traced.
      inner_steps: inner steps, each on the whole first half of a task's examples (r).
      loss: sigmoid, the mean binary cross-entropy, or softmax, over all outputs seen.
      capacity: exemplars of all classes together; None with per_class or capacity_bytes.
      per_class: exemplars of each class, instead of a total.
      capacity_bytes: all exemplars together in bytes, as the stream stores examples, instead.
      exemplars: random, first or herding, or an ``ExemplarPolicy``.
      optimizer: of the outer loop: sgd, momentum, adam, radam, or directions of your own
        (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    check_positive(inner_steps=inner_steps)
    check_known("loss", loss, get_args(Loss))
    check_rate(inner_lr=inner_lr)
    held = rehearsal(exemplars, capacity, per_class, capacity_bytes, first_epochs)
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip
    update = functools.partial(
        update_fomaml, loss=loss, by=by, inner_steps=inner_steps, inner_lr=inner_lr
    )
    return _method("fomaml", fomaml, options, held, by, update)


def _method(
    name: str,
    make: Callable[..., Method],
    options: dict,
    held: Rehearsal,
    by: Descent,
    update: Callable[..., tuple[State, Info]],
) -> Method:
    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head(name, spec)
        budget = held.budget(spec)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            opt_state = by.optimizer.init(params)
            return State(params, model_state, opt_state, held.policy.init(model, spec, budget))

        return Learner(
            init,
            draw,
            functools.partial(update, model=model, class_mask=spec.class_mask),
            {"logits": logits_predictor(model)},
            (fresh_optimizer(by.optimizer), *held.policy.phases(model, spec, budget)),
            recall=recall,
        )

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method(name, bind, needs, options, arrange=held.arrange, make=make)


def _gradient(
    model: Model, model_state: PyTree, class_mask: np.ndarray, loss: Loss
) -> Callable[[Params, Batch], tuple[Array, Params]]:
    """``(params, batch) -> (loss, gradient)`` of the mean over the batch's valid rows."""

    def mean(params: Params, batch: Batch) -> Array:
        logits = masked(model, Variables(params, model_state), batch.x, batch.mask)[0].logits
        seen = seen_outputs(class_mask, batch.clock.task)
        return masked_mean(classification(loss, logits, batch.y, seen), batch.mask)

    return jax.value_and_grad(mean)


def _none(state: State) -> _Tasks:
    zero = jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)
    return _Tasks(tree.full_like(state.params, 0.0), state.opt_state, zero)


def _statistics(model: Model, state: State, batch: Batch) -> PyTree:
    """BatchNorm's running statistics after the whole mini-batch, at the parameters before it."""
    if not jax.tree.leaves(state.model_state):
        return state.model_state
    return masked(model, Variables(state.params, state.model_state), batch.x, batch.mask)[1]
