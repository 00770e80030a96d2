"""The inner loop against closed forms, finite differences and itself in every mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cljax
from cljax.errors import UserError
from cljax.inner_loop import LoopOptions


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
        yield params, alpha, cljax.inner_loop.split(batch, 3), probe


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
@pytest.mark.parametrize(
    ("last", "loop"),
    [
        (None, LoopOptions(remat=True)),
        (None, LoopOptions(unroll_steps=True)),
        (None, LoopOptions(unroll_steps=2)),
        (3, LoopOptions(segments=3)),
        (None, LoopOptions(remat=True, segments=3, unroll_steps=True)),
    ],
)
def test_rematerialised_and_unrolled_equal_the_plain_loop(problem, order, last, loop):
    params, alpha, batches, probe = problem
    plain = jax.value_and_grad(objective(batches, probe, order=order), argnums=(0, 1))
    value = objective(batches, probe, order=order, last=last, loop=loop)
    other = jax.value_and_grad(value, argnums=(0, 1))
    assert_trees_close(plain(params, alpha), other(params, alpha), 1e-13)


def test_orders_differ_and_agree_for_one_step_of_params(problem):
    params, alpha, batches, probe = problem
    first, second = (jax.grad(objective(batches, probe, order=o))(params, alpha) for o in (1, 2))
    assert float(jnp.abs(first["w"] - second["w"]).max()) > 1e-4


def test_optax_sgd_equals_our_step(problem):
    params, _, batches, probe = problem
    ours = cljax.unroll(cljax.sgd_step(loss, 0.1), params, batches)
    theirs = cljax.unroll(cljax.inner_loop.optax_step(loss, optax.sgd(0.1)), params, batches)
    assert_trees_close(ours.params, theirs.params, 1e-14)


def test_an_optimiser_keeps_its_moments_between_steps(problem):
    params, _, batches, _ = problem
    optimizer = optax.adam(0.1)
    out = cljax.unroll(cljax.inner_loop.optax_step(loss, optimizer), params, batches)
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


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("last", range(4))
def test_truncated_equals_a_loop_that_stops_gradients(problem, order, last):
    """With a carry (momentum), probes, and the rate and the batches as further arguments."""
    params, alpha, batches, probe = problem

    def written_out(params, alpha, batches):
        momentum, probes = jax.tree.map(jnp.zeros_like, params), []
        if last < 3:
            params = jax.lax.stop_gradient(params)
        for i in range(3):
            chunk = jax.tree.map(lambda a, i=i: a[i], batches)
            gradient = jax.grad(lambda p, c=chunk: loss(p, c).mean())(params)
            if order == 1:
                gradient = jax.lax.stop_gradient(gradient)
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
            params = jax.tree.map(lambda p, a, m: p - a * m, params, alpha, momentum)
            if i < 3 - last:
                params, momentum = jax.lax.stop_gradient((params, momentum))
            probes.append(loss(params, probe).mean())
        return jnp.stack(probes)

    def apply(alpha, params, momentum, gradient):
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda p, a, m: p - a * m, params, alpha, momentum), momentum

    def unrolled(params, alpha, batches, **options):
        step = cljax.inner_loop.InnerStep(
            init=lambda p: jax.tree.map(jnp.zeros_like, p),
            gradient=lambda p, c, b: (jax.grad(lambda p: loss(p, b).mean())(p), c),
            apply=lambda *args: apply(alpha, *args),
        )
        return cljax.unroll(
            step, params, batches, order=order, last=last,
            probe_fn=lambda p: loss(p, probe).mean(), **options,
        ).probes  # fmt: skip

    weights = jnp.arange(1.0, 4.0)

    def derivatives(function):
        weighted = lambda *a: (weights @ function(*a), function(*a))
        return jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(params, alpha, batches)

    expected, values = derivatives(written_out)
    loop = LoopOptions(unroll_steps=True) if order == 1 else LoopOptions(True, max(last, 1))
    gradients, probes = derivatives(lambda *a: unrolled(*a, loop=loop))
    np.testing.assert_allclose(probes, values, rtol=0, atol=1e-13)
    assert_trees_close(gradients, expected, 1e-12)
    reached = [any(bool(jnp.any(a != 0)) for a in jax.tree.leaves(tree)) for tree in expected]
    assert reached == [last == 3, last > 0, last > 0 and order == 2]


def two_layers(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
    return ((hidden @ params["out"].reshape(4, 2) - y) ** 2).sum(axis=-1)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 5])
def test_the_gradient_of_the_data_equals_finite_differences(num_steps):
    """Specification, section 17, tests 1 and 2: an outer loss as a function of inner batches."""
    rng = np.random.default_rng(1)
    params = {"in": rng.normal(size=(3, 4)), "bias": rng.normal(size=4), "out": rng.normal(size=8)}
    probe = (rng.normal(size=(4, 3)), rng.normal(size=(4, 2)))
    size, used = 50, num_steps * 10  # each step sees 2 examples of 3 inputs and 2 targets

    def value(flat):
        data = flat.reshape(5, 2, 5)[:num_steps]
        step = cljax.sgd_step(two_layers, 0.1)
        out = cljax.unroll(step, params, (data[..., :3], data[..., 3:]), order=2)
        return two_layers(out.params, probe).mean()

    @jax.jit
    def derivatives(flat):
        shifts = 1e-5 * jnp.eye(size)
        ahead, behind = (jax.vmap(value)(flat[None] + sign * shifts) for sign in (1, -1))
        return jax.grad(value)(flat), (ahead - behind) / 2e-5

    with jax.enable_x64(True):
        gradient, expected = derivatives(rng.normal(size=size))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, np.arange(size) < used)


@pytest.mark.parametrize("unroll_steps", [1, True])
def test_no_steps_leave_everything_as_it_was(problem, unroll_steps):
    params, alpha, batches, probe = problem
    none = jax.tree.map(lambda a: a[:0], batches)
    for last, loop in ((None, LoopOptions()), (0, LoopOptions()), (None, LoopOptions(True, 2))):
        out = cljax.unroll(
            cljax.sgd_step(loss, alpha), params, none, last=last,
            loop=loop._replace(unroll_steps=unroll_steps),
            probe_fn=lambda p: loss(p, probe).mean(),
        )  # fmt: skip
        assert_trees_close(out.params, params, 0)
        assert out.probes.shape == (0,)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(("remat", "last"), [(False, None), (True, None), (False, 1)])
def test_unrolled_steps_leave_no_loop(problem, num_steps, remat, last):
    params, alpha, (x, y), probe = problem
    batches = (x[:num_steps], y[:num_steps])

    def program(unroll_steps):
        loop = LoopOptions(remat, unroll_steps=unroll_steps)
        value = objective(batches, probe, order=2, last=last, loop=loop)
        return jax.jit(jax.grad(value, argnums=(0, 1))).lower(params, alpha).as_text()

    assert "while" in program(1)
    assert "while" not in program(True)


def test_truncation_and_recomputation_save_memory():
    """Temporaries of a gradient through 16 steps whose activations outweigh the parameters."""
    params = {"w": jnp.ones((4, 4)), "b": jnp.zeros((4,))}
    batches = (jnp.ones((16, 2000, 4)), jnp.ones((16, 2000, 4)))

    def temporaries(**options):
        def value(batches):
            step = cljax.sgd_step(loss, 0.1)
            return cljax.unroll(step, params, batches, order=2, **options).params["w"].sum()

        compiled = jax.jit(jax.grad(value)).lower(batches).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporaries()
    recomputed = ({"loop": LoopOptions(remat=True)}, {"loop": LoopOptions(segments=4)})
    for options in (*recomputed, {"last": 4}):
        assert temporaries(**options) < 0.6 * plain, options


def test_bad_orders_truncations_and_splits_are_refused(problem):
    params, alpha, batches, probe = problem
    with pytest.raises(UserError, match="order is 3"):
        objective(batches, probe, order=3)(params, alpha)
    for last in (-1, 4, 1.5):
        with pytest.raises(UserError, match=f"last is {last}, .* from 0 to 3"):
            objective(batches, probe, last=last)(params, alpha)
    with pytest.raises(UserError, match="segments is 2, which does not divide the 3 steps"):
        objective(batches, probe, loop=LoopOptions(segments=2))(params, alpha)
    with pytest.raises(UserError, match="segments is 0"):
        objective(batches, probe, loop=LoopOptions(segments=0))(params, alpha)
    with pytest.raises(UserError, match="does not divide"):
        cljax.inner_loop.split(jnp.zeros((10, 2)), 3)
