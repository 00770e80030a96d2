"""First-order meta-gradients of a look-ahead, as sums along its inner loop.

Inner gradients g_j are constants, so theta_i = theta - A * C_i with C_i = sum_{j<=i} g_j. With
G_i = grad CE(theta_i; bm) and w_i the weight of L_i in the meta-loss,

    grad_theta = sum_i w_i G_i
    grad_A     = -sum_i w_i G_i * C_i

Nothing is differentiated through the loop: no step is stored for a backward pass, and a compiled
loop is as fast as its steps one after another.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), equation 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.inner_loop import LoopOptions, scan
from cljax.losses import REDUCTIONS, LossFn
from cljax.method import Problem
from cljax.methods.algebra.look_ahead import LookAhead, Masked, losses_of, meta_loss
from cljax.nets.transfer import slow_in_loops
from cljax.types import Array, Params, PyTree

__all__ = [
    "Followed",
    "MetaGradients",
    "Steps",
    "follow",
    "loop_for",
    "meta_gradients",
    "of_alpha",
    "weights",
]


class MetaGradients(NamedTuple):
    """A meta-loss ``[]`` in nats, its gradients, and the network's state as in ``meta_loss``."""

    loss: Array
    params: Params
    alpha: Params
    model_state: PyTree


class Steps(NamedTuple):
    """The inner loop of a network.

    Attributes:
      inner: ``(params, aside, inputs) -> (gradient, aside, out)`` of an inner step. ``aside``
        moves along with the parameters, in a way of its own.
      meta: ``(params, aside) -> ((loss, out), gradient)`` of the meta-batch.
    """

    inner: Callable[[Params, PyTree, PyTree], tuple[Params, PyTree, PyTree]]
    meta: Callable[[Params, PyTree], tuple[tuple[Array, PyTree], Params]]


class Followed(NamedTuple):
    """What K inner steps give; S losses are judged, all K or the last."""

    params: Params  # gradient of theta
    rates: Params  # gradient of A
    losses: Array  # [S]
    inner: PyTree  # leaves [K, ...], the outs of the inner steps
    meta: PyTree  # leaves [S, ...], those of the meta-batch


def follow(
    steps: Steps,
    params: Params,
    rates: Params,
    aside: PyTree,
    inputs: PyTree,
    weights: Array | None,
    how: LookAhead,
) -> Followed:
    """Takes the sums along an inner loop of K steps.

    Args:
      rates: A, like ``params``.
      aside: what goes along with the parameters at the first step.
      inputs: leaves ``[K, ...]``, those of the inner steps.
      weights: ``[K]``, w; None: the last step's loss is the meta-loss.
    """

    def move(carry: Any, inputs: PyTree) -> tuple[Any, PyTree]:
        at, aside, moved = carry
        gradient, aside, out = steps.inner(at, aside, inputs)
        gradient = tree.clip_elements(gradient, how.inner_clip)
        at = jax.tree.map(lambda p, a, g: p - a * g, at, rates, gradient)
        return (at, aside, jax.tree.map(jnp.add, moved, gradient)), out

    def judge(carry: Any, inputs: Any) -> tuple[Any, Any]:
        place, d_params, d_rates = carry
        inputs, weight = inputs
        (at, aside, moved), inner = move(place, inputs)
        (loss, meta), gradient = steps.meta(at, aside)
        d_params = tree.add_scaled(d_params, gradient, weight)
        d_rates = jax.tree.map(lambda d, g, c: d - weight * g * c, d_rates, gradient, moved)
        return ((at, aside, moved), d_params, d_rates), (loss, inner, meta)

    zeros, unroll_steps = tree.full_like(params, 0.0), how.loop.unroll_steps
    place = params, aside, zeros
    if weights is not None:
        carry, outs = scan(
            judge, (place, zeros, zeros), (inputs, weights), unroll_steps=unroll_steps
        )
        return Followed(*carry[1:], *outs)
    (at, aside, moved), inner = scan(move, place, inputs, unroll_steps=unroll_steps)
    (loss, meta), gradient = steps.meta(at, aside)
    d_rates = jax.tree.map(lambda g, c: -g * c, gradient, moved)
    return Followed(gradient, d_rates, loss[None], inner, jax.tree.map(lambda a: a[None], meta))


def loop_for(problem: Problem, order: int) -> LoopOptions:
    """How the inner loop is compiled: on a CPU as a loop, where that is as fast as its steps.

    It is not where gradients are differentiated again, nor for convolutions.
    """
    model, spec = problem
    loop = jax.default_backend() == "cpu" and order == 1 and not slow_in_loops(model, spec.example)
    return LoopOptions(unroll_steps=1 if loop else True)


def weights(held: Array, how: LookAhead) -> Array | None:
    """``[K]``, w, for steps of which ``held`` [K] have an example; None: the last step's is 1."""
    if how.meta_reduce == "last":
        return None
    return jax.grad(REDUCTIONS[how.meta_reduce])(jnp.zeros(held.shape), held)


def of_alpha(d_rates: Params, alpha: Params, how: LookAhead) -> Params:
    """The gradient of alpha from that of A(alpha)."""
    if not how.inner_relu:
        return d_rates
    return jax.tree.map(lambda d, a: jnp.where(a > 0, d, 0), d_rates, alpha)


def meta_gradients(
    params: Params,
    alpha: Params,
    model_state: PyTree,
    inner: Masked,
    meta: Masked,
    *,
    loss_fn: LossFn,
    how: LookAhead = LookAhead(),  # noqa: B008, it is immutable
) -> MetaGradients:
    """``meta_loss`` and its gradients with respect to ``params`` and ``alpha``; same arguments.

    Of either order.
    """
    if how.order == 2:
        of_both = jax.value_and_grad(meta_loss, argnums=(0, 1), has_aux=True)
        (loss, after), (d_params, d_alpha) = of_both(
            params, alpha, model_state, inner, meta, loss_fn=loss_fn, how=how
        )
        return MetaGradients(loss, d_params, d_alpha, after)
    held = jnp.any(inner[1], axis=1)  # [K]
    inner_loss, meta_batch_loss = losses_of(loss_fn, model_state, held, meta)
    steps = Steps(
        lambda params, aside, chunk: (jax.grad(inner_loss)(params, chunk), aside, ()),
        lambda params, aside: jax.value_and_grad(meta_batch_loss, has_aux=True)(params),
    )
    done = follow(steps, params, how.rates(alpha), (), inner, weights(held, how), how)
    loss = REDUCTIONS[how.meta_reduce](done.losses, held)
    after = jax.tree.map(lambda a: a[-1], done.meta)
    return MetaGradients(loss, done.params, of_alpha(done.rates, alpha, how), after)
