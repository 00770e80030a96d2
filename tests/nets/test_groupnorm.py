"""GroupNorm against Flax's, and the residual networks that have it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import resolve
from cljax.errors import UserError
from cljax.nets import resnet8, resnet14, resnet32
from cljax.nets.groupnorm import GroupNorm, num_groups
from cljax.nets.residual import BasicBlock, ConvGN


def test_numbers_of_groups():
    for channels, groups in ((16, 8), (8, 8), (4, 4), (12, 6), (7, 7), (11, 1), (1, 1), (20, 5)):
        assert num_groups(channels, 8) == groups
    assert num_groups(16, 3) == 2


@pytest.mark.parametrize("channels", [16, 12, 7, 11])
def test_it_is_flaxs(channels):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        draw = lambda key, *shape: jax.random.normal(key, shape, jnp.float64)
        x = 3 + 2 * draw(keys[0], 3, 5, 4, channels)
        scale, bias = 1 + draw(keys[1], channels), draw(keys[2], channels)
        ours = GroupNorm(8, param_dtype=jnp.float64)
        groups = num_groups(channels, 8)
        other = nn.GroupNorm(groups, epsilon=1e-5, param_dtype=jnp.float64)
        out = draw(keys[3], *x.shape)

        def run(layer, params, x):
            value, back = jax.vjp(lambda *a: layer.apply({"params": a[0]}, a[1]), params, x)
            params, x = back(out)
            return value, x, params

        nested = {"Affine_0": {"scale": scale, "bias": bias}}
        assert jax.tree.structure(nested) == jax.tree.structure(ours.init(keys[0], x)["params"])
        value, of_x, of_params = jax.jit(functools.partial(run, ours))(nested, x)
        wanted = jax.jit(functools.partial(run, other))(nested["Affine_0"], x)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        jax.tree.map(close, (value, of_x, of_params["Affine_0"]), wanted)


def test_examples_do_not_see_each_other_and_precision_is_kept():
    layer = GroupNorm(2)
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 6))
    params = layer.init(jax.random.key(1), x)
    run = jax.jit(layer.apply)
    np.testing.assert_array_equal(run(params, x)[1:], run(params, x.at[0].set(jnp.nan))[1:])
    half = run(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), run(params, x), atol=0.05)
    far = run(params, x + 1000)  # two passes: the mean does not swallow the deviations
    np.testing.assert_allclose(far, run(params, x), atol=2e-3)


def test_second_derivatives_are_finite_where_all_values_are_equal():
    layer = GroupNorm(2)
    x = jnp.ones((2, 2, 2, 4))
    params = layer.init(jax.random.key(1), x)
    loss = lambda x: jnp.sum(jnp.sin(layer.apply(params, x)))
    second = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(loss)(x)))))(x)
    assert np.isfinite(second).all()


@pytest.mark.parametrize(
    ("name", "body", "features"),
    [
        ("resnet32:group", 463_504, 64),
        ("resnet14:group", 171_856, 64),
        ("resnet8:group", 18_888, 32),
    ],
)
def test_numbers_of_parameters(name, body, features):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    model = resolve.net(name)(5)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    assert count == body + 5 * features + 5 and not variables.model_state
    output, _ = jax.eval_shape(functools.partial(model.apply, train=True), variables, x)
    assert output.features.shape == (2, features)


def test_a_shortcut_of_a_thinner_stage_has_no_parameters():
    block = BasicBlock(5, ConvGN, stride=2)
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    params = jax.tree.map(jnp.zeros_like, block.init(jax.random.key(1), x, False))
    assert len(jax.tree.leaves(params)) == 6
    y = block.apply(params, x, False)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], jnp.zeros((2, 3, 4, 2)))


def test_training_changes_nothing_and_the_last_block_ends_in_a_relu():
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    whole, without = (resnet8(2, 2, 2, norm="group", last_relu=relu)(3) for relu in (True, False))
    variables = jax.jit(whole.init)(jax.random.key(0), x)
    run = lambda model, train: jax.jit(model.apply, static_argnums=2)(variables, x, train)
    output, state = run(whole, True)
    jax.tree.map(np.testing.assert_array_equal, output, run(whole, False)[0])
    assert not state
    before = run(without, False)[0].features  # means of what a ReLU can only raise
    assert (output.features >= before).all() and (output.features > before).any()


def test_names_and_defaults():
    assert resnet32(norm="group").__name__ == "resnet32:group"
    assert resolve.net("resnet32:group:linear:last-relu").__name__ == "resnet32:group"
    assert resolve.net("resnet32:batch").__name__ == "resnet32"
    assert resnet14().__name__ == "resnet14" and resnet14(head="cosine").__name__ == "resnet14"
    for name in (
        "resnet14:8,8,16:group:cosine",
        "resnet8:group:no-last-relu",
        "resnet32:group:bfloat16",
        "resnet14:linear:last-relu",
    ):
        assert resolve.net(name).__name__ == name
    for name, cosine in (
        ("resnet8:group", False),
        ("resnet8", True),
        ("resnet8:group:cosine", True),
    ):
        assert resolve.net(name)(2).cosine == cosine


def test_mistakes():
    with pytest.raises(UserError, match="resnet14 has widths 16,8,8, but with GroupNorm"):
        resolve.net("resnet14:16,8,8:group")
    assert resolve.net("resnet14:16,8,8").__name__ == "resnet14:16,8,8"
    with pytest.raises(UserError, match="norm 'layer' is not known"):
        resnet8(norm="layer")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="does not take"):
        resolve.net("resnet18:group")
