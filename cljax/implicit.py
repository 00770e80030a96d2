"""Implicit bilevel gradients: through where an inner problem ends, not through its steps.

    theta    ~ argmin_t inner(t, data) + damping / 2 |t - start|^2
    A        = H + damping I,   H = d2 inner / dtheta dtheta
    A q      = d outer / dtheta
    d outer / d data = -(d2 inner / d data dtheta) q

By the implicit function theorem (Pedregosa, arXiv:1602.02355); the damping is the pull towards
``start`` of implicit MAML (Rajeswaran et al., arXiv:1909.04630). The system is solved without
forming H, from products H v alone, which cost about two gradients each:

    cg       conjugate gradients: exact after as many steps as A has distinct eigenvalues
    neumann  q_n = step_size sum_{j<n} (I - step_size A)^j d outer / dtheta
             (Lorraine et al., arXiv:1911.02590): the gradient through the last n steps of
             descent with rate ``step_size``, if theta did not move (``cljax.unroll``)

Memory does not grow with the number of steps that led to theta.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cljax.errors import UserError, check_finite, check_known, check_positive
from cljax.inner_loop import loop
from cljax.types import Array, Params, PyTree

__all__ = ["implicit_gradient"]

_dot = partial(jnp.vdot, precision="highest")


def implicit_gradient(
    inner: Callable[[Params, PyTree], Array],
    outer: Callable[[Params], Array],
    params: Params,
    data: PyTree,
    *,
    damping: Array | float,
    iterations: int,
    solver: Literal["cg", "neumann"] = "cg",
    step_size: Array | float | None = None,
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
      iterations: steps of the solver, each a Hessian-vector product. Those of conjugate gradients
        change nothing more once the residual is at rounding error.
      solver: "cg" or "neumann".
      step_size: of the Neumann series, between 0 and 2 over the largest eigenvalue of A.
      unroll_steps: iterations per turn of the compiled loop, as ``cljax.unroll``'s; True leaves
        no loop, which runs faster where ``inner`` convolves on a CPU.

    Returns:
      The outer value ``[]``, and a pytree like ``data``.

    Raises:
      UserError: if the solver is not known, ``iterations`` is below 1, ``damping`` or
        ``step_size`` is not finite, a leaf of the data holds no floats, or ``step_size`` is
        missing from "neumann" or given to "cg".
    """
    check_known("solver", solver, ("cg", "neumann"))
    check_positive(iterations=iterations)
    check_finite(damping=damping, **({} if step_size is None else {"step_size": step_size}))
    if (solver == "neumann") != (step_size is not None):
        raise UserError(
            f"step_size is {step_size} with the solver '{solver}', but 'neumann' needs one, "
            "between 0 and 2 over the largest eigenvalue, and 'cg' takes none."
        )
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

    step, state = _cg(product, slope) if step_size is None else _neumann(product, slope, step_size)
    body = lambda state, _: (step(state), None)
    (q, *_), _ = loop(body, state, None, iterations, unroll_steps=unroll_steps)
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
