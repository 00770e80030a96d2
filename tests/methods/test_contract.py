"""What every method keeps to, one table for all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from cljax.methods import METHODS
from cljax.types import Learner, Method

# Name -> (options that fit the small problem, a real hyper-parameter that may be traced)
CASES = {
    "lamaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "alpha_lr"),
    "sync-lamaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "lr"),
    "cmaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "lr"),
}
EVERY = pytest.mark.parametrize("name", sorted(METHODS))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def make(name, **extra) -> Method:
    return METHODS[name](**{**CASES[name][0], **extra})


def scanned(learner: Learner, batches, key):
    def body(state, batch):
        draws = learner.draw(state, batch, jax.random.fold_in(key, batch.clock.step))
        state, info = learner.update(state, batch, draws)
        return state, info.loss

    return jax.lax.scan(body, learner.init(key), batches)


def test_every_method_has_a_row():
    assert set(CASES) == set(METHODS)


@EVERY
def test_protocol(name):
    method = make(name)
    assert isinstance(method, Method) and method.name == name
    learner = support.bind(method)
    assert isinstance(learner, Learner) and "logits" in learner.predictors
    assert (METHODS[name].__doc__ or "").count("\n") > 5


@EVERY
def test_an_update_changes_no_structure_shape_or_type(name):
    learner = support.bind(make(name))
    state = learner.init(jax.random.key(0))
    after, _ = support.run(learner, support.batches(1), state=state)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(state) == shapes(after)


@EVERY
def test_jit_and_scan_equal_the_plain_loop_over_three_tasks(name):
    """Three tasks, so that a value compiled in from the first one would show."""
    learner, batches = support.bind(make(name)), support.batches(6)
    plain, losses = support.run(learner, batches)
    state, scan_losses = jax.jit(lambda b, k: scanned(learner, b, k))(batches, jax.random.key(0))
    support.assert_close(plain, state, 1e-12)
    np.testing.assert_allclose(losses, scan_losses, atol=1e-12)


@EVERY
def test_vmap_over_seeds_equals_single_seeds(name):
    learner, batches = support.bind(make(name)), support.batches(5)
    keys = jax.random.split(jax.random.key(7), 3)
    many = jax.jit(jax.vmap(lambda k: scanned(learner, batches, k)))(keys)
    for i in range(3):
        one = jax.jit(lambda k: scanned(learner, batches, k))(keys[i])
        support.assert_close(support.at(many, i), one, 1e-12)


@EVERY
def test_a_traced_hyper_parameter_equals_its_value(name):
    traced, batches, key = CASES[name][1], support.batches(4), jax.random.key(0)
    values = jnp.array([0.01, 0.2])
    run = lambda value: scanned(support.bind(make(name, **{traced: value})), batches, key)
    many = jax.jit(jax.vmap(run))(values)
    for i, value in enumerate([0.01, 0.2]):
        support.assert_close(support.at(many, i), run(value), 1e-12)
    assert float(jnp.abs(many[1][0] - many[1][1]).max()) > 0


@EVERY
def test_one_compilation_for_many_calls(name):
    learner, batches = support.bind(make(name)), support.batches(6)
    traces = []

    @jax.jit
    def step(state, batch, key):
        traces.append(None)
        return learner.update(state, batch, learner.draw(state, batch, key))[0]

    state = learner.init(jax.random.key(0))
    for i in range(6):
        state = step(state, support.at(batches, i), jax.random.key(i))
    assert len(traces) == 1


@EVERY
def test_examples_outside_the_mask_do_not_matter(name):
    learner, batches = support.bind(make(name)), support.batches(4)
    mask = batches.mask.at[:, 3].set(False)
    clean = batches._replace(mask=mask)
    poisoned = clean._replace(x=batches.x.at[:, 3].set(50.0), y=batches.y.at[:, 3].set(0))
    a, b = support.run(learner, clean), support.run(learner, poisoned)
    support.assert_close(a, b, 1e-12)


@EVERY
def test_learning_reduces_the_loss(name):
    rng = np.random.default_rng(0)
    batches = support.batches(60, tasks=1)
    centres = 2 * rng.normal(size=(support.NUM_CLASSES, support.NUM_INPUTS))
    batches = batches._replace(x=jnp.asarray(centres[batches.y] + 0.1 * np.asarray(batches.x)))
    learner = support.bind(make(name))
    _, losses = jax.jit(lambda b, k: scanned(learner, b, k))(batches, jax.random.key(0))
    assert float(losses[-5:].mean()) < 0.5 * float(losses[:2].mean())
