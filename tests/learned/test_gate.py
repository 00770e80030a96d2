"""The gate: the paper's sizes, one unit by hand, plain SGD at the start, misfits refused."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import nets
from cljax.errors import UserError
from cljax.inner_loop import sgd_step, unroll
from cljax.losses import cross_entropy
from cljax.nets import from_linen
from cljax.nets.groupnorm import GroupNorm
from cljax.types import Variables
from cljax.update_rules import learned_step, learned_update, lstm_gate, multipliers
from cljax.update_rules.gate import SGD


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def spec(*shape, dtype=jnp.float64):
    return jax.ShapeDtypeStruct(shape, dtype)


class Small(nn.Module):
    """A convolution of ten channels, GroupNorm, a dense layer and a head."""

    @nn.compact
    def __call__(self, x, train):
        kept = x.dtype
        x = nn.Conv(10, (3, 3), use_bias=False, param_dtype=kept)(x)
        x = nn.Conv(4, (3, 3), use_bias=False, param_dtype=kept)(x)
        x = nn.relu(GroupNorm(2, param_dtype=kept)(x))
        x = nn.relu(nn.Dense(3, param_dtype=kept)(x.mean(axis=(1, 2))))
        return nn.Dense(5, param_dtype=kept, name="head")(x), x


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def small():
    model = from_linen(Small(), head="head")
    x = jax.random.uniform(jax.random.key(1), (6, 5, 5, 3), jnp.float64)
    variables = jax.jit(model.init)(jax.random.key(2), x)
    y = jnp.arange(6) % 5
    return model, variables.params, x, y


@functools.partial(jax.jit, static_argnums=0)
def backward(model, params, x, y):
    def loss(params):
        output, tape = model.tape(Variables(params, {}), x)
        return cross_entropy(output.logits, y).mean(), tape

    grads, tape = jax.grad(loss, has_aux=True)(params)
    return grads, tape


def test_sizes_are_those_of_the_paper():
    """A 3x3 kernel of ten channels: 191 inputs, 90 outputs; a gain or shift: 4 and 1."""
    model, *_ = small()
    gate = lstm_gate(model, spec(5, 5, 3))
    sizes = {slot: group[1:] for group in gate.groups for slot in group.slots}
    named = {(slot.name, slot.leaves): value for slot, value in sizes.items()}
    assert named["Conv_1", ("kernel",)] == (4, 191, 90, 64)
    assert named["Conv_0", ("kernel",)] == (10, 2 * 27 + 3 + 1, 27, 64)
    assert named["Dense_0", ("kernel", "bias")] == (3, 3 * 5 + 1, 5, 64)
    assert named["GroupNorm_0/Affine_0", ("scale",)] == (4, 4, 1, 32)
    assert named["GroupNorm_0/Affine_0", ("bias",)] == (4, 4, 1, 32)
    assert not any("head" in slot.name for slot in sizes)


@pytest.mark.parametrize(
    ("net", "count", "state"),
    [(nets.resnet32, 9_756_390, 872_448), (nets.resnet14, 3_830_892, 356_352)],
)
def test_the_paper_s_networks_have_so_many_parameters_of_the_rule(net, count, state):
    model = net(norm="group")(10)
    gate = lstm_gate(model, spec(32, 32, 3, dtype=jnp.float32), kappa=1.0)
    assert size(jax.eval_shape(gate.init, jax.random.key(0))) == count
    assert size(jax.eval_shape(gate.start)) == state


def test_the_small_rule_of_digits_has_58824_parameters():
    gate = lstm_gate(nets.mlp(32, 8)(10), spec(14, 14, 1, dtype=jnp.float32), hidden=16)
    assert size(jax.eval_shape(gate.init, jax.random.key(0))) == 58_824


def perturbed(theta):
    leaves, structure = jax.tree.flatten(theta)
    noise = [0.3 * jax.random.normal(jax.random.key(i), a.shape) for i, a in enumerate(leaves)]
    return jax.tree.unflatten(structure, [a + n for a, n in zip(leaves, noise, strict=True)])


def test_one_unit_by_hand():
    """The LSTMs of one output unit, two steps, written out; perturbed so that all of it counts."""
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), hidden=6, hidden_norm=5)
    theta = jax.jit(gate.init)(jax.random.key(3))
    theta = jax.jit(perturbed)(theta)
    grads, tape = backward(model, params, x, y)
    carry, apply = gate.start(), jax.jit(gate.apply)
    for _ in range(2):
        delta, carry = apply(theta, params, grads, tape, carry)

    def by_hand(weights, x):
        sigmoid = lambda v: 1 / (1 + np.exp(-v))
        kept = [(0.0, 0.0)] * 3
        for _ in range(2):
            z = x
            for i in range(3):
                own = {k: np.asarray(v) for k, v in weights[f"cell_{i}"].items()}
                h, c = kept[i][1], kept[i][0]
                h = np.zeros(len(own["bias"]) // 4) if np.ndim(h) == 0 else h
                four = np.split(z @ own["input"] + h @ own["recurrent"] + own["bias"], 4)
                gates = dict(zip("ifgo", four, strict=True))
                c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
                h = sigmoid(gates["o"]) * np.tanh(c)
                kept[i] = (c, h)
                z = np.maximum(h, 0)
            out = z @ np.asarray(weights["out"]["kernel"]) + np.asarray(weights["out"]["bias"])
        return float(weights["kappa"]) * np.tanh(out)

    def found(name, leaves):
        for g, group in enumerate(gate.groups):
            for i, slot in enumerate(group.slots):
                if (slot.name, slot.leaves) == (name, leaves):
                    return jax.tree.map(lambda a, i=i: np.asarray(a[i]), theta[g])
        raise AssertionError(name)

    unit = 2
    kernel, slope = (
        np.asarray(t["Conv_1"]["kernel"][..., unit]).reshape(-1) for t in (params, grads)
    )
    seen = np.concatenate([kernel, slope, tape["Conv_1"].pre, tape["Conv_1"].post[unit : unit + 1]])
    expected = by_hand(found("Conv_1", ("kernel",)), seen).reshape(3, 3, 10)
    np.testing.assert_allclose(delta["Conv_1"]["kernel"][..., unit], expected, rtol=1e-12)

    dense = [t["Dense_0"] for t in (params, grads)]
    seen = [np.append(np.asarray(t["kernel"][:, 1]), t["bias"][1]) for t in dense]
    seen = np.concatenate([*seen, tape["Dense_0"].pre, [1.0], tape["Dense_0"].post[1:2]])
    expected = by_hand(found("Dense_0", ("kernel", "bias")), seen)
    np.testing.assert_allclose(delta["Dense_0"]["kernel"][:, 1], expected[:-1], rtol=1e-12)
    np.testing.assert_allclose(delta["Dense_0"]["bias"][1], expected[-1], rtol=1e-12)

    name = "GroupNorm_0/Affine_0"
    own = [t["GroupNorm_0"]["Affine_0"]["scale"][3] for t in (params, grads)]
    seen = np.array([*own, tape[name].pre[3], tape[name].post[3]])
    expected = by_hand(found(name, ("scale",)), seen)
    np.testing.assert_allclose(
        delta["GroupNorm_0"]["Affine_0"]["scale"][3], expected[0], rtol=1e-12
    )
    assert jax.tree.all(jax.tree.map(lambda d: bool((d == 1).all()), delta["head"]))


def test_a_fresh_rule_is_plain_sgd():
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), hidden=8, hidden_norm=4)
    loss = lambda output, batch: cross_entropy(output.logits, batch.y).mean()
    plain = lambda params, batch: cross_entropy(
        model.apply(Variables(params, {}), batch.x, False)[0].logits, batch.y
    )
    batches = _batches(x, y, 20)
    step = learned_step(gate, jax.jit(gate.init)(jax.random.key(3)), loss, model, 0.1)
    ours, theirs = jax.jit(
        lambda start: [unroll(by, start, batches).params for by in (step, sgd_step(plain, 0.1))]
    )(params)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), theirs, params)
    assert min(map(float, jax.tree.leaves(moved))) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


def test_a_rule_with_kappa_0_moves_the_head_alone():
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), hidden=8, hidden_norm=4, kappa=0.0)
    loss = lambda output, batch: cross_entropy(output.logits, batch.y).mean()
    step = learned_step(gate, jax.jit(gate.init)(jax.random.key(3)), loss, model, 0.1)
    after = unroll(step, params, _batches(x, y, 3)).params
    moved = {name: jax.tree.map(jnp.array_equal, after[name], params[name]) for name in params}
    assert not any(map(bool, jax.tree.leaves(moved.pop("head"))))
    assert jax.tree.all(moved)


def test_layers_of_one_size_are_one_program_with_weights_of_their_own():
    """Each layer's multipliers are those of a gate that knows this layer alone."""
    model = nets.mlp(4, 4, 4)(3)
    x = jax.random.uniform(jax.random.key(1), (6, 4), jnp.float64)
    params = model.init(jax.random.key(2), x).params
    gate = lstm_gate(model, spec(4), hidden=5)
    (group,) = gate.groups
    assert [slot.name for slot in group.slots] == ["Dense_0", "Dense_1", "Dense_2"]
    (theta,) = jax.tree.map(lambda a: a + 0.1, jax.jit(gate.init)(jax.random.key(3)))
    grads, tape = backward(model, params, x, jnp.arange(6) % 3)
    apply = jax.jit(gate.apply)
    delta, _ = apply((theta,), params, grads, tape, gate.start())
    values = multipliers(gate, delta)
    for i, name in enumerate(values):
        swapped = jax.tree.map(lambda a, i=i: a.at[:].set(a[i]), theta)
        again, _ = apply((swapped,), params, grads, tape, gate.start())
        np.testing.assert_array_equal(multipliers(gate, again)[name], values[name])
    assert not np.allclose(values["Dense_0"], values["Dense_1"])


def test_a_gain_may_be_one_vector():
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), norm_unit="vector")
    found = {slot.name: group for group in gate.groups for slot in group.slots}
    assert found["GroupNorm_0/Affine_0"][1:4] == (1, 3 * 4 + 1, 4)
    grads, tape = backward(model, params, x, y)
    theta = jax.eval_shape(gate.init, jax.random.key(0))
    delta, _ = jax.eval_shape(gate.apply, theta, params, grads, tape, gate.start())
    assert jax.tree.map(jnp.shape, delta) == jax.tree.map(jnp.shape, params)


def test_as_an_optax_transformation():
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), hidden=8, hidden_norm=4)
    theta = jax.tree.map(lambda a: a + 0.05, jax.jit(gate.init)(jax.random.key(3)))
    transform = learned_update(gate, theta, 0.1)
    state, ours = transform.init(params), params

    @jax.jit
    def step(params, state):
        grads, tape = backward(model, params, x, y)
        updates, state = transform.update(grads, state, params, tape=tape)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        ours, state = step(ours, state)
    loss = lambda output, batch: cross_entropy(output.logits, batch.y).mean()
    theirs = unroll(learned_step(gate, theta, loss, model, 0.1), params, _batches(x, y, 3)).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)
    with pytest.raises(UserError, match="needs params and tape"):
        transform.update(params, state, params)


def test_networks_that_do_not_fit_are_refused():
    model, params, x, y = small()
    with pytest.raises(UserError, match="has no tape"):
        lstm_gate(model._replace(tape=None), spec(5, 5, 3))
    with pytest.raises(UserError, match="without BatchNorm"):
        lstm_gate(nets.resnet8()(5), spec(8, 8, 3, dtype=jnp.float32))

    def lacking(variables, x):
        output, tape = model.tape(variables, x)
        return output, {name: own for name, own in tape.items() if name != "Dense_0"}

    with pytest.raises(UserError, match="says nothing of Dense_0/"):
        lstm_gate(model._replace(tape=lacking), spec(5, 5, 3))
    gate = lstm_gate(model, spec(5, 5, 3))
    other = lstm_gate(nets.mlp(4)(3), spec(4))
    grads, tape = backward(model, params, x, y)
    with pytest.raises(UserError, match="made for another network"):
        gate.apply(other.init(jax.random.key(0)), params, grads, tape, gate.start())
    for options in ({"hidden": 0}, {"cells": 0}, {"kappa": float("nan")}, {"norm_unit": "all"}):
        with pytest.raises(UserError):
            lstm_gate(model, spec(5, 5, 3), **options)


def test_kappa_starts_where_it_is_asked():
    model, params, x, y = small()
    gate = lstm_gate(model, spec(5, 5, 3), hidden=8, hidden_norm=4, kappa=1.0)
    grads, tape = backward(model, params, x, y)
    theta = jax.jit(gate.init)(jax.random.key(3))
    delta, _ = jax.jit(gate.apply)(theta, params, grads, tape, gate.start())
    np.testing.assert_allclose(delta["Conv_0"]["kernel"], np.tanh(1.0), rtol=1e-12)
    np.testing.assert_allclose(SGD * np.tanh(1.0), 1.0, rtol=1e-12)


@dataclasses.dataclass
class Shown:
    x: object
    y: object


jax.tree_util.register_dataclass(Shown, ["x", "y"], [])


def _batches(x, y, steps):
    return Shown(jnp.stack([x] * steps), jnp.stack([y] * steps))
