"""La-MAML's networks: sizes, initial values, and the convolutional path against a dense one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax import resolve
from cljax.errors import UserError
from cljax.losses import classification_loss
from cljax.methods.algebra.look_ahead import LookAhead, meta_loss
from cljax.nets import cnn
from cljax.types import Examples, Model, Output, Variables

SIDE, CHANNELS, BATCH, OUTPUTS = 5, 2, 4, 6
WIDTHS, DENSE = (3, 2), (5,)
IMAGE = jax.ShapeDtypeStruct((SIDE, SIDE, CHANNELS), jnp.float64)


@pytest.fixture
def _float64():
    with jax.enable_x64(True):
        yield


def shapes(name: str, side: int, outputs: int):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(resolve.net(name)(outputs).init, jax.random.key(0), x).params


@pytest.mark.parametrize(
    ("name", "side", "outputs", "number"),
    [
        ("cnn:160,160,160:320,320", 32, 100, 1_419_940),
        ("cnn:160,160,160,160:640,640", 64, 200, 2_873_640),
        ("cnn:160,160,160:320,320:xavier-normal:bfloat16", 32, 100, 1_419_940),
    ],
)
def test_published_sizes(name, side, outputs, number):
    params = shapes(name, side, outputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert params["Dense_0"]["kernel"].shape[0] == 2560  # 4 x 4 x 160
    assert resolve.net(name).__name__ == name


@pytest.mark.parametrize("init", ["kaiming-normal", "xavier-normal"])
def test_initial_deviations(init):
    x = jnp.zeros((1, 16, 16, 3))
    params = cnn(128, 128, dense=(256,), init=init)(64).init(jax.random.key(0), x).params
    fans = {"Conv_0": (27, 1152), "Conv_1": (1152, 1152), "Dense_0": (2048, 256), "head": (256, 64)}
    for name, (fan_in, fan_out) in fans.items():
        wanted = (2 / (fan_in if init == "kaiming-normal" else fan_in + fan_out)) ** 0.5
        assert np.std(params[name]["kernel"]) == pytest.approx(wanted, rel=0.05)
        if init == "xavier-normal" and name.startswith("Conv"):
            assert np.std(params[name]["bias"]) == pytest.approx((2 / 1153) ** 0.5, rel=0.2)
        else:
            assert not np.any(params[name]["bias"])


def test_half_precision():
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    made = {name: resolve.net(f"cnn:4,6:8:{name}")(5) for name in ("kaiming-normal", "bfloat16")}
    variables = made["bfloat16"].init(jax.random.key(0), x)
    outputs = {name: model.apply(variables, x, True)[0] for name, model in made.items()}
    assert outputs["bfloat16"].logits.dtype == jnp.float32
    gap = np.abs(outputs["bfloat16"].logits - outputs["kaiming-normal"].logits).max()
    assert 0 < gap < 0.05 * np.abs(outputs["kaiming-normal"].logits).max()


def matrix(kernel, side: int):
    """A convolution of stride 2 and padding 1 as [side side C, side' side' F], by index."""
    width, features = kernel.shape[2:]
    out = (side - 1) // 2 + 1
    taken = np.zeros((3, 3, side, side, out, out))  # which pixel each tap of each place takes
    for row, column, i, j in np.ndindex(out, out, 3, 3):
        at = 2 * row + i - 1, 2 * column + j - 1
        if min(at) >= 0 and max(at) < side:
            taken[i, j, at[0], at[1], row, column] = 1
    whole = jnp.einsum("ijcf,ijhwrq->hwcrqf", kernel, jnp.asarray(taken, kernel.dtype))
    return whole.reshape(side * side * width, out * out * features), out


def dense_model(model: Model) -> Model:
    """The same function of the same parameters, by matrices alone."""

    def apply(variables, x, train):
        x, side, params = x.reshape(x.shape[0], -1), SIDE, variables.params
        for place in range(len(WIDTHS)):
            layer = params[f"Conv_{place}"]
            weights, side = matrix(layer["kernel"], side)
            x = jax.nn.relu(x @ weights + jnp.tile(layer["bias"], side * side)[None])
        x = jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
        logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
        return Output(logits, x), variables.model_state

    return Model(model.init, apply)


def problem():
    mask = np.arange(OUTPUTS) // 2 == np.arange(3)[:, None]
    return support.spec()._replace(
        example=IMAGE, class_mask=mask, batch_size=BATCH, multi_head=True
    )


def batches(num: int):
    rng = np.random.default_rng(0)
    made = support.batches(num)
    y = 2 * np.asarray(made.task) + rng.integers(0, 2, (num, BATCH))
    x = jnp.asarray(rng.standard_normal((num, BATCH, *IMAGE.shape)))
    return made._replace(x=x, y=jnp.asarray(y, jnp.int32))


def test_second_order_lamaml_equals_the_dense_network(_float64):
    method = cljax.LaMAML(
        alpha_init=0.1, alpha_lr=0.3, capacity=5, replay_size=3, glances=2, inner_steps=2,
        order="second", inner_clip=0.2, inner_relu=False, clip_norm=1.0,
    )  # fmt: skip
    model = cnn(*WIDTHS, dense=DENSE)(OUTPUTS)
    ours, dense = (
        support.run(method.bind(net, problem()), batches(4))[0]
        for net in (model, dense_model(model))
    )
    moved = jax.tree.map(lambda a: float(jnp.abs(a - 0.1).max()), ours.alpha)
    assert min(jax.tree.leaves(moved)) > 1e-6  # every layer's rates have learned
    support.assert_close((ours.params, ours.alpha), (dense.params, dense.alpha), 1e-12)


def test_second_order_slopes_are_finite_differences(_float64):
    spec, batch = problem(), jax.tree.map(lambda a: a[0], batches(1))
    model = cnn(*WIDTHS, dense=DENSE)(OUTPUTS)
    params = model.init(jax.random.key(1), batch.x).params
    alpha = jax.tree.map(lambda a: jnp.full_like(a, 0.1), params)
    examples = Examples(batch.x, batch.y, batch.task)
    inner = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), (examples, batch.mask))
    loss = functools.partial(
        meta_loss, model_state={}, inner=inner, meta=(examples, batch.mask),
        loss_fn=classification_loss(model, spec),
    )  # fmt: skip
    second = LookAhead(2, 0.5, inner_relu=False)
    value = jax.jit(lambda p, a: loss(p, a, how=second)[0])
    slopes = jax.jit(jax.grad(lambda p, a: loss(p, a, how=second)[0], argnums=(0, 1)))(
        params, alpha
    )
    first = jax.jit(jax.grad(lambda p: loss(p, alpha, how=second._replace(order=1))[0]))(params)
    assert any(
        float(jnp.abs(a - b).max()) > 1e-4
        for a, b in zip(jax.tree.leaves(slopes[0]), jax.tree.leaves(first), strict=True)
    )
    size = 1e-6
    for which in (0, 1):
        for name in params:
            leaf = params[name]["kernel"]
            way = jax.random.normal(jax.random.key(which), leaf.shape, leaf.dtype)

            def at(step, name=name, which=which, way=way):
                both = [params, alpha]
                own = both[which]
                moved = {**own[name], "kernel": own[name]["kernel"] + step * way}
                both[which] = {**own, name: moved}
                return float(value(*both))

            slope = float(jnp.vdot(slopes[which][name]["kernel"], way))
            assert slope == pytest.approx((at(size) - at(-size)) / (2 * size), rel=1e-5, abs=1e-8)


def test_several_sets_of_weights_in_a_loop():
    model = resolve.net("cnn:3,4:5")(4)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    params = jax.vmap(lambda key: model.init(key, x).params)(jax.random.split(jax.random.key(0), 3))
    grad = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(Variables(p, {}), x, True)[0].logits)))
    step = lambda p: jax.tree.map(lambda a, g: a - 0.01 * g, p, grad(p))
    found = jax.jit(jax.vmap(lambda p: jax.lax.fori_loop(0, 2, lambda _, p: step(p), p)))(params)
    for i in range(3):
        own = step(step(jax.tree.map(lambda a, i=i: a[i], params)))
        support.assert_close(jax.tree.map(lambda a, i=i: a[i], found), own, 1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cnn", "cnn has no widths"),
        ("cnn:8,0", "width is 0"),
        ("cnn:8:0", "dense is 0"),
        ("cnn:8:pytorch", "initialisation 'pytorch' is not known"),
        ("cnn:8:patchs", "initialisation 'patchs' is not known"),
        ("mlp:8:9", "has '9', but mlp does not take that"),
    ],
)
def test_mistakes(name, says):
    with pytest.raises(UserError, match=says):
        resolve.net(name)


def test_rows_of_pixels_are_no_images():
    with pytest.raises(UserError, match=r"shape \[784\], but cnn:8 needs images"):
        cnn(8)(10).init(jax.random.key(0), jnp.zeros((1, 784)))
