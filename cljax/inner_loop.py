"""Unrolled inner loops: K steps of any update rule as one differentiable function.

    theta_0 = params
    for i in 1..K:
        g_i      = step.gradient(theta_{i-1}, batch_i)        # constant where order = 1
        theta_i  = step.apply(theta_{i-1}, g_i)
        probe_i  = probe_fn(theta_i)

A step is two functions, its gradient and what it does with it, because that seam is where
first-order meta-gradients cut the graph: everything that ``apply`` reads besides the gradient
(learning rates, a learned rule's parameters) is still differentiated. La-MAML, mnemonics and
the multi-task teacher all unroll through here.

Truncated to its ``last`` k steps, theta_{K-k} and everything before it are constants (Shaban et
al., arXiv:1810.10667): the same values, a gradient that forgets the earlier steps. The backward
pass otherwise holds what all K steps computed; ``remat`` leaves it K states and one step, and
``segments`` = S leaves it S states and one segment (Chen et al., arXiv:1604.06174). A gradient
that holds no steps at all is ``cljax.implicit``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError, check_callable, check_flag, check_positive, in_words
from cljax.optimizers import check_transformation
from cljax.types import Array, Params, PyTree

__all__ = ["InnerStep", "LoopOptions", "Unrolled", "optax_step", "sgd_step", "split", "unroll"]


class InnerStep(NamedTuple):
    """One update rule. ``carry`` is whatever it keeps between steps besides the parameters.

    ``init(params) -> carry``; ``gradient(params, carry, batch) -> (gradient, carry)``;
    ``apply(params, carry, gradient) -> (params, carry)``. ``gradient`` may be any pytree, for
    instance gradients beside activations for a learned rule.
    """

    init: Callable[[Params], PyTree]
    gradient: Callable[[Params, PyTree, PyTree], tuple[PyTree, PyTree]]
    apply: Callable[[Params, PyTree, PyTree], tuple[Params, PyTree]]


class LoopOptions(NamedTuple):
    """How a loop of K steps is compiled, and what its backward pass computes again.

    Attributes:
      remat: recompute each step in the backward pass, so that memory holds one step.
      segments: above 1, recompute as many equal runs of those steps, so that memory holds the
        states between runs and one run. With ``remat``, sqrt(K) of them need the least memory
        and one more forward pass.
      unroll_steps: steps per iteration of the compiled loop; True leaves no loop, which compiles
        longer and runs faster where a step is small, or has XLA's convolutions on a CPU. Without a
        loop a CPU's compiler stores again what ``remat`` and ``segments`` would recompute.
    """

    remat: bool = False
    segments: int = 1
    unroll_steps: int | bool = 1


class Unrolled(NamedTuple):
    """``params`` after K steps, the last ``carry``, and ``probes`` with leading axis K."""

    params: Params
    carry: PyTree
    probes: PyTree


def sgd_step(
    loss_fn: Callable[..., Any],
    lr: Params | Array | float,
    *,
    clip: Array | float | None = None,
    model_state: PyTree = None,
) -> InnerStep:
    """Gradient descent with one rate, or a rate for every parameter.

    Args:
      loss_fn: ``(params, batch) -> losses``, averaged here; with a ``model_state``,
        ``(params, model_state, batch) -> (losses, model_state)``, carried from step to step.
      lr: a scalar, or a pytree like the parameters. Differentiable.
      clip: bound of each gradient element; None disables. Its derivative is 0 beyond the bound.
      model_state: the network's other state at the first step; None if ``loss_fn`` has none.

    Example:
        >>> import cljax
        >>> step = cljax.sgd_step(lambda w, x: (w - x) ** 2, 0.25)
        >>> float(cljax.unroll(step, jnp.zeros(()), jnp.ones((2, 1))).params)  # 0, 0.5, 0.75
        0.75
    """
    check_callable(loss_fn=loss_fn)
    stateful = model_state is not None

    def gradient(params: Params, carry: PyTree, batch: PyTree) -> tuple[Params, PyTree]:
        def mean_loss(params: Params) -> tuple[Array, PyTree]:
            if stateful:
                losses, state = loss_fn(params, carry, batch)
                return jnp.mean(losses), state
            return jnp.mean(loss_fn(params, batch)), carry

        return jax.grad(mean_loss, has_aux=True)(params)

    def apply(params: Params, carry: PyTree, gradient: Params) -> tuple[Params, PyTree]:
        gradient = tree.clip_elements(gradient, clip)
        if jax.tree.structure(lr) == jax.tree.structure(params):
            return jax.tree.map(lambda p, a, g: p - a * g, params, lr, gradient), carry
        return tree.add_scaled(params, gradient, -lr), carry  # type: ignore[operator]

    return InnerStep(lambda params: model_state if stateful else (), gradient, apply)


def optax_step(loss_fn: Callable[[Params, PyTree], Array], optimizer: Any) -> InnerStep:
    """Steps of any ``optax.GradientTransformation`` on the mean of ``loss_fn(params, batch)``.

    Raises:
      UserError: for what is no such transformation.
    """
    check_callable(loss_fn=loss_fn)
    check_transformation(optimizer)

    def gradient(params: Params, carry: PyTree, batch: PyTree) -> tuple[Params, PyTree]:
        return jax.grad(lambda p: jnp.mean(loss_fn(p, batch)))(params), carry

    def apply(params: Params, carry: PyTree, gradient: Params) -> tuple[Params, PyTree]:
        updates, carry = optimizer.update(gradient, carry, params)
        return jax.tree.map(jnp.add, params, updates), carry

    return InnerStep(optimizer.init, gradient, apply)


def split(batch: PyTree, num_steps: int) -> PyTree:
    """Cuts leaves ``[B, ...]`` into consecutive chunks ``[num_steps, B / num_steps, ...]``.

    Raises:
      UserError: if B is not a multiple of ``num_steps``.

    Example:
        >>> import cljax
        >>> cljax.inner_loop.split({"x": jnp.arange(6)}, 3)["x"].tolist()
        [[0, 1], [2, 3], [4, 5]]
    """
    check_positive(inner_steps=num_steps)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % num_steps:
        raise UserError(
            f"inner_steps is {num_steps}, which does not divide the batch of {size} examples; "
            "choose a divisor of the batch size."
        )
    return jax.tree.map(lambda a: a.reshape(num_steps, size // num_steps, *a.shape[1:]), batch)


def unroll(
    step: InnerStep,
    params: Params,
    batches: PyTree,
    *,
    carry: PyTree = None,
    order: int = 1,
    last: int | None = None,
    loop: LoopOptions = LoopOptions(),  # noqa: B008, it is immutable
    probe_fn: Callable[[Params], PyTree] | None = None,
) -> Unrolled:
    """Runs one inner step on each of K batches, differentiably.

    Args:
      step: the update rule, for instance ``sgd_step(loss_fn, lr)``.
      params: where the inner loop starts.
      batches: pytree with leading axis K >= 0, one entry a step; see ``split``.
      carry: what the rule starts with; default ``step.init(params)``.
      order: 2 differentiates through every gradient, and so reaches the batches; 1 treats
        gradients as constants.
      last: how many of the steps, from the end, gradients flow through; None is all K. The
        parameters and the carry before them are constants, also where a probe sees them.
      loop: how the loop is compiled, and what its backward pass computes again.
      probe_fn: evaluated at every inner state theta_1..theta_K.

    Returns:
      ``Unrolled(params, carry, probes)``.

    Raises:
      UserError: if ``order`` is neither 1 nor 2, ``last`` is not in 0..K, or ``segments`` does
        not divide ``last``.

    Example:
        The derivative of a loss after two steps with respect to the rate of the steps:

        >>> import cljax
        >>> loss = lambda w, x: (w - x) ** 2
        >>> def after(lr):
        ...     step = cljax.sgd_step(loss, lr)
        ...     return cljax.unroll(step, jnp.zeros(()), jnp.ones((2, 1)), order=2).params
        >>> float(jax.grad(after)(0.25))  # of 1 - (1 - 2 lr)^2
        2.0
    """
    num_steps = jax.tree.leaves(batches)[0].shape[0]
    num_early = num_steps - _num_differentiated(num_steps, order, last, loop)

    def body(apply: Callable[..., Any], state: Any, batch: PyTree) -> tuple[Any, PyTree]:
        params, carry = state
        gradient, carry = step.gradient(params, carry, batch)
        if order == 1:
            gradient, carry = jax.lax.stop_gradient((gradient, carry))
        state = apply(params, carry, gradient)
        return state, None if probe_fn is None else probe_fn(state[0])

    def constant(*args: PyTree) -> tuple[Params, PyTree]:
        return jax.lax.stop_gradient(step.apply(*args))

    state = (params, step.init(params) if carry is None else carry)
    early = []
    if num_early:
        head = jax.tree.map(lambda a: a[:num_early], batches)
        batches = jax.tree.map(lambda a: a[num_early:], batches)
        whole = loop._replace(segments=1)
        # Stopping the start as well spares the loop from carrying derivatives that are zero.
        state, probes = _scan(partial(body, constant), jax.lax.stop_gradient(state), head, whole)
        early.append(probes)
    (params, carry), probes = _scan(partial(body, step.apply), state, batches, loop)
    probes = jax.tree.map(lambda *a: jnp.concatenate(a), *early, probes)
    return Unrolled(params, carry, probes)


def _num_differentiated(num_steps: int, order: int, last: int | None, loop: LoopOptions) -> int:
    """How many steps gradients flow through; or it says what is wrong with the options."""
    if not isinstance(loop, LoopOptions):
        raise UserError(
            f"loop is {in_words(loop)}, but it must be a cljax.inner_loop.LoopOptions, such as "
            "LoopOptions(remat=True)."
        )
    check_positive(order=order, segments=loop.segments)
    check_flag(remat=loop.remat)
    if loop.unroll_steps is not True:
        check_positive(unroll_steps=loop.unroll_steps)
    if order > 2:
        raise UserError(f"order is {order}, but a meta-gradient is of order 1 or 2.")
    through = num_steps if last is None else last
    if isinstance(through, bool) or not isinstance(through, int) or not 0 <= through <= num_steps:
        raise UserError(
            f"last is {in_words(last)}, but it must be a whole number from 0 to {num_steps}."
        )
    if through % loop.segments:
        raise UserError(f"segments is {loop.segments}, which does not divide the {through} steps.")
    return through


def scan(
    body: Callable[[Any, PyTree], tuple[Any, PyTree]],
    state: Any,
    xs: PyTree,
    length: int | None = None,
    *,
    unroll_steps: int | bool,
) -> tuple[Any, PyTree]:
    """``jax.lax.scan``, but True leaves no loop of a single step either."""
    sizes = [length] if length is not None else [len(a) for a in jax.tree.leaves(xs)]
    if unroll_steps is True and sizes[:1] == [1]:
        state, outputs = body(state, jax.tree.map(lambda a: a[0], xs))
        return state, jax.tree.map(lambda a: jnp.asarray(a)[None], outputs)
    return jax.lax.scan(body, state, xs, length, unroll=unroll_steps)


def _scan(
    body: Callable[[Any, PyTree], tuple[Any, PyTree]],
    state: Any,
    batches: PyTree,
    loop: LoopOptions,
) -> tuple[Any, PyTree]:
    """``jax.lax.scan`` of ``body``, with a step or a segment recomputed in the backward pass."""
    # A loop of its own keeps the recomputation from being merged with the forward pass; without
    # loops, only a barrier does.
    alone = loop.unroll_steps is True
    checkpoint = partial(jax.checkpoint, prevent_cse=alone)  # type: ignore[arg-type]
    steps = partial(scan, unroll_steps=loop.unroll_steps)
    if loop.remat:
        body = checkpoint(body)
    if loop.segments == 1:
        return steps(body, state, batches)
    state, probes = steps(checkpoint(partial(steps, body)), state, split(batches, loop.segments))
    return state, jax.tree.map(lambda a: jax.lax.collapse(a, 0, 2), probes)
