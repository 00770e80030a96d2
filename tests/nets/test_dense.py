"""Multi-layer perceptrons: numbers of parameters, names, initialisation, their first product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import resolve
from cljax.errors import UserError
from cljax.nets import mlp
from cljax.nets.cosine import cosines
from cljax.types import Variables

X = jax.random.normal(jax.random.key(1), (5, 2, 3))


@pytest.mark.parametrize(
    ("name", "count"),
    [("mlp:100,100", 89_610), ("mlp:400,400:pytorch:no-head-bias", 478_400), ("mlp", 7_850)],
)
def test_numbers_of_parameters(name, count):
    x = jax.ShapeDtypeStruct((1, 28, 28), jnp.float32)
    params = jax.eval_shape(resolve.net(name)(10).init, jax.random.key(0), x).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (mlp(), "mlp:"),
        (mlp(100, 100), "mlp:100,100"),
        (mlp(5, init="xavier-uniform"), "mlp:5:xavier-uniform"),
        (mlp(init="lecun-normal"), "mlp::lecun-normal"),
        (mlp(400, 400, head_bias=False), "mlp:400,400:no-head-bias"),
        (mlp(4, init="pytorch", head_bias=False), "mlp:4:pytorch:no-head-bias"),
        (mlp(64, head="cosine"), "mlp:64:cosine"),
        (mlp(5, init="pytorch", head_bias=False, head="cosine"), "mlp:5:pytorch:cosine"),
        (mlp(head="cosine"), "mlp::cosine"),
    ],
)
def test_a_nets_name_makes_it_again(net, name):
    assert net.__name__ == name
    assert resolve.net(name).__name__ == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mlp:x", "whole numbers"),
        ("mlp:5:uniform", "'uniform' is not known"),
        ("mlp:5:bfloat16", "mlp does not take that"),
        ("mlp:5:last-relu", "mlp does not take that"),
    ],
)
def test_mistakes(name, says):
    with pytest.raises(UserError, match=says):
        resolve.net(name)
    with pytest.raises(UserError, match="head 'cosin' is not known"):
        mlp(5, head="cosin")  # type: ignore[arg-type]


def test_words_for_defaults_may_be_said():
    assert resolve.net("mlp:5:linear").__name__ == "mlp:5"
    assert resolve.net("mlp:cosine").__name__ == "mlp::cosine"


def test_a_cosine_head_on_the_last_hidden_layer():
    linear, cosine = mlp(5, 6)(3), mlp(5, 6, head="cosine")(3)
    assert cosine.first_product is None
    body = linear.init(jax.random.key(0), X).params
    params = cosine.init(jax.random.key(0), X).params
    assert set(params) == {"Dense_0", "Dense_1", "head"}
    params = {**params, "Dense_0": body["Dense_0"], "Dense_1": body["Dense_1"]}
    features = linear.apply(Variables(body, {}), X, True)[0].features
    output = cosine.apply(Variables(params, {}), X, True)[0]
    np.testing.assert_array_equal(output.features, features)
    np.testing.assert_allclose(output.logits, cosines(features, params["head"]["kernel"]), 1e-6)


def test_pytorchs_initialisation():
    params = mlp(50, init="pytorch")(40).init(jax.random.key(0), X).params
    for name, fan_in in (("Dense_0", 6), ("Dense_1", 50)):
        for leaf in params[name].values():
            assert 0.9 / np.sqrt(fan_in) < jnp.max(jnp.abs(leaf)) <= 1 / np.sqrt(fan_in)
            assert abs(jnp.mean(leaf)) < 0.3 / np.sqrt(fan_in)


@pytest.mark.parametrize("init", ["kaiming-normal", "xavier-uniform", "lecun-normal"])
def test_other_biases_start_at_zero(init):
    params = mlp(5, init=init)(4).init(jax.random.key(0), X).params
    assert not any(layer["bias"].any() for layer in params.values())


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("widths", [(), (5,), (5, 6)])
def test_the_first_product_is_the_network(widths, head_bias):
    model = mlp(*widths, init="pytorch", head_bias=head_bias)(4)
    variables = model.init(jax.random.key(0), X)
    assert model.first_product is not None
    split, join, apply = model.first_product
    kernel, rest = split(variables.params)
    logits = model.apply(variables, X, True)[0].logits
    np.testing.assert_allclose(apply(rest, X.reshape(5, -1) @ kernel), logits, 1e-5, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, join(kernel, rest), variables.params)
    assert ("bias" in variables.params[f"Dense_{len(widths)}"]) == head_bias


@pytest.mark.parametrize("head_bias", [True, False])
def test_head_marks_the_outputs_that_learn(head_bias):
    model = mlp(5, head_bias=head_bias)(3)
    params = model.init(jax.random.key(0), X).params
    assert model.head is not None and model.grouped is None
    learns = model.head(params, jnp.array([False, True, False]))
    full = jax.tree.map(lambda mask, leaf: np.broadcast_to(mask, leaf.shape), learns, params)
    for leaf in full["Dense_1"].values():
        assert leaf[..., 1].all() and not leaf[..., [0, 2]].any()
    assert all(leaf.all() for leaf in full["Dense_0"].values())
