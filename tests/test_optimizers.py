"""RAdam's exact schedule, and optimisers against optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cljax
from cljax import optimizers
from cljax.errors import UserError


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def steps(transformation, num, factor=1.0):
    """Parameters after ``num`` steps on gradients that are recorded numbers."""
    params = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(3.0)}
    state = transformation.init(params)
    rng = np.random.default_rng(0)
    for _ in range(num):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
        updates, state = transformation.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + factor * u, params, updates)
    return params


def test_radam_table():
    """rho_1..6 = 1.0000, 1.9995, 2.9987, 3.9975, 4.9960, 5.9942: rectified from step 6 on."""
    scale, rectified = optimizers._radam_table(0.9, 0.999)
    assert rectified[:7].tolist() == [False] * 5 + [True] * 2
    np.testing.assert_allclose(scale[:5], 1 / (1 - 0.9 ** np.arange(1, 6)), rtol=1e-14)
    rho, inf = 5.994198, 1999.0
    factor = (rho - 4) * (rho - 2) * inf / ((inf - 4) * (inf - 2) * rho)
    expected = np.sqrt((1 - 0.999**6) * factor) / (1 - 0.9**6)
    np.testing.assert_allclose(scale[5], expected, rtol=1e-4)
    assert np.isfinite(scale).all() and abs(scale[-1] - 1) < 1e-4


def test_radam_equals_a_plain_loop():
    found = steps(optimizers.make_optimizer("radam", 0.1), 12)
    params = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array(3.0)}
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    rng = np.random.default_rng(0)
    for k in range(1, 13):
        rho = 1999 - 2 * k * 0.999**k / (1 - 0.999**k)
        for name in ("a", "b"):
            g = rng.normal(size=params[name].shape)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            if rho >= 5:
                r = (rho - 4) * (rho - 2) * 1999 / (1995 * 1997 * rho)
                size = 0.1 * np.sqrt((1 - 0.999**k) * r) / (1 - 0.9**k)
                params[name] = params[name] - size * m[name] / (np.sqrt(v[name]) + 1e-8)
            else:
                params[name] = params[name] - 0.1 / (1 - 0.9**k) * m[name]
    for name in params:
        np.testing.assert_allclose(found[name], params[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd", lambda: optax.sgd(0.1)),
        ("momentum", lambda: optax.sgd(0.1, momentum=0.9)),
        ("adam", lambda: optax.adam(0.1)),
    ],
)
def test_optimisers_by_name_are_those_of_optax(name, theirs):
    ours = steps(optimizers.make_optimizer(name, 0.1), 8)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(steps(theirs(), 8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_weight_decay_is_part_of_the_gradient():
    ours = steps(optimizers.make_optimizer("momentum", 0.1, momentum=0.8, weight_decay=0.01), 8)
    theirs = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.8))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(steps(theirs, 8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_an_unknown_optimiser_is_refused_and_a_users_own_is_taken_as_it_is():
    with pytest.raises(UserError, match="optimizer 'adm' is not known; did you mean adam"):
        optimizers.make_optimizer("adm", 0.1)
    masked = optax.masked(optax.adam(1e-3), {"other": True})  # not for the probe's parameters
    for own in (optax.lion(1e-3), masked):
        assert optimizers.make_optimizer(own, 0.1) is own


def test_a_schedule_as_a_step_size_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="lr is a function, but it must be a number"):
        cljax.Finetune(lr=optax.constant_schedule(0.1))  # pyright: ignore[reportArgumentType]
