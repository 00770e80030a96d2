"""Networks of NNX, Equinox and Haiku: the same numbers as Linen's, and a method runs on them."""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from flax import nnx

import cljax
from cljax.errors import UserError
from cljax.nets import from_equinox, from_haiku, from_linen, from_nnx
from cljax.types import Variables

IN, WIDTH, OUT = support.NUM_INPUTS, 5, support.NUM_CLASSES
X = jax.random.normal(jax.random.key(1), (3, IN))


class Linen(nn.Module):
    norm: bool = False

    @nn.compact
    def __call__(self, x, train):
        h = nn.Dense(WIDTH, name="first")(x)
        if self.norm:
            h = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="norm")(h)
        h = nn.relu(h)
        return nn.Dense(OUT, name="out")(h), h


class Nnx(nnx.Module):
    def __init__(self, norm, rngs):
        self.first = nnx.Linear(IN, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, epsilon=1e-5, rngs=rngs) if norm else None
        self.out = nnx.Linear(WIDTH, OUT, rngs=rngs)

    def __call__(self, x):
        h = self.first(x)
        h = nnx.relu(h if self.norm is None else self.norm(h))
        return self.out(h), h


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: Any
    out: eqx.nn.Linear

    def __init__(self, norm, key):
        first, out = jax.random.split(key)
        self.first = eqx.nn.Linear(IN, WIDTH, key=first)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", momentum=0.9, mode="batch") if norm else None
        self.out = eqx.nn.Linear(WIDTH, OUT, key=out)

    def __call__(self, x, state=None):
        h = self.first(x)
        if self.norm is None:
            h = jax.nn.relu(h)
            return self.out(h), h
        h, state = self.norm(h, state)
        h = jax.nn.relu(h)
        return (self.out(h), h), state


def haiku(norm):
    def forward(x, train):
        h = hk.Linear(WIDTH, name="first")(x)
        if norm:
            h = hk.BatchNorm(True, True, 0.9, eps=1e-5, name="norm")(h, train)
        h = jax.nn.relu(h)
        return hk.Linear(OUT, name="out")(h), h

    return forward


MAKE = {
    "nnx": lambda norm: from_nnx(lambda rngs: Nnx(norm, rngs), head="out"),
    "equinox": lambda norm: from_equinox(lambda key: Equinox(norm, key), head="out"),
    "haiku": lambda norm: from_haiku(haiku(norm), head="out"),
}
EACH = pytest.mark.parametrize("kind", sorted(MAKE))


def translated(kind, params):
    """Parameters of the Linen network as each framework names and lays them out."""
    norm = params.get("norm", {})
    if kind == "nnx":
        return params
    if kind == "haiku":
        own = {n: {"w": params[n]["kernel"], "b": params[n]["bias"]} for n in ("first", "out")}
        if norm:
            own["norm"] = {"scale": norm["scale"][None], "offset": norm["bias"][None]}
        return own
    own = {f"{n}/weight": params[n]["kernel"].T for n in ("first", "out")}
    own |= {f"{n}/bias": params[n]["bias"] for n in ("first", "out")}
    return own | ({"norm/weight": norm["scale"], "norm/bias": norm["bias"]} if norm else {})


@EACH
@pytest.mark.parametrize("norm", [False, True])
def test_the_same_parameters_give_the_logits_and_features_of_linen(kind, norm):
    linen, model = from_linen(Linen(norm), head="out"), MAKE[kind](norm)
    variables = linen.init(jax.random.key(0), X)
    ours = model.init(jax.random.key(0), X)
    params = translated(kind, variables.params)
    assert jax.tree.map(jnp.shape, ours.params) == jax.tree.map(jnp.shape, params)
    assert bool(ours.model_state) == norm
    expected, linen_state = linen.apply(variables, X, True)
    output, state = jax.jit(model.apply, static_argnums=2)(ours._replace(params=params), X, True)
    support.assert_close(output, expected, 1e-5)
    if not norm:
        return
    after = Variables(params, state)
    evaluated, kept = model.apply(after, X, False)
    jax.tree.map(np.testing.assert_array_equal, kept, state)  # tests change no statistics
    if kind == "equinox":  # divides a running variance that starts at 1 as if it started at 0
        return
    if kind == "nnx":
        support.assert_close(state, {"norm": linen_state["batch_stats"]["norm"]}, 1e-6)
        expected, _ = linen.apply(Variables(variables.params, linen_state), X, False)
    support.assert_close(evaluated, expected, 1e-5)  # Haiku's average starts as the first batch


@EACH
def test_statistics_move_in_training_alone(kind):
    model = MAKE[kind](True)
    variables = model.init(jax.random.key(0), X)
    _, trained = model.apply(variables, X, True)
    _, tested = model.apply(variables, X, False)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables.model_state, trained)
    assert any(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, variables.model_state, tested)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(trained) == shapes(variables.model_state)


@EACH
def test_head_and_rows_are_the_output_layers(kind):
    model = MAKE[kind](False)
    variables = model.init(jax.random.key(0), X)
    output, _ = model.apply(variables, X, False)
    rows = model.rows.get(variables.params)
    assert rows.shape == (WIDTH, OUT)
    doubled = model.rows.set(variables.params, 2 * rows)
    moved, _ = model.apply(variables._replace(params=doubled), X, False)
    bias = output.logits - output.features @ rows
    np.testing.assert_allclose(moved.logits, 2 * (output.logits - bias) + bias, atol=1e-6)
    flags = model.head(variables.params, jnp.arange(OUT) == 1)
    gradient = jax.grad(
        lambda p: jnp.sum(model.apply(variables._replace(params=p), X, False)[0][0])
    )
    kept = jax.tree.map(lambda f, g: jnp.where(f, 0.0, g), flags, gradient(variables.params))
    frozen = jax.tree.map(lambda p, g: p + g, variables.params, kept)  # only the other outputs
    after, _ = model.apply(variables._replace(params=frozen), X, False)
    same = np.isclose(np.asarray(after.logits), np.asarray(output.logits)).all(axis=0)
    assert same.tolist() == [False, True, False, False]


@EACH
@pytest.mark.parametrize("norm", [False, True])
def test_lamaml_and_replay_learn_with_them(kind, norm):
    stream = support.stream()
    net = lambda num_outputs: MAKE[kind](norm)
    method = cljax.ER(lr=0.3, capacity=6) if norm else cljax.LaMAML(capacity=6, replay_size=3)
    done = cljax.run(method, stream, seeds=1, net=net, batch_size=4, epochs=2)
    assert done.metric("RA")[0] > 0.4  # chance is a quarter


def test_a_package_that_is_missing_is_named(monkeypatch):
    for module, make, package in (
        ("haiku", from_haiku, "dm-haiku"),
        ("equinox", from_equinox, "equinox"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"needs the package {package}.*cljax\\[adapters\\]"):
            make(lambda x: x)


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_networks_that_do_not_fit_get_a_sentence():
    with pytest.raises(UserError, match="random number streams"):
        from_nnx(Noisy)
    with pytest.raises(UserError, match="head 'outs' has no weight.*out/weight"):
        from_equinox(lambda key: Equinox(False, key), head="outs")
    for model in (from_haiku(haiku(False), head="outs"),
                  from_nnx(lambda rngs: Nnx(False, rngs), head="outs")):  # fmt: skip
        with pytest.raises(UserError, match="did you mean out"):
            model.init(jax.random.key(0), X)
