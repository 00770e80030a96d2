"""Convolutions: the numbers of XLA's, derivatives too, in and out of loops; plain networks."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cljax import resolve
from cljax.errors import UserError
from cljax.nets import convnet, from_linen, masked
from cljax.nets.conv import Conv
from cljax.nets.convolve import convolve, patches
from cljax.nets.transfer import convolves
from cljax.types import Variables

MASK = np.array([True, False, True])


class Own(nn.Module):
    """A user's network with Flax's own convolution."""

    @nn.compact
    def __call__(self, x, train):
        features = jnp.mean(nn.Conv(4, (3, 3))(x), axis=(1, 2))
        return nn.Dense(2)(features), features


def by_xla(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def arrays(batch, size, kernel, channels, features, dtype=jnp.float32):
    """Images, a kernel and directions of both."""
    shapes = 2 * ((batch, *size, channels), (kernel, kernel, channels, features))
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(k, s, dtype) / np.sqrt(s[-2] if i % 2 else 1)
        for i, (k, s) in enumerate(zip(keys, shapes, strict=True))
    ]


def assert_near(found, wanted, tolerance):
    def near(a, b):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1 + np.abs(b).max()))

    jax.tree.map(near, found, wanted)


@pytest.mark.parametrize("channels", [3, 8])  # patches, and convolutions where the stride is 1
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1), (3, 0), (4, 2)])
@pytest.mark.parametrize("stride, size", [(1, (6, 6)), (2, (7, 5)), (2, (8, 6))])
def test_numbers_and_derivatives_are_those_of_xla(kernel, padding, stride, size, channels):
    x, k, dx, dk = arrays(11, size, kernel, channels, 2)

    def everything(convolved, x, k):
        of = lambda x, k: convolved(x, k, stride, padding)
        loss = lambda x, k: jnp.sum(jnp.sin(of(x, k)))
        slopes = jax.grad(loss, (0, 1))
        curve = jax.grad(lambda x, k: sum(jnp.sum(jnp.sin(s)) for s in slopes(x, k)), (0, 1))
        return of(x, k), slopes(x, k), curve(x, k), jax.jvp(slopes, (x, k), (dx, dk))[1]

    # Arguments: of constants, XLA's in jaxlib 0.7.2 has wrong second derivatives.
    run = jax.jit(everything, static_argnums=0)
    assert_near(run(convolve, x, k), run(by_xla, x, k), 2e-5)


def test_in_double_precision_too():
    with jax.enable_x64(True):
        x, k, *_ = arrays(3, (6, 5), 3, 8, 2, jnp.float64)
        of = lambda c: jax.jit(jax.value_and_grad(lambda k: jnp.sum(jnp.sin(c(x, k, 1, 1)))))
        assert_near(of(convolve)(k), of(by_xla)(k), 1e-12)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)])
def test_several_images_or_kernels_at_once(axes):
    x, k, *_ = arrays(3, (5, 6), 3, 8, 2)
    many = [
        a if axis is None else jnp.stack([a, -2 * a, a + 1], axis)
        for a, axis in zip((x, k), axes, strict=True)
    ]
    of = lambda x, k: jax.value_and_grad(lambda x, k: jnp.sum(convolve(x, k, 1, 1) ** 2), (0, 1))(
        x, k
    )
    found = jax.jit(jax.vmap(of, axes))(*many)
    for i in range(3):
        one = [a if axis is None else jnp.take(a, i, axis)
               for a, axis in zip(many, axes, strict=True)]  # fmt: skip
        assert_near(jax.tree.map(lambda a, i=i: a[i], found), of(*one), 1e-5)


def test_gradients_in_a_loop_are_convolutions_in_the_order_of_the_library():
    x, k, *_ = arrays(3, (6, 6), 3, 8, 8)
    step = lambda _, k: (
        k - 0.01 * jax.grad(lambda k: jnp.sum(convolve(convolve(x, k, 1, 1), k, 1, 1)))(k)
    )
    program = jax.jit(lambda k: jax.lax.fori_loop(0, 3, step, k)).lower(k).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?)[,\s]", program))
    assert orders == {"b01f_01io->b01f"}


def test_elsewhere_and_over_a_mesh_it_is_xlas(monkeypatch):
    x, k, *_ = arrays(2, (5, 5), 3, 8, 2)
    # Each a function of its own, since traces are stored.
    traced = lambda x: jax.make_jaxpr(lambda x, k: convolve(x, k))(x, k)
    names = lambda x: [e.primitive.name for e in traced(x).eqns]
    assert names(x) == ["convolve"]
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Explicit,))
    over = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("batch")))
    assert names(over) == ["conv_general_dilated"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert names(x) == ["conv_general_dilated"]


def test_a_layer_has_flaxs_parameters_and_numbers():
    x = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    options = dict(use_bias=True, bias_init=nn.initializers.ones)
    layers = [kind(4, (3, 3), 2, [(1, 1)] * 2, **options) for kind in (nn.Conv, Conv)]
    params = layers[0].init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, layers[1].init(jax.random.key(1), x))
    assert_near(layers[1].apply(params, x), layers[0].apply(params, x), 1e-6)


def test_patches_by_hand():
    x = np.arange(2 * 5 * 4 * 2, dtype=np.float32).reshape(2, 5, 4, 2)
    found = np.asarray(patches(jnp.asarray(x), 3, stride=2, padding=1))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    assert found.shape == (2, 3, 2, 18)
    for row in range(3):
        for column in range(2):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            np.testing.assert_array_equal(found[:, row, column], window.reshape(2, 18))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_masked_row_reaches_no_other(norm):
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    model = convnet(4, 6, norm=norm)(5)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params = variables.params
    assert params["head"]["kernel"].shape == (6, 5)
    assert set(params) == {f"Conv{'GN' if norm == 'group' else 'BN'}_{i}" for i in (0, 1)} | {
        "head"
    }
    run = jax.jit(lambda x: masked(model, variables, x, jnp.asarray(MASK))[0].logits)
    clean, spoiled = run(x), run(x.at[1].set(jnp.nan))
    np.testing.assert_array_equal(clean[MASK], spoiled[MASK])


def test_a_networks_size_and_strides():
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    model = resolve.net("conv:8,16,16:group")(10)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == 3922
    assert not variables.model_state
    output, _ = jax.eval_shape(functools.partial(model.apply, train=True), variables, x)
    assert output.features.shape == (2, 16) and output.logits.shape == (2, 10)
    assert model.rows is not None and model.head is not None
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, False)[0])(variables, x)
    for size, channels in ((16, 8), (8, 16), (4, 16)):  # stride 1, then 2 and 2
        assert f"f32[2,{size},{size},{channels}]" in str(traced)


def test_only_what_xla_convolves_counts_as_convolving():
    example = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32)
    for name in ("conv:2,3:group", "resnet8:8,8,8", "cnn:8,8:4", "mlp:4"):
        assert not convolves(resolve.net(name)(2), example), name
    assert convolves(from_linen(Own()), example)

    def init(key, x):
        return Variables({"kernel": jnp.ones((3, 3, 3, 2))}, {})

    def apply(variables, x, train):
        return jnp.mean(x) * variables.params["kernel"], {}

    own = resolve.net("mlp:4")(2)._replace(init=init, apply=apply)
    assert not convolves(own, example)  # four dimensions, but no convolution


@pytest.mark.parametrize("name", ["conv:4", "conv:4,8:group"])
def test_a_nets_name_makes_it_again(name):
    assert resolve.net(name).__name__ == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("conv", "conv has no widths, but it takes one for each layer, as in conv:8,16,16"),
        ("conv:group", "conv has no widths"),
        ("conv:0", "width is 0"),
        ("conv:4:cosine", "'cosine', but conv does not take that"),
        ("mlp:4:group", "'group', but mlp does not take that"),
    ],
)
def test_mistakes(name, says):
    with pytest.raises(UserError, match=says):
        resolve.net(name)
    with pytest.raises(UserError, match="norm 'layer' is not known"):
        convnet(4, norm="layer")  # pyright: ignore[reportArgumentType]
