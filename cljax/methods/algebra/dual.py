"""The quadratic programme of GEM, in fixed shape and inside jit.

    minimise  v' P v / 2 + b' v   subject to  v_i >= lower_i   for the active i;  v_i = 0 else

First every constraint is scaled to P_ii = 1, so that rounding is relative to each of them: the
gradient of a task that is all but learned counts as exactly as the others. Then, with
u = v - lower and q = b + P lower, the conditions of optimality are

    w = P u + q >= 0,   u >= 0,   u' w = 0

1. Block principal pivoting: a guess of which u are free is corrected wherever it breaks a
   condition, while that helps. A few linear solves, nearly always enough.
2. Else an active set: the most broken condition is freed, and u goes towards the solution of what
   is free, as far as it stays feasible. Every solution it reaches is lower than the one before,
   so no set comes back, and it ends.
3. The conditions are checked. Where they do not hold, P has negative curvature or hides its
   solution: rounding makes that of many gradients of nearly one direction, and of those that
   nearly cancel. Then the solution of P + delta I is taken, of constraints scaled to P_ii = 1,
   with delta the square root of the unit of the last place, or 10 or 100 times that. The authors'
   code adds 0.001 to P as it is, always.
4. The conditions of that are checked. A point that breaks them is not returned: it is NaN.

Sources: Judice, Pires, "A block principal pivoting algorithm for large-scale strictly monotone
linear complementarity problems", Computers & Operations Research 1994; Lawson, Hanson, "Solving
Least Squares Problems", 1974, chapter 23.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from cljax.types import Array

__all__ = ["kkt_residual", "solve_qp"]

_PATIENCE = 3  # exchanges of all broken conditions without progress, before the active set
_NOISE = 16.0  # units of the last place by which rounding may break a condition
_SOLVED = 50.0  # of the residual, for each constraint, at a solution
_DELTAS = (0.0, 1.0, 10.0, 100.0)  # of the diagonal, in roots of the unit of the last place


class _Scaled(NamedTuple):
    """The problem in u with P_ii = 1 and |q| at most 1."""

    p: Array  # [T, T], 0 outside the active rows and columns
    q: Array  # [T]
    terms: Array  # [T], sizes of what q is a sum of: its rounding is relative to them
    active: Array  # [T] bool, without rows of zeros
    unit: Array  # [T], v = lower + unit * u


class _Point(NamedTuple):
    u: Array  # [T], at least 0
    free: Array  # [T] bool, where it may be above
    done: Array  # [] bool


def solve_qp(
    p: Float[Array, "T T"],
    b: Float[Array, " T"],
    lower: Float[Array, " T"],
    active: Bool[Array, " T"],
    max_steps: int | None = None,
) -> Float[Array, " T"]:
    """The minimiser v; inactive entries are 0. All NaN where none was found.

    Where P is singular it is one of the minimisers, which all have the same P v; where a row is
    zero (its diagonal below 1e-31 in single precision: products underflow), v is ``lower``.

    Args:
      p: symmetric and positive semidefinite where active.
      max_steps: linear solves of the active set at most; None: 30 T, of which some T are needed.
    """
    problem = _scaled(p, b, lower, active)
    most = 30 * len(b) if max_steps is None else max_steps
    unit = jnp.sqrt(jnp.finfo(p.dtype).eps)

    def unsolved(carry: tuple[Array, Array, Array]) -> Array:
        _, solved, tries = carry
        return ~solved & (tries < len(_DELTAS))

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        delta = unit * jnp.asarray(_DELTAS, p.dtype)[carry[2]]
        own = problem._replace(p=problem.p + jnp.diag(jnp.where(problem.active, delta, 0.0)))
        u = _active_set(own, _pivoting(own), most).u
        bound = _SOLVED * len(u) * jnp.finfo(u.dtype).eps
        return u, _residual(own, u) <= bound, carry[2] + 1

    none = jnp.zeros_like(problem.q), jnp.asarray(False), jnp.zeros((), jnp.int32)
    u, solved, _ = jax.lax.while_loop(unsolved, attempt, none)
    return jnp.where(solved, jnp.where(active, lower + problem.unit * u, 0.0), jnp.nan)


def kkt_residual(
    p: Float[Array, "T T"],
    b: Float[Array, " T"],
    lower: Float[Array, " T"],
    active: Bool[Array, " T"],
    v: Float[Array, " T"],
) -> Float[Array, ""]:
    """How far v is from the minimiser, relative to each constraint: 0 at the solution.

    With constraints scaled to P_ii = 1, the largest of ``|min(u, w)|`` over the active entries,
    each relative to the terms that its w is a sum of.
    """
    problem = _scaled(p, b, lower, active)
    return _residual(problem, jnp.where(active, (v - lower) / problem.unit, 0.0))


def _scaled(p: Array, b: Array, lower: Array, active: Array) -> _Scaled:
    diagonal = jnp.diag(p)
    # A row of zeros constrains nothing; products of gradients below that have underflowed.
    info = jnp.finfo(p.dtype)
    active = active & (diagonal >= info.tiny / info.eps)
    each = jnp.where(active, 1 / jnp.sqrt(jnp.where(active, diagonal, 1.0)), 1.0)
    p = jnp.where(active[:, None] & active[None], p, 0.0) * each[:, None] * each[None]
    b, lower = (jnp.where(active, a, 0.0) for a in (b * each, lower / each))
    terms = jnp.abs(b) + jnp.abs(p) @ jnp.abs(lower)
    largest = jnp.max(terms, initial=0.0)
    unit = jnp.where(largest > 0, largest, 1.0)
    return _Scaled(p, (b + p @ lower) / unit, terms / unit, active, unit * each)


def _slope(problem: _Scaled, u: Array) -> tuple[Array, Array]:
    """w = P u + q, and the sizes of the terms that it is a sum of."""
    return problem.p @ u + problem.q, jnp.abs(problem.p) @ jnp.abs(u) + problem.terms


def _residual(problem: _Scaled, u: Array) -> Array:
    w, terms = _slope(problem, u)
    gap = jnp.abs(jnp.minimum(u, w)) / jnp.where(terms > 0, terms, 1.0)
    return jnp.max(jnp.where(problem.active, gap, 0.0), initial=0.0)


def _solution(problem: _Scaled, free: Array) -> Array:
    """u with w = 0 where free, and 0 elsewhere, which may be infeasible.

    Gradients of one direction make P singular. So it is factorised with what rounding may hide
    added to its diagonal, which two steps of refinement take out of the solution again.
    """
    p = jnp.where(free[:, None] & free[None], problem.p, 0.0)
    hidden = 10 * len(free) * jnp.finfo(p.dtype).eps
    factor = jax.scipy.linalg.cho_factor(p + jnp.diag(jnp.where(free, hidden, 1.0)), lower=True)
    target = jnp.where(free, -problem.q, 0.0)
    u = jax.scipy.linalg.cho_solve(factor, target)
    for _ in range(2):
        u = u + jax.scipy.linalg.cho_solve(factor, target - p @ u)
    return u


def _pivoting(problem: _Scaled) -> _Point:
    """Exchanges all broken conditions at once, while that makes fewer of them."""
    eps = _NOISE * jnp.finfo(problem.p.dtype).eps

    def broken(free: Array, u: Array) -> Array:
        w, terms = _slope(problem, u)
        return problem.active & (jnp.where(free, u, w) < -eps * terms)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return jnp.any(carry[2]) & (carry[4] >= 0)

    def exchange(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        free, _, wrong, fewest, patience = carry
        free = free ^ wrong
        u = _solution(problem, free)
        wrong = broken(free, u)
        count = jnp.sum(wrong)
        patience = jnp.where(count < fewest, _PATIENCE, patience - 1)
        return free, u, wrong, jnp.minimum(fewest, count), patience

    none = jnp.zeros_like(problem.active)
    first = problem.active & (problem.q < 0)
    carry = (none, jnp.zeros_like(problem.q), first, jnp.asarray(len(none) + 1), jnp.asarray(0))
    free, u, wrong, _, _ = jax.lax.while_loop(unfinished, exchange, carry)
    u = jnp.maximum(u, 0.0)
    return _Point(u, free & (u > 0), ~jnp.any(wrong))


class _Walk(NamedTuple):
    point: _Point
    step: Array  # []
    lowest: Array  # [], objective of the last solution
    entered: Array  # [T] bool, what was freed last
    barred: Array  # [T] bool, what was freed since then without coming lower: rounding


def _active_set(problem: _Scaled, start: _Point, max_steps: int) -> _Point:
    """Lawson and Hanson's algorithm from a feasible point; nothing to do where it is done."""
    eps = _NOISE * jnp.finfo(problem.p.dtype).eps
    places = jnp.arange(len(problem.q))

    def walk(at: _Walk) -> _Walk:
        u, free, _ = at.point
        towards = _solution(problem, free)
        out = free & (towards < 0)
        share = jnp.where(out, u / jnp.where(out, u - towards, 1.0), 1.0)
        stays = free & ~(out & (share <= jnp.min(share)))
        u = jnp.where(stays, jnp.maximum(u + jnp.min(share) * (towards - u), 0.0), 0.0)
        # Unless something left, this is the solution of what is free, and more may be freed.
        arrived = ~jnp.any(out)
        w, terms = _slope(problem, u)
        height = 0.5 * jnp.sum(u * (w + problem.q))
        lower = arrived & (height < at.lowest)
        barred = jnp.where(lower, False, at.barred | (arrived & at.entered))
        outside = problem.active & ~stays & ~barred
        below = jnp.where(outside, w / jnp.where(terms > 0, terms, 1.0), jnp.inf)
        enters = arrived & (places == jnp.argmin(below)) & (below < -eps)
        point = _Point(u, stays | enters, arrived & ~jnp.any(enters))
        lowest = jnp.where(lower, height, at.lowest)
        return _Walk(point, at.step + 1, lowest, jnp.where(arrived, enters, at.entered), barred)

    none, zero = jnp.zeros_like(problem.active), jnp.zeros((), jnp.int32)
    begin = _Walk(start, zero, jnp.full((), jnp.inf, problem.q.dtype), none, none)
    unfinished = lambda at: ~at.point.done & (at.step < max_steps)
    return jax.lax.while_loop(unfinished, walk, begin).point
