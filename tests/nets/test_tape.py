"""Tapes of layers against hand computation; what they leave out; gradients beside them."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cljax import resolve
from cljax.nets import convnet, from_linen, mlp
from cljax.types import Model, Output, Tape, Variables

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def made(model, x):
    """Variables off their initial values, so that no gain is 1 and no bias 0."""
    variables = jax.jit(model.init)(jax.random.key(0), x)
    stir = lambda leaf: leaf + 0.3 * jax.random.uniform(jax.random.key(2), leaf.shape, leaf.dtype)
    return jax.tree.map(stir, variables)


def test_a_perceptron_by_hand():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (5, 2, 3), jnp.float64)
        model = mlp(4, 3)(2)
        variables = made(model, x)
        output, tape = jax.jit(model.tape)(variables, x)
        jax.tree.map(close, output, jax.jit(model.apply, static_argnums=2)(variables, x, False)[0])
        flat = np.asarray(x).reshape(5, 6)
        variables = jax.tree.map(np.asarray, variables)
        z = []
        for layer in ("Dense_0", "Dense_1"):
            weights = variables.params[layer]
            z.append(flat @ weights["kernel"] + weights["bias"])
            close(tape[layer].pre, flat.mean(0))
            close(tape[layer].post, z[-1].mean(0))
            flat = np.maximum(z[-1], 0)
        assert set(tape) == {"Dense_0", "Dense_1"}  # no head
        assert (z[0].mean(0) < np.maximum(z[0], 0).mean(0)).any()  # the test can tell them apart


def test_a_small_convolutional_network_by_hand():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (3, 5, 6, 2), jnp.float64)
        model = convnet(4, 6, norm="group")(2)
        variables = made(model, x)
        output, tape = jax.jit(model.tape)(variables, x)
        given = np.asarray(x)
        for place, stride in ((0, 1), (1, 2)):
            weights = jax.tree.map(np.asarray, variables.params[f"ConvGN_{place}"])
            padded = np.pad(given, [(0, 0), (1, 1), (1, 1), (0, 0)])
            kernel = weights["Conv_0"]["kernel"]
            y = sum(
                padded[:, i : i + given.shape[1] : stride, j : j + given.shape[2] : stride]
                @ kernel[i, j]
                for i in range(3) for j in range(3)
            )  # fmt: skip
            conv = tape[f"ConvGN_{place}/Conv_0"]
            close(conv.pre, given.mean((0, 1, 2)))
            close(conv.post, y.mean((0, 1, 2)))
            parts = y.reshape(3, -1, (4, 6)[place], 1)
            normal = parts - parts.mean((1, 3), keepdims=True)
            normal = normal / np.sqrt(np.square(normal).mean((1, 3), keepdims=True) + 1e-5)
            normal = normal.reshape(y.shape)
            own = weights["GroupNorm_0"]["Affine_0"]
            after = normal * own["scale"] + own["bias"]
            affine = tape[f"ConvGN_{place}/GroupNorm_0/Affine_0"]
            np.testing.assert_allclose(affine.pre, normal.mean((0, 1, 2)), atol=1e-12)
            close(affine.post, after.mean((0, 1, 2)))
            given = np.maximum(after, 0)
        close(output.features, given.mean((1, 2)))
        assert len(tape) == 4


def test_names_are_paths_of_parameters():
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    model = resolve.net("resnet14:group")(4)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    _, tape = jax.eval_shape(model.tape, variables, x)
    leaves = jax.tree_util.tree_leaves_with_path(variables.params)
    owners = {"/".join(key.key for key in path[:-1]): leaf for path, leaf in leaves}
    assert set(tape) == set(owners) - {"head"}
    for path, leaf in leaves:
        layer = "/".join(key.key for key in path[:-1])
        if layer != "head":
            assert tape[layer].post.shape == leaf.shape[-1:]
            assert tape[layer].pre.shape == leaf.shape[-2:-1] or leaf.ndim == 1


def test_the_gradient_beside_a_tape_is_the_gradient():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (3, 5, 5, 2), jnp.float64)
        model = convnet(3, 4, norm="group")(2)
        variables = made(model, x)

        def loss(logits):
            return -jnp.mean(jax.nn.log_softmax(logits)[:, 1])

        def plain(params):
            return loss(model.apply(Variables(params, {}), x, False)[0].logits)

        def taped(params):
            output, tape = model.tape(Variables(params, {}), x)
            return loss(output.logits), tape

        def through(params):  # means can be learned through
            return sum(jnp.sum(layer.post) for layer in taped(params)[1].values())

        @jax.jit
        def every(params):
            own = jax.grad(taped, has_aux=True)(params)
            return jax.grad(plain)(params), own, taped(params)[1], jax.grad(through)(params)

        wanted, (slopes, tape), alone, ends = every(variables.params)
        jax.tree.map(close, slopes, wanted)
        jax.tree.map(close, tape, alone)
        assert float(jnp.abs(ends["ConvGN_0"]["Conv_0"]["kernel"]).max()) > 1e-3


def test_it_evaluates_and_leaves_batch_norm_out():
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    model = resolve.net("resnet8:2,2,2")(3)
    variables = made(model, x)
    output, tape = jax.jit(model.tape)(variables, x)
    close(output.logits, jax.jit(model.apply, static_argnums=2)(variables, x, False)[0].logits)
    assert len(tape) == 9 and all(name.endswith("Conv_0") for name in tape)


def test_half_precision_is_averaged_in_single():
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    model = resolve.net("resnet8:2,2,2:group:bfloat16")(3)
    _, tape = jax.eval_shape(model.tape, jax.eval_shape(model.init, jax.random.key(0), x), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(tape)} == {jnp.dtype("float32")}


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        layer = nn.Dense(3, name="same")
        x = nn.relu(layer(x))
        x = nn.relu(layer(inputs=x))
        return nn.Dense(2, name="out")(x), x


def test_a_layer_used_twice_has_the_mean_of_its_uses():
    x = jax.random.normal(jax.random.key(1), (4, 3))
    for head, names in ((None, {"same", "out"}), ("out", {"same"})):
        model = from_linen(Twice(), head=head)
        variables = made(model, x)
        output, tape = model.tape(variables, x)
        assert set(tape) == names
    weights = variables.params["same"]
    first = x @ weights["kernel"] + weights["bias"][None]
    second = jax.nn.relu(first) @ weights["kernel"] + weights["bias"][None]
    np.testing.assert_allclose(tape["same"].post, (first + second).mean(0) / 2, 1e-5, 1e-6)
    uses = (x + jax.nn.relu(first)).mean(0) / 2
    np.testing.assert_allclose(tape["same"].pre, uses, 1e-5, 1e-6)


def test_a_network_of_pure_functions_gives_its_own():
    """The example of the module's documentation."""

    def init(key, x):
        first = {"kernel": jnp.ones((x.shape[1], 2)), "bias": jnp.zeros(2)}
        return Variables({"first": first, "head": {"kernel": jnp.ones((2, 3))}}, {})

    def tape(variables, x):
        weights = variables.params
        z = x @ weights["first"]["kernel"] + weights["first"]["bias"][None]
        features = jax.nn.relu(z)
        output = Output(features @ weights["head"]["kernel"], features)
        return output, {"first": Tape(x.mean(0), z.mean(0))}

    model = Model(init, lambda variables, x, train: (tape(variables, x)[0], {}), tape=tape)
    _, seen = jax.jit(model.tape)(init(None, jnp.ones((4, 3))), jnp.ones((4, 3)))
    np.testing.assert_array_equal(seen["first"].post, jnp.full(2, 3.0))


def test_masked_rows_count_in_no_mean():
    """Whatever they hold; means are those of the other rows alone."""
    with jax.enable_x64(True):
        model = mlp(4)(3)
        x = jax.random.normal(jax.random.key(0), (5, 6), jnp.float64)
        variables = model.init(jax.random.key(1), x)
        mask = jnp.array([True, False, True, True, False])
        spoilt = x.at[1].set(jnp.nan)
        (_, seen), (_, alone) = model.tape(variables, spoilt, mask), model.tape(variables, x[mask])
        for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
