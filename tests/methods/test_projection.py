"""The quadratic programme of GEM, and the gradients it projects."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

import cljax
from cljax.losses import classification_loss, masked_mean
from cljax.methods.algebra import gradients
from cljax.methods.algebra.dual import kkt_residual, solve_qp
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def problem(seed, size, rank=None, spread=0.0, dtype=np.float64):
    """A Gram matrix of random gradients with a ridge, and their products with another."""
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(size, rank or size + 3)) * 10.0 ** rng.uniform(-spread, spread, (size, 1))
    g = rng.normal(size=m.shape[1])
    p = m @ m.T
    ridge = 1e-6 * np.trace(p) / size if dtype == np.float64 else 1e-3 * np.trace(p) / size
    return jnp.asarray(p + ridge * np.eye(size), dtype), jnp.asarray(m @ g, dtype)


SOLVE = jax.jit(solve_qp)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 20]), st.sampled_from([0.0, 0.5, 10.0]))
def test_the_solution_meets_the_optimality_conditions(seed, size, margin):
    with jax.enable_x64(True):
        p, b = problem(seed, size)
        active = jnp.asarray(np.random.default_rng(seed).random(size) < 0.8)
        lower = jnp.full(size, margin)
        v = SOLVE(p, b, lower, active)
        assert kkt_residual(p, b, lower, active, v) < 1e-8
        assert not np.asarray(v)[~np.asarray(active)].any()
        assert (np.asarray(v)[np.asarray(active)] >= margin).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([5, 20]))
def test_it_holds_in_single_precision(seed, size):
    with jax.enable_x64(True):
        p, b = problem(seed, size, dtype=np.float32)
        active, lower = jnp.ones(size, bool), jnp.zeros(size, jnp.float32)
        v = SOLVE(p, b, lower, active)
        assert v.dtype == jnp.float32 and kkt_residual(p, b, lower, active, v) < 1e-3


@pytest.mark.parametrize(("rank", "spread"), [(2, 0.0), (103, 1.5), (10, 1.0)])
def test_a_hundred_tasks_of_low_rank_or_uneven_size(rank, spread):
    p, b = problem(0, 100, rank, spread)
    active, lower = jnp.ones(100, bool), jnp.zeros(100)
    v = SOLVE(p, b, lower, active)
    assert kkt_residual(p, b, lower, active, v) < 1e-6


def test_it_equals_the_best_of_all_active_sets():
    for seed in range(20):
        p, b = (np.asarray(a) for a in problem(seed, 4))
        best = np.inf
        for free in np.ndindex(2, 2, 2, 2):
            chosen, v = np.flatnonzero(free), np.zeros(4)
            if len(chosen):
                v[chosen] = np.linalg.solve(p[np.ix_(chosen, chosen)], -b[chosen])
            if (v >= 0).all():
                best = min(best, 0.5 * v @ p @ v + b @ v)
        v = np.asarray(SOLVE(jnp.asarray(p), jnp.asarray(b), jnp.zeros(4), jnp.ones(4, bool)))
        np.testing.assert_allclose(0.5 * v @ p @ v + b @ v, best, atol=1e-9)


def test_it_is_the_same_under_vmap():
    problems = [problem(seed, 6) for seed in range(5)]
    p, b = (jnp.stack(part) for part in zip(*problems, strict=True))
    lower, active = jnp.zeros((5, 6)), jnp.ones((5, 6), bool)
    many = jax.jit(jax.vmap(solve_qp))(p, b, lower, active)
    single = jnp.stack([SOLVE(p[i], b[i], lower[i], active[i]) for i in range(5)])
    np.testing.assert_allclose(many, single, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from([0.0, 0.5]))
def test_it_equals_non_negative_least_squares(seed, size, margin):
    """With P = L L' and v = margin + u it is ``min |L' u + L^-1 (b + P margin)|, u >= 0``."""
    with jax.enable_x64(True):
        p, b = problem(seed, 20)
        active = np.random.default_rng(seed).permutation(20) < size
        v = np.asarray(SOLVE(p, b, jnp.full(20, margin), jnp.asarray(active)))
        inner = np.asarray(p)[np.ix_(active, active)]
        q = np.asarray(b)[active] + margin * inner.sum(axis=1)
        lower = np.linalg.cholesky(inner)
        u, _ = nnls(lower.T, -np.linalg.solve(lower, q))
        np.testing.assert_allclose(v[active], margin + u, rtol=1e-6, atol=1e-8)
        assert not v[~active].any()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 20]), st.sampled_from([0.0, 0.5]))
def test_single_precision_with_a_margin_and_inactive_tasks(seed, size, margin):
    with jax.enable_x64(True):
        p, b = problem(seed, size, dtype=np.float32)
        active = jnp.asarray(np.random.default_rng(seed).random(size) < 0.6)
        lower = jnp.full(size, margin, jnp.float32)
        v = SOLVE(p, b, lower, active)
        # Terms of P lower, that b does not show, are part of the scale of what is rounded.
        scale = 1 + margin * float(jnp.abs(p).sum(axis=1).max() / jnp.abs(b).max())
        assert kkt_residual(p, b, lower, active, v) < 1e-3 * scale
        assert not np.asarray(v)[~np.asarray(active)].any()


def test_the_residual_tells_a_solution_from_its_neighbours():
    p, b = problem(0, 6)
    lower, active = jnp.full(6, 0.5), jnp.ones(6, bool)
    v = SOLVE(p, b, lower, active)
    for i in range(6):
        assert kkt_residual(p, b, lower, active, v.at[i].add(1e-3)) > 1e-5
        assert kkt_residual(p, b, lower, active, v.at[i].set(0.4)) > 1e-3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(["float32", "float64"]))
def test_dependent_gradients_with_a_ridge_have_a_finite_solution(seed, rank, dtype):
    """Twenty gradients of few directions, sizes over six orders of magnitude."""
    with jax.enable_x64(True):
        p, b = problem(seed, 20, rank, 3.0, np.dtype(dtype).type)
        lower, active = jnp.zeros(20, dtype), jnp.ones(20, bool)
        v = SOLVE(p, b, lower, active)
        assert np.isfinite(v).all() and (v >= 0).all()
        tolerance = 1e-3 if dtype == "float32" else 1e-8
        assert kkt_residual(p, b, lower, active, v) < tolerance


def stack(seed, n, r):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, r)) < 0.7
    mask[:, 0] = True
    return gradients.Group(
        Examples(
            jnp.asarray(rng.normal(size=(n, r, support.NUM_INPUTS))),
            jnp.asarray(rng.integers(0, 4, (n, r)), jnp.int32),
            jnp.zeros((n, r), jnp.int32),
        ),
        jnp.asarray(mask),
    )


@pytest.mark.parametrize("algebra", ["general", "low-rank"])
def test_gradients_of_groups_are_those_of_each_group_alone(algebra):
    model = cljax.nets.mlp(5)(4)
    loss_fn = classification_loss(model, support.spec())
    made = (
        gradients.general(loss_fn)
        if algebra == "general"
        else gradients.low_rank(model, support.spec())
    )
    params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    stacks = (stack(0, 3, 4), stack(1, 1, 2))
    weights = jnp.asarray([0.5, -1.0, 2.0, 1.0])

    @jax.jit
    def of_groups(params):
        result = made(params, model_state, stacks)
        return result.gram, result.combine(weights)

    gram, combined = of_groups(params)

    @jax.jit
    @jax.grad
    def slope(params, examples, mask):
        return masked_mean(loss_fn(params, model_state, examples, mask)[0], mask)

    alone = [
        slope(params, *support.at(tuple(s), i)) for s in stacks for i in range(s.mask.shape[0])
    ]
    alone = jax.tree.map(lambda *g: np.stack(g), *alone)
    flat = np.concatenate([g.reshape(4, -1) for g in jax.tree.leaves(alone)], axis=1)
    np.testing.assert_allclose(gram, flat @ flat.T, atol=1e-12)
    by_hand = jax.tree.map(lambda g: np.tensordot(np.asarray(weights), g, 1), alone)
    support.assert_close(combined, by_hand, 1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_low_rank_groups_are_general_ones_with_padding_and_empty_groups(seed):
    with jax.enable_x64(True):
        found = [GROUPS[name](seed) for name in ("general", "low-rank")]
        support.assert_close(*found, 1e-12)
        loss, gram, _ = found[0]
        assert (
            loss[1] == 0 and not np.asarray(gram[1]).any() and (np.diag(gram)[[0, 2, 3]] > 0).all()
        )


@functools.lru_cache
def _model():
    return cljax.nets.mlp(5)(4)


def _groups(algebra):
    """Loss, Gram matrix and a combination for a seed, the second group empty, padding wild."""
    spec = support.spec()
    made = (
        gradients.low_rank(_model(), spec)
        if algebra == "low-rank"
        else gradients.general(classification_loss(_model(), spec))
    )

    @jax.jit
    def evaluate(params, stacks, weights):
        found = made(params, {}, stacks)
        return found.loss, found.gram, found.combine(weights)

    def of_seed(seed):
        first, second = stack(seed, 3, 4), stack(seed + 1, 1, 2)
        first = first._replace(mask=first.mask.at[1].set(False))
        x = jnp.where(first.mask[..., None], first.examples.x, 1e3)
        first = first._replace(examples=first.examples._replace(x=x))
        params = _model().init(jax.random.key(seed), jnp.zeros((1, 6))).params
        weights = jnp.asarray(np.random.default_rng(seed).normal(size=4))
        return evaluate(params, (first, second), weights)

    return of_seed


GROUPS = {name: _groups(name) for name in ("general", "low-rank")}


def test_low_rank_needs_a_first_product():
    model = cljax.nets.mlp(5)(4)._replace(first_product=None)
    with pytest.raises(cljax.errors.UserError, match="does not declare its first product"):
        gradients.low_rank(model, support.spec())
