"""Weight transfer: sizes, the same bits at scales of one, slopes, masks, folding, and refusals."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import resolve
from cljax.errors import UserError
from cljax.nets import from_linen, masked, mlp, resnet8
from cljax.nets.cosine import cosine_head
from cljax.nets.residual import ConvBN
from cljax.nets.transfer import folded, learning, with_scales
from cljax.types import Variables

SPEC = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
X = jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
MASK = np.array([True, True, False, True])


class Small(nn.Module):
    """Two convolutions, for what a deeper network would only compile longer for."""

    @nn.compact
    def __call__(self, x, train, member=None):
        conv = functools.partial(ConvBN, param_dtype=x.dtype)
        x = nn.relu(conv(2)(x, train, member))
        x = conv(5, stride=2)(x, train, member).mean((1, 2))
        return cosine_head(3)(x), x


MODEL = from_linen(Small(), head="head")
TWIN = with_scales(MODEL)


@functools.cache
def twins(dtype="float32"):
    """Variables of the network, plain and with scales, with as many random scales."""
    plain, scaled = (jax.jit(m.init)(jax.random.key(0), X.astype(dtype)) for m in (MODEL, TWIN))
    rng = np.random.default_rng(0)
    random = lambda leaf: jnp.asarray(rng.uniform(0.5, 2.0, leaf.shape), dtype)
    scales = jax.tree.map(random, scaled.params["scales"])
    return plain, scaled, scaled._replace(params={**scaled.params, "scales": scales})


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "scales", "in_all", "learn"),
    [
        ("resnet32", 53_808, 523_265, 59_473),
        ("resnet18:cosine:no-last-relu", 1_392_832, 12_594_945, 1_428_033),
    ],
)
def test_numbers_of_parameters(name, scales, in_all, learn):
    twin = with_scales(resolve.net(name)(50))
    params = jax.eval_shape(twin.init, jax.random.key(0), SPEC).params
    assert size(params["scales"]) == scales and size(params) == in_all
    for transferred, count in ((True, learn), (False, in_all - scales)):
        learns = learning(params, jnp.asarray(transferred))
        kept = jax.tree.map(lambda mask, leaf: leaf if mask else None, learns, params)
        assert size(kept) == count


def test_scales_are_ones_of_pairs_of_channels():
    plain, scaled, _ = twins()
    same(scaled._replace(params=scaled.params["weights"]), plain)
    scales = scaled.params["scales"]
    np.testing.assert_array_equal(scales["ConvBN_0"]["Conv_0"]["kernel"], np.ones((1, 1, 3, 2)))
    np.testing.assert_array_equal(scales["ConvBN_1"]["Conv_0"]["kernel"], np.ones((1, 1, 2, 5)))
    assert len(jax.tree.leaves(scales)) == 2


def test_at_ones_every_bit_is_the_models():
    model = resnet8(2, 3, 4)(3)
    twin = with_scales(model)
    params, state = jax.jit(twin.init)(jax.random.key(0), X)

    def every(model, params):
        def losses(params):
            trained = model.apply(Variables(params, state), X, True)
            return jnp.sum(jnp.sin(trained[0].logits)), trained

        grads, trained = jax.grad(losses, has_aux=True)(params)
        return grads, trained, model.apply(Variables(params, state), X, False)

    run = jax.jit(every, static_argnums=0)
    grads, *outputs = run(twin, params)
    own_grads, *own = run(model, params["weights"])
    same((grads["weights"], outputs), (own_grads, own))


def test_groups_and_padding_go_through_it():
    _, _, scaled = twins()
    assert TWIN.grouped is not None and MODEL.grouped is not None
    plain = scaled._replace(params=folded(scaled.params)["weights"])
    member = jnp.asarray(np.array([0, 1, -1, 0])[:, None] == np.arange(2))
    same(jax.jit(TWIN.grouped)(scaled, X, member), jax.jit(MODEL.grouped)(plain, X, member))
    run = jax.jit(lambda x: masked(TWIN, scaled, x, jnp.asarray(MASK))[1])
    same(run(X), run(X.at[2].set(jnp.nan)))


def test_slopes_are_those_of_the_kernels_summed_over_the_window():
    with jax.enable_x64(True):
        _, _, variables = twins("float64")
        params, x = variables.params, X.astype("float64")

        def loss(model, params):
            output = model.apply(variables._replace(params=params), x, True)[0]
            return jnp.sum(jnp.sin(3.0 * output.logits))

        slopes = jax.jit(jax.grad(functools.partial(loss, TWIN)))(params)
        own = jax.jit(jax.grad(functools.partial(loss, MODEL)))(folded(params)["weights"])
        kernel = lambda tree, layer: tree[f"ConvBN_{layer}"]["Conv_0"]["kernel"]
        close = lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-12)
        for layer in range(2):
            weights, scales = (kernel(params[part], layer) for part in ("weights", "scales"))
            effective = kernel(own, layer)
            of_scales = jnp.sum(weights * effective, (0, 1), keepdims=True)
            assert jnp.max(jnp.abs(of_scales)) > 0.01
            close(kernel(slopes["scales"], layer), of_scales)
            close(kernel(slopes["weights"], layer), scales * effective)
        close(slopes["weights"]["head"]["kernel"], own["head"]["kernel"])

        moved = lambda h: jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.at[0, 0, 1, 2].add(h) if path == place else leaf, params
        )
        place = next(
            path for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if leaf is kernel(params["scales"], 1)
        )  # fmt: skip
        at = jax.jit(functools.partial(loss, TWIN))
        slope = (at(moved(1e-5)) - at(moved(-1e-5))) / 2e-5
        np.testing.assert_allclose(kernel(slopes["scales"], 1)[0, 0, 1, 2], slope, 1e-6)


@pytest.mark.parametrize("transferred", [False, True])
def test_what_learns(transferred):
    params = twins()[1].params
    learns = jax.jit(learning)(params, jnp.asarray(transferred))
    full = jax.tree.map(lambda mask, leaf: np.broadcast_to(mask, leaf.shape), learns, params)
    for leaf in jax.tree.leaves(full["scales"]):
        assert (leaf == transferred).all()
    for leaf in jax.tree.leaves(full["weights"]):
        assert (leaf == (leaf.ndim != 4 or not transferred)).all()
    assert MODEL.learns is None and TWIN.learns is not None
    for task in (0, 1, 2):
        same(TWIN.learns(params, jnp.int32(task)), learning(params, jnp.bool_(task > 0)))


def test_folding_keeps_the_network():
    _, ones, scaled = twins()
    params = folded(scaled.params)
    same(params["scales"], ones.params["scales"])
    assert jax.tree.structure(params) == jax.tree.structure(scaled.params)
    apply = jax.jit(TWIN.apply, static_argnums=2)
    logits = lambda variables: apply(variables, X, False)[0].logits
    np.testing.assert_array_equal(logits(scaled._replace(params=params)), logits(scaled))
    assert jnp.max(jnp.abs(logits(scaled) - logits(ones))) > 0.01


def test_head_and_rows_go_through_it():
    plain, scaled, _ = twins()
    assert TWIN.head is not None and TWIN.rows is not None and MODEL.head is not None
    assert TWIN.first_product is None
    outputs = jnp.array([True, False, True])
    learns = TWIN.head(scaled.params, outputs)
    same(learns["weights"], MODEL.head(plain.params, outputs))
    assert jax.tree.structure(learns) == jax.tree.structure(scaled.params)
    assert all(leaf.all() for leaf in jax.tree.leaves(learns["scales"]))
    kernel = TWIN.rows.get(scaled.params)
    np.testing.assert_array_equal(kernel, plain.params["head"]["kernel"])
    after = TWIN.rows.set(scaled.params, 2 * kernel)
    np.testing.assert_array_equal(after["weights"]["head"]["kernel"], 2 * kernel)
    same(TWIN.rows.set(after, kernel), scaled.params)


def test_a_network_without_convolutions_is_refused():
    twin = with_scales(mlp(5)(3))
    assert twin.grouped is None
    with pytest.raises(UserError, match="none of four dimensions"):
        twin.init(jax.random.key(0), jnp.ones((2, 4)))
