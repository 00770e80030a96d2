"""Implicit bilevel gradients: through where an inner problem ends, not through its steps.

    theta    ~ argmin_t inner(t, data) + damping / 2 |t - start|^2
    A        = H + damping I,   H = d2 inner / dtheta dtheta
    A q      = d outer / dtheta
    d outer / d data = -(d2 inner / d data dtheta) q

By the implicit function theorem (Pedregosa, arXiv:1602.02355); the damping is the pull towards
``start`` of implicit MAML (Rajeswaran et al., arXiv:1909.04630). The system is solved without
forming H, from products H v alone, which cost about two gradients each:

    ConjugateGradients  exact after as many steps as A has distinct eigenvalues
    Neumann  q_n = step_size sum_{j<n} (I - step_size A)^j d outer / dtheta
             (Lorraine et al., arXiv:1911.02590): the gradient through the last n steps of
             descent with rate ``step_size``, if theta did not move (``cljax.unroll``)

Memory does not grow with the number of steps that led to theta.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cljax.errors import UserError, check_finite, check_positive, in_words
from cljax.inner_loop import scan
from cljax.types import Array, Params, PyTree

__all__ = ["ConjugateGradients", "Neumann", "implicit_gradient"]

_dot = partial(jnp.vdot, precision="highest")


class ConjugateGradients(NamedTuple):
    """A solver whose further steps change nothing once the residual is at rounding error."""

    iterations: int  # each a Hessian-vector product


class Neumann(NamedTuple):
    """The Neumann series, a term a Hessian-vector product."""

    iterations: int  # terms
    step_size: Array | float  # between 0 and 2 over the largest eigenvalue of A


def implicit_gradient(
    inner: Callable[[Params, PyTree], Array],
    outer: Callable[[Params], Array],
    params: Params,
    data: PyTree,
    *,
    damping: Array | float,
    solver: ConjugateGradients | Neumann,
    unroll_steps: int | bool = 1,
) -> tuple[Array, PyTree]:
    """``outer`` at a solution of the inner problem, and its gradient with respect to the data.

    Exact where ``params`` is stationary for ``inner(params, data) + damping / 2 |params -
    start|^2``; ``start`` itself does not matter here. A part of ``outer`` that depends on the
    data directly is the caller's to add.

    Args:
      inner: ``(params, data) -> []``, twice differentiable.
      outer: ``params -> []``.
      params: theta, leaves of floats.
      data: what to differentiate by, leaves of floats; labels belong in ``inner``'s closure.
      damping: added to the Hessian; must make it positive definite.
      solver: of the linear system.
      unroll_steps: iterations per turn of the compiled loop, as ``cljax.unroll``'s; True leaves
        no loop, which runs faster where ``inner`` has XLA's convolutions on a CPU.

    Returns:
      The outer value ``[]``, and a pytree like ``data``.

    Raises:
      UserError: for a solver that is none, ``iterations`` below 1, a ``damping`` or a
        ``step_size`` that is not finite, or a leaf of the data that holds no floats.
    """
    if not isinstance(solver, (ConjugateGradients, Neumann)):
        raise UserError(
            f"solver is {in_words(solver)}, but it must be a ConjugateGradients or a Neumann of "
            "cljax.implicit, such as ConjugateGradients(10)."
        )
    check_positive(iterations=solver.iterations)
    check_finite(damping=damping)
    if isinstance(solver, Neumann):
        check_finite(step_size=solver.step_size)
    for leaf in jax.tree.leaves(data):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UserError(
                f"data has a leaf of type {jnp.result_type(leaf)}, but only floats have a "
                "gradient; let inner close over the others."
            )

    value, slope = jax.value_and_grad(outer)(params)
    slope, unravel = ravel_pytree(slope)
    damping = jnp.asarray(damping, slope.dtype)
    # One linearisation serves every product: the gradients' derivatives along a direction v of
    # the parameters are H v and (d2 inner / d data dtheta) v.
    gradients = lambda p: jax.grad(inner, argnums=(0, 1))(p, data)
    along = jax.linearize(gradients, params)[1]

    def product(v: Array) -> Array:
        return ravel_pytree(along(unravel(v))[0])[0] + damping * v

    if isinstance(solver, Neumann):
        step, state = _neumann(product, slope, solver.step_size)
    else:
        step, state = _cg(product, slope)
    body = lambda state, _: (step(state), None)
    (q, *_), _ = scan(body, state, None, solver.iterations, unroll_steps=unroll_steps)
    return value, jax.tree.map(jnp.negative, along(unravel(q))[1])


def _cg(product: Callable[[Array], Array], slope: Array) -> tuple[Callable[..., tuple], tuple]:
    """A step of conjugate gradients on ``(q, residual, direction, |residual|^2)``, and its start.

    The method of Hestenes and Stiefel (1952). Once the residual is at rounding error the step
    lengths are 0, for later ones would divide nothing by nothing. ``jax.scipy`` has the same
    method in a loop that cannot be unrolled, over 10 times slower for convolutions on a CPU.
    """
    square = _dot(slope, slope)
    info = jnp.finfo(slope.dtype)
    negligible = info.eps**2 * square + info.tiny / info.eps

    def step(state: tuple) -> tuple:
        q, residual, direction, square = state
        live = square > negligible
        curved = product(direction)
        length = square / jnp.where(live, _dot(direction, curved), jnp.inf)
        residual = residual - length * curved
        smaller = _dot(residual, residual)
        turn = smaller / jnp.where(live, square, jnp.inf)
        return q + length * direction, residual, residual + turn * direction, smaller

    return step, (jnp.zeros_like(slope), slope, slope, square)


def _neumann(
    product: Callable[[Array], Array], slope: Array, step_size: Array | float
) -> tuple[Callable[..., tuple], tuple]:
    """A term of the Neumann series on ``(q,)``, by Horner's rule, and its start."""
    rate = jnp.asarray(step_size, slope.dtype)

    def step(state: tuple) -> tuple:
        (q,) = state
        return (q + rate * (slope - product(q)),)

    return step, (jnp.zeros_like(slope),)
