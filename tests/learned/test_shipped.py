"""Rules that are stored: those that cljax ships, and what a killed run left."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax import update_rules
from cljax.data import images_or_sample
from cljax.errors import UserError
from cljax.streams.transfers import Fashion5_5
from cljax.update_rules import shipped
from cljax.update_rules.stored import load_rule, save_rule

# What the rule leaves of five digits, and makes of five others, on the sample of MNIST.
OLD, NEW = 0.913, 0.825


def digits():
    source = Fashion5_5(steps=100, pretrain_steps=300)
    return source.build(images_or_sample("mnist", None, True))


def gate_of(stream, **sizes):
    model = cljax.nets.mlp(32, 8)(stream.num_classes)
    return update_rules.lstm_gate(model, stream.example, **sizes)


def test_the_shipped_rule_fits_the_network_it_says_it_is_of_and_is_small():
    made = update_rules.provenance("fashion-5-5")
    options = {name: made["options"][name] for name in ("hidden", "hidden_norm")}
    assert made["net"] == "mlp:32,8" and len(shipped._read("fashion-5-5.npz")) < 200_000
    theta = load_rule("fashion-5-5", 0, gate_of(digits(), **options))
    jax.tree.map(np.testing.assert_array_equal, theta, update_rules.load("fashion-5-5"))
    with pytest.raises(UserError, match="made for another network"):
        load_rule("fashion-5-5", 0, gate_of(digits(), hidden=4))


def test_its_provenance_says_how_it_did_beside_sgd_on_networks_it_never_saw():
    made = update_rules.provenance("fashion-5-5")
    assert made["seed"] not in made["judged_on_seeds"] and len(made["judged_on_seeds"]) == 5
    for stream in ("fashion-5-5", "fashion-5-mnist-5"):
        found = made["readouts"][stream]
        low, high = found["rule less sgd"]["old"]["ci95"]
        assert 0 < low < high and len(found["rule"]["old"]["values"]) == 5
    assert {"command", "data", "versions", "sha256", "config_hash"} <= set(made)


def test_an_unknown_rule_lists_those_that_there_are():
    with pytest.raises(UserError, match="'fashion' is not known.*fashion-5-5"):
        update_rules.load("fashion")


@pytest.mark.parametrize("at", [0, -1, 5000])
def test_a_damaged_rule_is_refused(monkeypatch, at):
    real = shipped._read

    def flipped(name):
        content = bytearray(real(name))
        if name.endswith(".npz"):
            content[at] ^= 1
        return bytes(content)

    monkeypatch.setattr(shipped, "_read", flipped)
    with pytest.raises(UserError, match=r"fashion-5-5 is damaged: its SHA-256 is not [0-9a-f]{64}"):
        update_rules.load("fashion-5-5")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_provenance_is_refused(monkeypatch, content):
    monkeypatch.setattr(shipped, "_read", lambda name: content)
    for read in (update_rules.provenance, update_rules.load):
        with pytest.raises(UserError, match=r"fashion-5-5.json of a learned .* is damaged"):
            read("fashion-5-5")


def test_a_run_with_the_shipped_rule_gives_the_numbers_it_gave():
    options = update_rules.provenance("fashion-5-5")["options"]
    method = cljax.Teacher(rule="fashion-5-5", **options)
    run = cljax.run(
        method, digits(), seeds=1, net="mlp:32,8", batch_size=64, readout=True, progress=False,
        lanes="sequential",
    )  # fmt: skip
    old, new = run.accuracy_matrix("readout")[0, -1]
    assert (old, new) == (pytest.approx(OLD, abs=0.03), pytest.approx(NEW, abs=0.03))
    told = json.dumps(run.config["identity"])
    assert update_rules.provenance("fashion-5-5")["sha256"] in told


def test_a_rule_is_written_again_where_a_killed_run_left_one(tmp_path):
    gate = gate_of(digits(), hidden=4)
    first = gate.init(jax.random.key(0))
    second = jax.tree.map(lambda leaf: jnp.asarray(leaf) + 1, first)
    for rule in (first, second):
        save_rule(tmp_path, rule, seed=2)
        read = load_rule(str(tmp_path), 2, gate)
        jax.tree.map(np.testing.assert_array_equal, read, rule)
