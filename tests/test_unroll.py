"""The inner loop against closed forms, finite differences and itself in every mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cljax
from cljax.errors import UserError


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return ((hidden - y) ** 2).sum(axis=-1)


@pytest.fixture(name="problem")
def _problem():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 6)
        params = {"w": jax.random.normal(keys[0], (3, 2)), "b": jax.random.normal(keys[1], (2,))}
        alpha = jax.tree.map(lambda p: 0.1 + 0.05 * jnp.sin(7 * p), params)
        batch = (jax.random.normal(keys[2], (6, 3)), jax.random.normal(keys[3], (6, 2)))
        probe = (jax.random.normal(keys[4], (5, 3)), jax.random.normal(keys[5], (5, 2)))
        yield params, alpha, cljax.split(batch, 3), probe


def objective(batches, probe, **options):
    def value(params, alpha):
        out = cljax.unroll(
            cljax.sgd_step(loss, alpha), params, batches,
            probe_fn=lambda p: loss(p, probe).mean(), **options,
        )  # fmt: skip
        return out.probes.mean()

    return value


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def test_second_order_equals_finite_differences(problem):
    params, alpha, batches, probe = problem
    value = objective(batches, probe, order=2)
    for argument in (0, 1):
        gradient = jax.grad(value, argnums=argument)(params, alpha)
        for leaf in ("w", "b"):
            tree = (params, alpha)[argument]
            flat = np.asarray(tree[leaf]).ravel()
            for i in range(flat.size):
                step = np.zeros_like(flat)
                step[i] = 1e-5
                moved = [
                    {**tree, leaf: jnp.asarray((flat + sign * step).reshape(tree[leaf].shape))}
                    for sign in (1, -1)
                ]
                values = [value(m, alpha) if argument == 0 else value(params, m) for m in moved]
                expected = (values[0] - values[1]) / 2e-5
                np.testing.assert_allclose(gradient[leaf].ravel()[i], expected, atol=1e-8)


def test_first_order_equals_its_closed_form(problem):
    """dW = mean m_i and dA = -mean m_i * C_i, with C_i the sum of the inner gradients so far."""
    params, alpha, batches, probe = problem
    d_params, d_alpha = jax.grad(objective(batches, probe), argnums=(0, 1))(params, alpha)
    theta, total = params, jax.tree.map(jnp.zeros_like, params)
    expected_w, expected_a = total, total
    for i in range(3):
        chunk = jax.tree.map(lambda a, i=i: a[i], batches)
        gradient = jax.grad(lambda p, c=chunk: loss(p, c).mean())(theta)
        total = cljax.tree.add_scaled(total, gradient, 1.0)
        theta = jax.tree.map(lambda p, a, c: p - a * c, params, alpha, total)
        meta = jax.grad(lambda p: loss(p, probe).mean())(theta)
        expected_w = cljax.tree.add_scaled(expected_w, meta, 1 / 3)
        product = jax.tree.map(jnp.multiply, meta, total)
        expected_a = cljax.tree.add_scaled(expected_a, product, -1 / 3)
    assert_trees_close(d_params, expected_w, 1e-12)
    assert_trees_close(d_alpha, expected_a, 1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("options", [{"remat": True}, {"unroll_steps": True}, {"unroll_steps": 2}])
def test_rematerialised_and_unrolled_equal_the_plain_loop(problem, order, options):
    params, alpha, batches, probe = problem
    plain = jax.value_and_grad(objective(batches, probe, order=order), argnums=(0, 1))
    other = jax.value_and_grad(objective(batches, probe, order=order, **options), argnums=(0, 1))
    assert_trees_close(plain(params, alpha), other(params, alpha), 1e-13)


def test_orders_differ_and_agree_for_one_step_of_params(problem):
    params, alpha, batches, probe = problem
    first, second = (jax.grad(objective(batches, probe, order=o))(params, alpha) for o in (1, 2))
    assert float(jnp.abs(first["w"] - second["w"]).max()) > 1e-4


def test_optax_sgd_equals_our_step(problem):
    params, _, batches, probe = problem
    ours = cljax.unroll(cljax.sgd_step(loss, 0.1), params, batches)
    theirs = cljax.unroll(cljax.optax_step(loss, optax.sgd(0.1)), params, batches)
    assert_trees_close(ours.params, theirs.params, 1e-14)


def test_an_optimiser_keeps_its_moments_between_steps(problem):
    params, _, batches, _ = problem
    optimizer = optax.adam(0.1)
    out = cljax.unroll(cljax.optax_step(loss, optimizer), params, batches)
    state, expected = optimizer.init(params), params
    for i in range(3):
        chunk = jax.tree.map(lambda a, i=i: a[i], batches)
        gradient = jax.grad(lambda p, c=chunk: loss(p, c).mean())(expected)
        updates, state = optimizer.update(gradient, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_trees_close(out.params, expected, 1e-12)


def test_model_state_is_carried(problem):
    params, _, batches, _ = problem

    def counting(params, count, batch):
        return loss(params, batch), count + 1

    step = cljax.sgd_step(counting, 0.1, model_state=jnp.int32(5))
    assert int(cljax.unroll(step, params, batches).carry) == 8


def test_element_clipping_bounds_each_step(problem):
    params, _, batches, _ = problem
    step = cljax.sgd_step(loss, 1.0, clip=1e-3)
    out = cljax.unroll(step, params, batches)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, out.params)
    assert max(jax.tree.leaves(moved)) <= 3.0001e-3


def test_bad_orders_and_splits_are_refused(problem):
    params, alpha, batches, probe = problem
    with pytest.raises(UserError, match="order is 3"):
        objective(batches, probe, order=3)(params, alpha)
    with pytest.raises(UserError, match="does not divide"):
        cljax.split(jnp.zeros((10, 2)), 3)
