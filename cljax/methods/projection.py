"""The quadratic programme of GEM, in fixed shape and inside jit.

    minimise  v' P v / 2 + b' v   subject to  v_i >= lower_i   for the active i;  v_i = 0 else

By block principal pivoting: with u = v - lower the conditions are a linear complementarity
problem, w = P u + q >= 0, u >= 0, u' w = 0. A guess of which u are free is corrected where it
breaks a condition, all at once while that helps, then one at a time, which always ends.

Source: Judice, Pires, "A block principal pivoting algorithm for large-scale strictly monotone
linear complementarity problems", Computers & Operations Research 1994.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from cljax.types import Array

__all__ = ["kkt_residual", "solve_qp"]

_PATIENCE = 3  # exchanges of all broken conditions without progress, before single ones


def solve_qp(
    p: Float[Array, "T T"],
    b: Float[Array, " T"],
    lower: Float[Array, " T"],
    active: Bool[Array, " T"],
    max_steps: int = 200,
) -> Float[Array, " T"]:
    """The minimiser v; inactive entries are 0.

    Args:
      p: symmetric and positive definite where active (add a ridge).
      max_steps: linear solves at most; far fewer are needed.
    """
    both = active[:, None] & active[None]
    p = jnp.where(both, p, 0.0)
    lower = jnp.where(active, lower, 0.0)
    q = jnp.where(active, b + p @ lower, 0.0)
    eye = jnp.eye(len(b), dtype=p.dtype)
    # Rounding of w is relative to the terms it is a sum of.
    eps = 16 * jnp.finfo(p.dtype).eps

    def solution(free: Array) -> tuple[Array, Array, Array]:
        inside = free[:, None] & free[None]
        factor = jax.scipy.linalg.cho_factor(jnp.where(inside, p, eye), lower=True)
        u = jax.scipy.linalg.cho_solve(factor, jnp.where(free, -q, 0.0))
        u = jnp.where(free, u, 0.0)
        w = p @ u + q
        broken_u = free & (u < 0)
        slack = eps * (jnp.abs(p) @ jnp.abs(u) + jnp.abs(q))
        broken_w = active & ~free & (w < -slack)
        return u, broken_u | broken_w, w

    def unfinished(carry: tuple[Array, ...]) -> Array:
        step, _, _, broken, _, _ = carry
        return jnp.any(broken) & (step < max_steps)

    def exchange(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, free, _, broken, best, patience = carry
        count = jnp.sum(broken)
        better = count < best
        patience = jnp.where(better, _PATIENCE, patience - 1)
        last = len(b) - 1 - jnp.argmax(broken[::-1])
        chosen = broken & ((patience >= 0) | (jnp.arange(len(b)) == last))
        free = free ^ chosen
        u, broken, _ = solution(free)
        return step + 1, free, u, broken, jnp.minimum(best, count), patience

    start = active & (q < 0)
    u, broken, _ = solution(start)
    size = jnp.asarray(len(b) + 1)
    zero = jnp.zeros((), jnp.int32)
    carry = (zero, start, u, broken, size, jnp.asarray(_PATIENCE))
    u = jax.lax.while_loop(unfinished, exchange, carry)[2]
    return jnp.where(active, lower + jnp.maximum(u, 0.0), 0.0)


def kkt_residual(
    p: Float[Array, "T T"],
    b: Float[Array, " T"],
    lower: Float[Array, " T"],
    active: Bool[Array, " T"],
    v: Float[Array, " T"],
) -> Float[Array, ""]:
    """How far v is from the minimiser, relative to the size of b: 0 at the solution.

    The largest of ``|min(v - lower, P v + b)|`` over the active entries.
    """
    p = jnp.where(active[:, None] & active[None], p, 0.0)
    gap = jnp.minimum(v - lower, p @ v + b)
    return jnp.max(jnp.where(active, jnp.abs(gap), 0.0)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30)
