"""Implicit gradients against closed forms, dense solves and unrolled loops, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import cljax
from cljax.errors import UserError
from cljax.implicit import ConjugateGradients as CG
from cljax.implicit import Neumann, implicit_gradient

DAMPING = 0.3


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# Ridge regression around START: data (x [6, 3], y [6]), parameters w [3].
START = np.array([0.2, -0.4, 0.1])


def squares(w, data):
    x, y = data
    return 0.5 * jnp.sum((x @ w - y) ** 2)


def ridge(data):
    x, y = data
    return jnp.linalg.solve(x.T @ x + DAMPING * jnp.eye(3), x.T @ y + DAMPING * START)


def validation(w):
    return squares(w, (normal(2, 5, 3), normal(3, 5)))


@pytest.fixture(name="data")
def _data():
    return normal(0, 6, 3), normal(1, 6)


def pulled_step(step_size):
    """Descent on the inner loss and the pull towards START; each batch is the whole data."""

    def losses(w, data):
        return squares(w, data) + 0.5 * DAMPING * jnp.sum((w - START) ** 2)

    return cljax.sgd_step(losses, step_size)


def repeated(data, num_steps):
    return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (num_steps, *a.shape)), data)


def test_ridge_regression_equals_its_closed_form(data):
    value, gradient = implicit_gradient(
        squares, validation, ridge(data), data, damping=DAMPING, solver=CG(3)
    )
    expected = jax.value_and_grad(lambda d: validation(ridge(d)))(data)
    assert_trees_close((value, gradient), expected, rtol=1e-10, atol=1e-12)


def test_unrolled_at_convergence_equals_implicit(data):
    def unrolled(data):
        out = cljax.unroll(pulled_step(0.15), jnp.asarray(START), repeated(data, 400), order=2)
        return validation(out.params)

    value, gradient = jax.jit(jax.value_and_grad(unrolled))(data)
    implicit = implicit_gradient(
        squares, validation, ridge(data), data, damping=DAMPING, solver=CG(3)
    )
    assert_trees_close((value, gradient), implicit, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("terms", [1, 3])
def test_neumann_terms_equal_truncated_steps_at_the_solution(data, terms):
    """Where the parameters no longer move, each step unrolled is one term of the series."""

    def unrolled(data):
        batches, start = repeated(data, 4), jax.lax.stop_gradient(ridge(data))
        out = cljax.unroll(pulled_step(0.05), start, batches, order=2, last=terms)
        return validation(out.params)

    expected = jax.value_and_grad(unrolled)(data)
    series = implicit_gradient(
        squares, validation, ridge(data), data,
        damping=DAMPING, solver=Neumann(terms, 0.05),
    )  # fmt: skip
    assert_trees_close(series, expected, rtol=1e-11, atol=1e-12)


# A quadratic whose mixed derivative is -I, so that the gradient is the solver's answer itself.
def quadratic():
    root = normal(4, 5, 5)
    curvature, slope = root @ root.T, normal(5, 5)
    inner = lambda theta, data: 0.5 * theta @ curvature @ theta - data @ theta
    solution = np.linalg.solve(np.asarray(curvature) + DAMPING * np.eye(5), slope)
    return inner, lambda theta: slope @ theta, curvature, slope, solution


def solve(solver):
    inner, outer, *_ = quadratic()
    theta, data = normal(6, 5), normal(7, 5)
    return implicit_gradient(inner, outer, theta, data, damping=DAMPING, solver=solver)[1]


def test_conjugate_gradients_are_exact_after_as_many_steps_as_dimensions():
    *_, solution = quadratic()
    np.testing.assert_allclose(solve(CG(5)), solution, rtol=1e-8)
    assert float(jnp.abs(solve(CG(4)) - solution).max()) > 1e-4


def test_conjugate_gradients_equal_those_of_jax():
    _, _, curvature, slope, _ = quadratic()
    product = lambda v: curvature @ v + DAMPING * v
    for iterations in (1, 2, 3, 4):
        expected, _ = jax.scipy.sparse.linalg.cg(product, slope, tol=0.0, maxiter=iterations)
        np.testing.assert_allclose(solve(CG(iterations)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-18, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_after_convergence_change_nothing(scale, dtype):
    inner = lambda theta, data: 0.5 * jnp.sum(theta**2) - data @ theta
    theta = jnp.ones(3, dtype)
    outer = lambda theta: scale * jnp.sum(theta)
    _, gradient = implicit_gradient(inner, outer, theta, theta, damping=1e-3, solver=CG(40))
    assert gradient.dtype == dtype
    floor = 1e-15 if dtype == "float32" else 0  # where squares underflow
    np.testing.assert_allclose(gradient, np.full(3, scale / 1.001), rtol=1e-6, atol=floor)


def test_the_neumann_series_converges_to_the_same():
    _, _, curvature, _, solution = quadratic()
    step_size = 1 / (float(np.linalg.eigvalsh(curvature).max()) + DAMPING)
    series = [solve(Neumann(n, step_size)) for n in (10, 100, 2000)]
    errors = [float(jnp.abs(q - solution).max()) for q in series]
    assert errors[0] > errors[1] > errors[2] and errors[1] > 1e-6 and errors[2] < 1e-10


# A network of two layers: pytrees of parameters and of data, a Hessian that is not constant.
def network_problem():
    params = {"in": normal(8, 2, 3), "bias": normal(9, 3), "out": normal(10, 3, 1)}
    data = {"x": normal(11, 6, 2), "targets": (normal(12, 6, 1),)}

    def inner(params, data):
        hidden = jnp.tanh(data["x"] @ params["in"] + params["bias"][None])
        return jnp.mean((hidden @ params["out"] - data["targets"][0]) ** 2)

    held_out = {"x": normal(13, 4, 2), "targets": (normal(14, 4, 1),)}
    return inner, lambda params: inner(params, held_out), params, data


def test_a_network_equals_the_dense_solve_with_and_without_a_loop():
    inner, outer, params, data = network_problem()
    theta, unravel = ravel_pytree(params)
    pixels, unravel_data = ravel_pytree(data)
    flat = lambda t, d: inner(unravel(t), unravel_data(d))
    hessian = jax.hessian(flat)(theta, pixels) + 2.0 * jnp.eye(theta.size)
    mixed = jax.jacobian(jax.grad(flat), argnums=1)(theta, pixels)
    slope = ravel_pytree(jax.grad(outer)(params))[0]
    expected = unravel_data(-mixed.T @ jnp.linalg.solve(hessian, slope))

    def run(damping, params, data, **options):
        return implicit_gradient(
            inner, outer, params, data, damping=damping, solver=CG(theta.size), **options
        )

    for options, loops in (({}, True), ({"unroll_steps": True}, False)):
        program = jax.jit(partial(run, **options)).lower(2.0, params, data)
        assert ("while" in program.as_text()) == loops
        value, gradient = program.compile()(2.0, params, data)
        np.testing.assert_allclose(value, outer(params), rtol=1e-13)
        assert_trees_close(gradient, expected, rtol=1e-8, atol=1e-11)


def test_mistakes_are_refused():
    inner, outer, params, data = network_problem()

    def attempt(data=data, **options):
        options = {"damping": 1.0, "solver": CG(3), **options}
        return implicit_gradient(inner, outer, params, data, **options)

    with pytest.raises(UserError, match="solver is 'cg', but it must be a ConjugateGradients"):
        attempt(solver="cg")
    with pytest.raises(UserError, match="iterations is 0"):
        attempt(solver=CG(0))
    with pytest.raises(UserError, match="damping is nan"):
        attempt(damping=float("nan"))
    with pytest.raises(UserError, match="step_size is inf"):
        attempt(solver=Neumann(3, float("inf")))
    with pytest.raises(UserError, match="a leaf of type int32, .* close over"):
        attempt(data={**data, "labels": jnp.zeros(6, "int32")})
