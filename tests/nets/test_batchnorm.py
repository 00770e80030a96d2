"""BatchNorm: PyTorch's numbers, groups as if each came alone, padding that reaches nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import UserError
from cljax.nets import from_linen, masked
from cljax.nets.batchnorm import BatchNorm
from cljax.types import Output, Variables


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


NORM = BatchNorm(param_dtype=jnp.float64)
RNG = np.random.default_rng(0)
X = 3.0 * RNG.normal(size=(7, 2, 3, 4)) + RNG.normal(size=4)
START = {
    "params": {"scale": RNG.normal(size=4), "bias": RNG.normal(size=4)},
    "batch_stats": {"mean": RNG.normal(size=4), "var": RNG.uniform(1, 2, size=4)},
}


def trained(x, member=None, variables=START):
    member = None if member is None else jnp.asarray(member)
    y, state = NORM.apply(variables, jnp.asarray(x), True, member, mutable=["batch_stats"])
    return y, state["batch_stats"]


def membership(groups, num_groups):
    """[B, G] bool; -1 is padding."""
    return np.asarray(groups)[:, None] == np.arange(num_groups)


def assert_close(actual, desired, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-13), actual, desired)


def test_training_is_pytorchs():
    y, after = trained(X)
    params, before = START["params"], START["batch_stats"]
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))
    assert_close(y, (X - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"])
    assert_close(after["mean"], 0.9 * before["mean"] + 0.1 * mean)
    assert_close(after["var"], 0.9 * before["var"] + 0.1 * X.var((0, 1, 2), ddof=1))


def test_evaluation_uses_the_running_statistics():
    y = NORM.apply(START, jnp.asarray(X), False)
    params, stats = START["params"], START["batch_stats"]
    normal = (X - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    assert_close(y, normal * params["scale"] + params["bias"])


def test_running_statistics_by_hand():
    norm = BatchNorm()
    x = jnp.array([[1.0], [3.0], [8.0], [0.0]])  # groups {1, 3}, {8, 0}: means 2, 4; vars 2, 32
    variables = norm.init(jax.random.key(0), x, False)
    member = jnp.asarray(membership([0, 0, 1, 1], 2))
    _, state = norm.apply(variables, x, True, member, mutable=["batch_stats"])
    assert_close(state["batch_stats"]["mean"], [0.9 * 0.2 + 0.4], rtol=1e-6)
    assert_close(state["batch_stats"]["var"], [0.9 * (0.9 + 0.2) + 3.2], rtol=1e-6)


def test_one_group_of_all_rows_is_the_ordinary_one():
    assert_close(trained(X, np.ones((7, 1), bool)), trained(X))


def test_groups_are_as_if_each_came_alone():
    groups = np.array([2, 0, -1, 2, 3, 0, 2])  # group 1 is empty, row 2 is padding
    y, after = trained(X, membership(groups, 4))
    stats = START["batch_stats"]
    for group in (0, 2, 3):
        own, stats = trained(X[groups == group], variables=START | {"batch_stats": stats})
        assert_close(y[groups == group], own)
    assert_close(after, stats)
    np.testing.assert_array_equal(y[2], 0)


def test_padding_reaches_nothing_whatever_it_holds():
    real = np.array([1, 1, 0, 1, 0, 1, 1], bool)
    weight = jnp.asarray(RNG.normal(size=X.shape))

    def loss(params, x, member, weight):
        y, after = trained(x, member, START | {"params": params})
        return jnp.sum(jnp.sin(y) * weight), after

    grads = jax.grad(loss, argnums=(0, 1), has_aux=True)
    x = np.where(real[:, None, None, None], X, np.nan)
    (of_params, of_x), after = grads(START["params"], x, real[:, None], weight)
    (own_params, own_x), own = grads(START["params"], X[real], None, weight[real])
    assert_close((of_params, of_x[real], after), (own_params, own_x, own), rtol=1e-10)
    np.testing.assert_array_equal(of_x[~real], 0)


def test_a_single_value_has_no_variance():
    x = X[:3, 0, 0]
    y, after = trained(x, membership([0, 1, -1], 2))
    assert_close(y, np.stack([START["params"]["bias"]] * 2 + [np.zeros(4)]))
    assert_close(after["var"], 0.81 * START["batch_stats"]["var"])
    lone, after = trained(x[:1])
    assert_close(lone[0], START["params"]["bias"])
    assert_close(after["mean"], 0.9 * START["batch_stats"]["mean"] + 0.1 * x[0])


def test_nothing_but_padding_changes_nothing():
    def loss(params):
        y, after = trained(X, np.zeros((7, 2), bool), START | {"params": params})
        return jnp.sum(y**2), after

    grads, after = jax.grad(loss, has_aux=True)(START["params"])
    jax.tree.map(np.testing.assert_array_equal, after, START["batch_stats"])
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)


def test_no_gradient_flows_through_the_running_statistics():
    grad = jax.grad(lambda x: sum(jnp.sum(v) for v in trained(x)[1].values()))(jnp.asarray(X))
    np.testing.assert_array_equal(grad, 0)


def test_bfloat16_keeps_float32_statistics():
    norm = BatchNorm()
    x = jnp.asarray(100 + X, jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, False)
    y, state = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and state["batch_stats"]["var"].dtype == jnp.float32
    exact = np.asarray(x, np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * exact, 1e-5)


def test_initialising_in_training_mode_leaves_the_statistics_alone():
    variables = BatchNorm().init(jax.random.key(0), jnp.asarray(X), True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_masked_needs_grouped_where_there_is_state():
    import flax.linen as nn

    class Ungrouped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(x)
            return x, x

    class Stateless(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(2)(x)
            return x, x

    x, mask = jnp.ones((3, 4)), jnp.array([True, True, False])
    model = from_linen(Ungrouped())
    assert model.grouped is None and model.head is None
    with pytest.raises(UserError, match="has no grouped"):
        masked(model, model.init(jax.random.key(0), x), x, mask)
    model = from_linen(Stateless())
    variables = model.init(jax.random.key(0), x)
    output, state = masked(model, variables, x, mask)
    assert isinstance(output, Output) and isinstance(variables, Variables) and state == {}
    np.testing.assert_array_equal(output.logits[:2], model.apply(variables, x, True)[0].logits[:2])
    loss = lambda v: masked(model, v, x.at[2].set(jnp.nan), mask)[0].logits[:2].sum()
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(variables)))
