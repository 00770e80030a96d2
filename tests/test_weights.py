"""Weights as files: out of a run and back into networks of Flax, Equinox and NNX."""

from __future__ import annotations

import functools
import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from flax import nnx

import cljax
from cljax.errors import UserError
from cljax.nets import from_equinox, from_nnx, to_equinox, to_nnx
from cljax.storage.weights import weights_metadata
from cljax.types import Variables

pytest.importorskip("safetensors", reason="the extra weights is not installed")
METHOD = cljax.Finetune(lr=0.1)


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, num_outputs, key):
        first, out = jax.random.split(key)
        self.first = eqx.nn.Linear(6, 5, key=first)
        self.norm = eqx.nn.BatchNorm(5, "batch", momentum=0.9, mode="batch")
        self.out = eqx.nn.Linear(5, num_outputs, key=out)

    def __call__(self, x, state):
        h, state = self.norm(self.first(x), state)
        h = jax.nn.relu(h)
        return (self.out(h), h), state


class Nnx(nnx.Module):
    def __init__(self, num_outputs, rngs):
        self.first = nnx.Linear(6, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(5, num_outputs, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norm(self.first(x)))
        return self.out(h), h


MODELS = {
    "linen": cljax.nets.mlp(5),
    "equinox": lambda num: from_equinox(lambda key: Equinox(num, key)),
    "nnx": lambda num: from_nnx(lambda rngs: Nnx(num, rngs)),
}


@functools.cache
def finished(kind):
    return cljax.run(METHOD, support.stream(), seeds=[0, 4], batch_size=4, net=MODELS[kind])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", MODELS)
def test_saved_weights_come_back_bit_for_bit(kind, tmp_path):
    run = finished(kind)
    path = run.save_weights(tmp_path / "new" / "model.safetensors", seed=4)
    found = cljax.load_weights(path, MODELS[kind])
    same(found, run.variables(4))
    same(cljax.load_weights(path, MODELS[kind](4)), found)


def test_a_file_says_what_it_is_of(tmp_path):
    run = finished("linen")
    path = run.save_weights(tmp_path / "model.safetensors")
    said = weights_metadata(path)
    assert said["method"] == "finetune" and said["stream"] == "rolled" and said["seed"] == "0"
    assert said["config_hash"] == run.config["config_hash"] and said["net"] == "mlp:5"
    assert json.loads(said["classes"]) == ["0", "1", "2", "3"] and said["outputs"] == "4"
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        assert "params/Dense_0/kernel" in file.keys()  # noqa: SIM118


def test_an_equinox_module_takes_the_weights_and_answers_as_the_run(tmp_path):
    run, make = finished("equinox"), lambda key: Equinox(4, key)
    path = run.save_weights(tmp_path / "model.safetensors")
    module, state = to_equinox(make, cljax.load_weights(path, from_equinox(make)))
    x = run.made.stream.spec(4).show(run.made.stream.test_x, np.zeros(12, int))
    module = eqx.nn.inference_mode(module)
    logits = jax.vmap(lambda own: module(own, state)[0][0], axis_name="batch")(x)
    found = run.predict(run.made.stream.test_x, task=0).scores
    np.testing.assert_allclose(found, logits, atol=1e-6)


def test_an_nnx_module_takes_the_weights_and_answers_as_the_run(tmp_path):
    run, make = finished("nnx"), lambda rngs: Nnx(4, rngs)
    path = run.save_weights(tmp_path / "model.safetensors")
    module = to_nnx(make, cljax.load_weights(path, from_nnx(make)))
    module.eval()
    x = run.made.stream.spec(4).show(run.made.stream.test_x, np.zeros(12, int))
    found = run.predict(run.made.stream.test_x, task=0).scores
    np.testing.assert_allclose(found, module(x)[0], atol=1e-6)


def test_half_precision_stays_what_it_is(tmp_path):
    from cljax.storage.weights import save_weights

    model = cljax.nets.mlp(5)(4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), {"params": variables.params})
    narrow = model._replace(init=lambda key, x: Variables(half["params"], {}))
    path = save_weights(tmp_path / "half.safetensors", half, {})
    same(cljax.load_weights(path, narrow, example=np.zeros(6, np.float32)), half)


def broken(folder, content):
    path = folder / "broken.safetensors"
    path.write_bytes(content)
    return path


def saved(folder):
    return finished("linen").save_weights(folder / "model.safetensors")


NET = MODELS["linen"]
WRONG = [
    (lambda f: cljax.load_weights(saved(f), cljax.nets.mlp(6)),
     r"of another network, mlp:5: params/Dense_0/bias is float32\[5\], .* is float32\[6\]"),
    (lambda f: cljax.load_weights(saved(f), cljax.nets.mlp(5, 5)), "there is no params/Dense_2"),
    (lambda f: cljax.load_weights(saved(f), MODELS["equinox"]), "of another network"),
    (lambda f: cljax.load_weights(saved(f), "mlp:5"), "must be a Model or a function that makes"),
    (lambda f: cljax.load_weights(f / "none", NET), "cannot be read: "),
    (lambda f: cljax.load_weights(broken(f, b"x" * 99), NET), "is no file of weights, or is dam"),
    (lambda f: cljax.load_weights(broken(f, saved(f).read_bytes()[:-9]), NET), "no file of weigh"),
    (lambda f: finished("linen").save_weights(f), "cannot be written"),
    (lambda f: finished("linen").save_weights(f / "x", seed=1), "no final state of seed 1"),
    (lambda f: to_equinox(lambda key: Equinox(4, key), finished("nnx").variables()),
     "of another network than this Equinox module: params/first/weight"),
    (lambda f: to_nnx(lambda rngs: Nnx(5, rngs), finished("nnx").variables()),
     r"of another network than this NNX module: params/out/bias is \[4\], but .* \[5\]"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "message"), WRONG)
def test_what_does_not_fit_is_one_sentence(ask, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        ask(tmp_path)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path)
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    for ask in (lambda: cljax.load_weights(path, NET), lambda: saved(tmp_path)):
        with pytest.raises(UserError, match=r"needs the package safetensors.*cljax\[weights\]"):
            ask()
