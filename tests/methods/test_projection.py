"""The quadratic programme of GEM, and the gradients it projects."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

import cljax
from cljax.losses import classification_loss, masked_mean
from cljax.methods import groups
from cljax.methods.projection import kkt_residual, solve_qp
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


def stack(seed, n, r):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, r)) < 0.7
    mask[:, 0] = True
    return groups.Group(
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
        groups.general(loss_fn) if algebra == "general" else groups.low_rank(model, support.spec())
    )
    params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    stacks = (stack(0, 3, 4), stack(1, 1, 2))
    found = made(params, model_state, stacks)

    def loss(params, examples, mask):
        return masked_mean(loss_fn(params, model_state, examples)[0], mask)

    alone = [
        jax.grad(loss)(params, *support.at(tuple(s), i))
        for s in stacks
        for i in range(s.mask.shape[0])
    ]
    gram = [[cljax.tree.dot(a, b) for a in alone] for b in alone]
    np.testing.assert_allclose(found.gram, gram, atol=1e-12)
    weights = jnp.asarray([0.5, -1.0, 2.0, 1.0])
    combined = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *alone)
    support.assert_close(found.combine(weights), combined, 1e-12)


def test_low_rank_needs_a_first_product():
    model = cljax.nets.mlp(5)(4)._replace(first_product=None)
    with pytest.raises(cljax.errors.UserError, match="does not declare its first product"):
        groups.low_rank(model, support.spec())
