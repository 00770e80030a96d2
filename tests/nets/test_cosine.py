"""The cosine head: values, slopes, its behaviour at zero, masks, and its kernel as a lens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.nets import mlp, resnet8, resnet18, resnet32
from cljax.nets.cosine import cosines, unit
from cljax.nets.transfer import with_scales
from cljax.types import Variables

RNG = np.random.default_rng(0)
FEATURES, KERNEL = RNG.normal(size=(5, 7)), RNG.normal(size=(7, 4))
MODEL = mlp(head="cosine")(4)  # without hidden layers the features are the inputs


def logits(features, kernel, sigma):
    variables = Variables({"head": {"kernel": kernel, "sigma": sigma}}, {})
    return MODEL.apply(variables, features, True)[0].logits


def by_hand(features, kernel, sigma):
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)[None]
    return sigma * (features @ kernel) / lengths


def test_values():
    with jax.enable_x64(True):
        found = logits(jnp.asarray(FEATURES), jnp.asarray(KERNEL), jnp.float64(3.0))
        np.testing.assert_allclose(found, by_hand(FEATURES, KERNEL, 3.0), 1e-12)
        small = logits(jnp.asarray(1e-9 * FEATURES), jnp.asarray(1e-9 * KERNEL), jnp.float64(3.0))
        np.testing.assert_allclose(small, found, 1e-12)


def test_gradients():
    with jax.enable_x64(True):
        point = [FEATURES, KERNEL, np.float64(3.0)]
        weight = RNG.normal(size=(5, 4))
        value = lambda *args: np.sum(by_hand(*args) * weight)
        total = lambda *args: jnp.sum(logits(*args) * weight)
        grads = jax.jit(jax.grad(total, (0, 1, 2)))(*map(jnp.asarray, point))
        for which, slopes in enumerate(grads):
            direction = RNG.normal(size=slopes.shape)
            moved = lambda h, i=which, d=direction: [*point[:i], point[i] + h * d, *point[i + 1 :]]
            slope = (value(*moved(1e-5)) - value(*moved(-1e-5))) / 2e-5
            np.testing.assert_allclose(np.sum(slopes * direction), slope, 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [0.0, 1e-11, 0.9, 1.1, 1e3])  # in roundings
def test_all_is_finite_at_and_near_zero(dtype, length):
    with jax.enable_x64(True):
        short = length * np.finfo(dtype).eps
        features = FEATURES.copy()
        features[1] *= short / np.linalg.norm(features[1])
        kernel = KERNEL.copy()
        kernel[:, 2] *= short / np.linalg.norm(kernel[:, 2])
        point = (jnp.asarray(features, dtype), jnp.asarray(kernel, dtype))
        value = lambda point: jnp.sum(jnp.sin(logits(*point, jnp.ones((), dtype))))
        slope = jax.grad(value)
        curvature = lambda point: jax.jvp(slope, (point,), (jax.tree.map(jnp.ones_like, point),))[1]
        every = jax.jit(lambda point: (value(point), slope(point), curvature(point)))
        for leaf in jax.tree.leaves(every(point)):
            assert leaf.dtype == dtype and jnp.isfinite(leaf).all()


def test_zero_has_no_direction_and_an_identity_slope():
    of_unit = lambda x: (unit(x), jax.jacobian(unit)(x), jax.hessian(unit)(x))
    value, slope, curvature = jax.jit(of_unit)(jnp.zeros(3))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, np.eye(3))
    np.testing.assert_array_equal(curvature, 0)
    cosine = cosines(jnp.asarray(FEATURES), jnp.asarray(KERNEL).at[:, 1].set(0))
    np.testing.assert_array_equal(cosine[:, 1], 0)
    np.testing.assert_allclose(cosine[:, 0], by_hand(FEATURES, KERNEL, 1)[:, 0], 1e-5)


@pytest.mark.parametrize(
    ("given", "kept"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_its_start_and_its_type(given, kept):
    with jax.enable_x64(True):
        x = jnp.ones((2, 100), given)
        model = mlp(head="cosine")(50)
        params = model.init(jax.random.key(0), x).params
        assert set(params) == {"head"} and set(params["head"]) == {"kernel", "sigma"}
        assert {leaf.dtype for leaf in params["head"].values()} == {jnp.dtype(kept)}
        assert params["head"]["sigma"].shape == () and params["head"]["sigma"] == 1
        assert 0.099 < jnp.max(jnp.abs(params["head"]["kernel"])) <= 0.1
        assert abs(jnp.mean(params["head"]["kernel"])) < 0.005
        assert model.apply(Variables(params, {}), x, True)[0].logits.dtype == kept


def test_the_scale_is_shared_by_all_outputs():
    assert MODEL.head is not None
    params = MODEL.init(jax.random.key(0), jnp.asarray(FEATURES)).params
    learns = MODEL.head(params, jnp.array([False, True, False, True]))
    assert learns["head"]["sigma"].shape == () and learns["head"]["sigma"]
    kernel = np.broadcast_to(learns["head"]["kernel"], (7, 4))
    assert kernel[:, [1, 3]].all() and not kernel[:, [0, 2]].any()
    assert MODEL.head(params, jnp.zeros(4, bool))["head"]["sigma"]


@pytest.mark.parametrize("net", [mlp, resnet8, resnet32, resnet18])
def test_networks_say_that_they_compare_directions(net):
    for head in ("linear", "cosine"):
        model = net(head=head)(3)
        assert model.cosine == with_scales(model).cosine == (head == "cosine")


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_rows_are_the_output_layers_kernel(head):
    model = mlp(6, head=head)(4)
    x = jnp.asarray(FEATURES)
    variables = model.init(jax.random.key(0), x)
    assert model.rows is not None
    kernel = model.rows.get(variables.params)
    assert kernel.shape == (6, 4)
    after = model.rows.set(variables.params, kernel.at[:, 2].set(1.0))
    np.testing.assert_array_equal(model.rows.get(after), kernel.at[:, 2].set(1.0))
    jax.tree.map(np.testing.assert_array_equal, model.rows.set(after, kernel), variables.params)
    both = [model.apply(Variables(p, {}), x, False)[0] for p in (variables.params, after)]
    np.testing.assert_array_equal(both[0].features, both[1].features)
    differs = (both[0].logits != both[1].logits).all(axis=0)
    assert differs.tolist() == [False, False, True, False]
