"""GEM's dual against quadprog: never a wrong point without a word."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
import support
from scipy.optimize import nnls

import cljax
from cljax.methods.algebra import dual
from cljax.methods.algebra.dual import kkt_residual, solve_qp
from cljax.methods.gem import gem_coefficients

RIDGE = 1e-3  # of the code released with La-MAML


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(size, max_steps=None):
    return jax.jit(functools.partial(solve_qp, max_steps=max_steps))


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def of_rank(share):
    return lambda rng, size: rng.normal(size=(size, max(1, int(share * size))))


def nearly_equal(rng, size):
    """Cosines of 1 - 1e-9, half of them against the others."""
    one, apart = unit(rng.normal(size=3 * size)), unit(rng.normal(size=(size, 3 * size)))
    return (one + np.sqrt(1e-9) * apart) * rng.choice([-1, 1], (size, 1))


def duplicated(rng, size):
    return rng.normal(size=(size, 2 * size))[rng.integers(0, (size + 2) // 3, size)]


def some_zero(rng, size):
    return rng.normal(size=(size, 2 * size)) * (rng.random((size, 1)) < 0.6)


def uneven(rng, size):
    return rng.normal(size=(size, size)) * 10 ** rng.uniform(-4, 2, (size, 1))


KINDS = {
    "rank T/4": of_rank(0.25),
    "rank T/2": of_rank(0.5),
    "rank 3T/4": of_rank(0.75),
    "rank T": of_rank(1.0),
    "rank 2T": of_rank(2.0),
    "nearly equal": nearly_equal,
    "duplicated": duplicated,
    "some zero": some_zero,
    "uneven": uneven,
}


def problem(kind, size, seed):
    """Gradients of past tasks [T, P], of the batch [P], and which tasks are there."""
    rng = np.random.default_rng([seed, size])
    m = KINDS[kind](rng, size)
    active = rng.random(size) < (0.7 if seed % 4 == 3 else 1.0)
    return m, rng.normal(size=m.shape[1]), active


def by_quadprog(m, g, active, margin, ridge):
    """The step g + M' v."""
    m = m[active]
    if not len(m):
        return g
    # In units of each gradient, which quadprog needs too; the problem is the same.
    d = np.sqrt((m**2).sum(axis=1) + ridge)
    p = m @ m.T / np.outer(d, d) + np.diag(ridge / d**2)
    lower = np.full(len(m), margin) * d
    u = quadprog.solve_qp(p, -(m @ g) / d, np.eye(len(m)), lower)[0]
    return g + (u / d) @ m


def by_ours(m, g, active, margin, ridge, dtype=np.float64):
    p = jnp.asarray(m @ m.T + ridge * np.eye(len(m)), dtype)
    args = p, jnp.asarray(m @ g, dtype), jnp.full(len(m), margin, dtype), jnp.asarray(active)
    v = compiled(len(m))(*args)
    assert kkt_residual(*args, v) <= 50 * len(m) * jnp.finfo(dtype).eps
    v = np.asarray(v, float)
    assert not v[~active].any() and (v[active] >= np.asarray(margin, dtype)).all()
    return g + v @ m


def distance(step, right):
    return np.linalg.norm(step - right) / np.linalg.norm(right)


def compare(kind, size, draws, margin):
    for seed in range(draws):
        m, g, active = problem(kind, size, seed)
        ours = by_ours(m, g, active, margin, RIDGE)
        assert distance(ours, by_quadprog(m, g, active, margin, RIDGE)) < 1e-7, seed


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_that_of_quadprog(kind, margin):
    for size, draws in ((5, 20), (20, 20), (50, 2), (100, 1)):
        compare(kind, size, draws, margin)


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_of_many_tasks_is_that_of_quadprog(kind, margin):
    for size in (50, 100):
        compare(kind, size, 20, margin)


# Of the step, in single precision; the dual of dependent gradients is as large as 1 / RIDGE.
TOLERANCE = {"rank T/4": 5e-3, "nearly equal": 5e-3}


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_follows_quadprog(kind):
    for size in (5, 20):
        for seed in range(20):
            m, g, active = problem(kind, size, seed)
            ours = by_ours(m, g, active, 0.0, RIDGE, np.float32)
            error = distance(ours, by_quadprog(m, g, active, 0.0, RIDGE))
            assert error < TOLERANCE.get(kind, 1e-3), seed


def projected(m, g):
    """The projection of g, to which no m is opposed: non-negative least squares."""
    length = np.linalg.norm(m, axis=1, keepdims=True)
    m = m / np.where(length > 0, length, 1.0)
    return g + nnls(m.T, -g, maxiter=10_000)[0] @ m


@pytest.mark.parametrize("kind", ["rank T/2", "duplicated", "some zero", "nearly equal", "uneven"])
def test_without_a_ridge_it_is_the_projection(kind):
    """P may be singular then: v is not unique, but the step is."""
    for seed in range(10):
        m, g, active = problem(kind, 20, seed)
        ours = by_ours(m, g, active, 0.0, 0.0)
        error = np.linalg.norm(ours - projected(m[active], g)) / np.linalg.norm(g)
        assert error < (1e-4 if kind == "nearly equal" else 1e-9), seed


@pytest.mark.parametrize("decades", [3, 5, 8])
@pytest.mark.parametrize("ridge", [0.0, 1e-20])
def test_small_gradients_hold_as_much_as_large_ones_in_single_precision(decades, ridge):
    """Tasks that are all but learned: their gradients are shorter by orders of magnitude."""
    rng = np.random.default_rng(decades)
    together = rng.normal(size=500)
    for _ in range(5):
        m = (together + rng.normal(size=(19, 500))) * 10 ** rng.uniform(-decades, 0, (19, 1))
        g = rng.normal(size=500) - 0.5 * together
        rows = np.float32(np.concatenate([m, g[None]]))
        gram = jnp.asarray(rows @ rows.T)
        c = gem_coefficients(gram, jnp.ones(19, bool), margin=0.0, ridge=ridge)
        step = np.asarray(c, float) @ np.concatenate([m, g[None]])
        assert distance(step, projected(m, g)) < 1e-5
        assert (unit(m) @ step > -1e-5 * np.linalg.norm(g)).all()


def hard(seed):
    """Problems, and their right steps, of which exchanges alone leave some unsolved."""
    m, g, active = problem("rank T/2", 20, seed)
    p, b = jnp.asarray(m @ m.T + RIDGE * np.eye(20)), jnp.asarray(m @ g)
    args = p, b, jnp.full(20, 0.5), jnp.asarray(active)
    return args, lambda v: distance(g + v @ m, by_quadprog(m, g, active, 0.5, RIDGE))


def test_some_problems_need_the_active_set():
    """Or nothing here would test it."""
    ends = jax.jit(lambda *args: dual._pivoting(dual._scaled(*args)).done)
    assert not all(bool(ends(*hard(seed)[0])) for seed in range(12))


@pytest.mark.parametrize("max_steps", [0, 2])
def test_what_is_left_unsolved_is_not_a_number(max_steps):
    solved = 0
    for seed in range(12):
        args, error = hard(seed)
        v = np.asarray(compiled(20, max_steps)(*args))
        assert np.isnan(v).all() or error(v) < 1e-7
        solved += not np.isnan(v).any()
    assert 0 < solved < 12


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_problem_that_is_not_finite_is_not_solved(wrong):
    m, g, active = problem("rank 2T", 5, 0)
    p, b = m @ m.T, m @ g
    for where in ("p", "b"):
        p_wrong, b_wrong = p.copy(), b.copy()
        if where == "p":
            p_wrong[1, 2] = p_wrong[2, 1] = wrong
        else:
            b_wrong[1] = wrong
        v = compiled(5)(*(jnp.asarray(a) for a in (p_wrong, b_wrong, np.zeros(5), active)))
        assert np.isnan(v).all(), where


def test_a_step_that_was_not_found_is_seen_in_the_loss(monkeypatch):
    monkeypatch.setattr(dual, "_SOLVED", -1.0)
    _, losses = support.run(support.bind(cljax.GEM(lr=0.1, per_task=3)), support.batches(9))
    assert np.isfinite(losses[:3]).all() and np.isnan(losses[-1])


def rounded(seed):
    """The dual of 99 gradients of nearly one direction, their products off by up to 1e-2."""
    rng, size = np.random.default_rng(seed), 99
    rank, spread = rng.choice([3, 8, 20, 49, size]), 10 ** rng.uniform(-4, 0)
    base = rng.normal(size=(rank, 300))
    own = rng.normal(size=(size, rank)) @ base
    common = rng.normal(size=300) * 10 ** rng.uniform(0, 2)
    grads = (common + own * spread) * 10 ** rng.uniform(-3, 0, size=(size, 1))
    current = -(common * rng.uniform(0, 1) + rng.normal(size=300))
    p, noise = grads @ grads.T, 10 ** rng.uniform(-7, -2)
    norms, off = np.sqrt(np.diag(p)), rng.normal(size=(size, size)) * noise
    p = (p + (off + off.T) * norms[:, None] * norms).astype(np.float32)
    b = (grads @ current).astype(np.float32)
    return p, b, np.full(size, 0.1, np.float32), np.ones(size, bool)


@pytest.mark.parametrize("seed", [*range(6), 585])  # of 600 the last one needs it
def test_a_matrix_that_rounding_made_indefinite_is_solved_nearly(seed, monkeypatch):
    with jax.enable_x64(False):
        problem = rounded(seed)
        found = compiled(99)(*problem)
        assert np.isfinite(found).all() and float(kkt_residual(*problem, found)) < 2e-3
        monkeypatch.setattr(dual, "_DELTAS", (0.0,))
        alone = jax.jit(lambda *problem: solve_qp(*problem))(*problem)
        assert np.isnan(alone).any() == (seed == 585)
        if seed != 585:
            np.testing.assert_array_equal(alone, found)


@pytest.mark.parametrize("size", [1e-18, 3e-19, 1e-25, 0.0])
def test_a_gradient_whose_products_underflow_constrains_nothing(size):
    """Its squares are near 1e-36, where single precision has lost most digits."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(False):
        grads, current = rng.normal(size=(6, 40)).astype(np.float32), rng.normal(size=40)
        grads[2] = np.float32(size) * rng.normal(size=40)
        p, b = grads @ grads.T, (grads @ current).astype(np.float32)
        p[2], p[:, 2] = p[2] * rng.normal(size=6), p[:, 2] * rng.normal(size=6)  # lost digits
        p[2, 2] = abs(p[2, 2])
        lower, every = np.full(6, 0.1, np.float32), np.ones(6, bool)
        found = np.asarray(compiled(6)(p, b, lower, every))
        others = compiled(6)(p, b, lower, np.arange(6) != 2)
        assert found[2] == lower[2] and np.isfinite(found).all()
        np.testing.assert_allclose(np.delete(found, 2), np.delete(others, 2), rtol=1e-5)
