"""Penalties look at the network as it predicts: BatchNorm with its running statistics, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import padding_support
import pytest
import support

import cljax
from cljax.method import Problem
from cljax.types import Batch, Clock, Variables

C, D = support.NUM_CLASSES, support.NUM_INPUTS
CASES = [(1, 1, 0), (5, 5, 1), (7, 4, 2)]  # rows, of them valid, seed
EVERY = pytest.mark.parametrize(("rows", "valid", "seed"), CASES)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def problem(rows, valid, seed):
    """Weights, statistics and a batch; features [n, D] and logits [n, C] of its valid rows."""
    rng = np.random.default_rng(seed)
    mean, var = rng.normal(size=D), rng.uniform(0.5, 3, D)
    kernel, x = rng.normal(size=(D, C)), rng.normal(size=(rows, D)) + 1
    flags = (jnp.asarray(True),) * 2
    clock = Clock(*(jnp.zeros((), jnp.int32),) * 3, *flags)
    batch = Batch(
        jnp.asarray(x), jnp.asarray(rng.integers(0, C, rows), jnp.int32),
        jnp.zeros(rows, jnp.int32), jnp.arange(rows) < valid, jnp.arange(rows), clock,
    )  # fmt: skip
    state = {"batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}}
    features = ((x - mean) / np.sqrt(var + 1e-5))[:valid]
    network = Problem(padding_support.normalised(C), support.spec()).network(state)
    params = {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(C)}}
    return params, batch, network, features, features @ kernel


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def consolidated(penalty, params, batch, network):
    done = penalty.consolidate(
        penalty.init(params), params, batch, network, jax.random.key(1)
    )  # fmt: skip
    return np.asarray(done.importance["head"]["kernel"])


@pytest.mark.parametrize("kind", ["empirical", "mean-gradient", "sampled"])
@EVERY
def test_the_fisher_by_hand(kind, rows, valid, seed):
    params, batch, network, features, logits = problem(rows, valid, seed)
    labels = np.asarray(batch.y)[:valid]
    if kind == "sampled":
        everyone = network.logits(Variables(params, network.model_state), batch.x)
        labels = np.asarray(jax.random.categorical(jax.random.key(1), everyone))[:valid]
    slopes = softmax(logits) - np.eye(C)[labels]
    each = features[:, :, None] * slopes[:, None]
    expected = each.mean(0) ** 2 if kind == "mean-gradient" else (each**2).mean(0)
    found = consolidated(cljax.penalties.EWC(1.0, fisher=kind), params, batch, network)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert expected.max() > 1e-3


@EVERY
def test_the_sensitivity_of_mas_by_hand(rows, valid, seed):
    params, batch, network, features, logits = problem(rows, valid, seed)
    expected = np.abs(2 * features[:, :, None] * logits[:, None]).mean(0)
    found = consolidated(cljax.penalties.MAS(1.0), params, batch, network)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@EVERY
def test_the_distillation_of_lwf_by_hand(rows, valid, seed):
    """The old network's targets are those of its own running statistics, not the current ones."""
    params, batch, network, features, logits = problem(rows, valid, seed)
    penalty = cljax.penalties.LwF(1.0, temperature=2.0, outputs="past", weights="one")
    tilt = 0.3 * jnp.arange(C)[None]
    teacher = {"head": {**params["head"], "kernel": params["head"]["kernel"] + tilt}}
    state = penalty.begin(Variables(params, network.model_state))
    rng = np.random.default_rng(10 + seed)
    mean, var = rng.normal(size=D), rng.uniform(0.5, 3, D)
    then = network._replace(
        model_state={"batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}}
    )
    state = penalty.consolidate(state, teacher, batch, then, jax.random.key(0))
    features = ((np.asarray(batch.x) - mean) / np.sqrt(var + 1e-5))[:valid]
    old = softmax(features @ np.asarray(teacher["head"]["kernel"]) / 2)
    new = softmax(logits / 2)
    expected = 4 * (old * np.log(old / new)).sum(1).mean()
    found = penalty.distil(state, params, batch, network)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
