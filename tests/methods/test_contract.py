"""What every method keeps to, one table for all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from contract_support import CASES, batches_for, bind, make, scanned

from cljax.methods import CHECKED, METHODS
from cljax.types import Learner, Method

EVERY = pytest.mark.parametrize("name", sorted(METHODS))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_every_method_has_a_row():
    assert set(CASES) == set(METHODS) == set(CHECKED)


@EVERY
def test_protocol(name):
    method = make(name)
    assert isinstance(method, Method) and method.name == name
    learner = bind(method)
    assert isinstance(learner, Learner) and "logits" in learner.predictors
    assert (METHODS[name].__doc__ or "").count("\n") > 5


@EVERY
def test_an_update_changes_no_structure_shape_or_type(name):
    learner = bind(make(name))
    state = learner.init(jax.random.key(0))
    after, _ = support.run(learner, batches_for(name, 1), state=state)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(state) == shapes(after)


@EVERY
def test_jit_and_scan_equal_the_plain_loop_over_three_tasks(name):
    """Three tasks, so that a value compiled in from the first one would show."""
    learner, batches = bind(make(name)), batches_for(name, 6)
    plain, losses = support.run(learner, batches)
    state, scan_losses = jax.jit(lambda b, k: scanned(learner, b, k))(batches, jax.random.key(0))
    support.assert_close(plain, state, 1e-12)
    np.testing.assert_allclose(losses, scan_losses, atol=1e-12)


@EVERY
def test_vmap_over_seeds_equals_single_seeds(name):
    learner, batches = bind(make(name)), batches_for(name, 5)
    keys = jax.random.split(jax.random.key(7), 3)
    many = jax.jit(jax.vmap(lambda k: scanned(learner, batches, k)))(keys)
    single = jax.jit(lambda k: scanned(learner, batches, k))
    for i in range(3):
        support.assert_close(support.at(many, i), single(keys[i]), 1e-12)


@EVERY
def test_a_traced_hyper_parameter_equals_its_value(name):
    traced, batches, key = CASES[name][1], batches_for(name, 4), jax.random.key(0)
    values = jnp.array([0.01, 0.2])
    run = lambda value: scanned(bind(make(name, **{traced: value})), batches, key)
    many = jax.jit(jax.vmap(run))(values)
    support.assert_close(support.at(many, 1), jax.jit(lambda: run(0.2))(), 1e-12)
    assert float(jnp.abs(many[1][0] - many[1][1]).max()) > 0


@EVERY
def test_one_compilation_for_many_calls(name):
    learner, batches = bind(make(name)), batches_for(name, 6)
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
    learner, batches = bind(make(name)), batches_for(name, 4)
    mask = batches.mask.at[:, 3].set(False)
    clean = batches._replace(mask=mask)
    poisoned = clean._replace(x=batches.x.at[:, 3].set(50.0), y=batches.y.at[:, 3].set(0))
    a, b = support.run(learner, clean), support.run(learner, poisoned)
    support.assert_close(a, b, 1e-12)


@EVERY
def test_learning_reduces_the_loss(name):
    rng = np.random.default_rng(0)
    batches = batches_for(name, 60, tasks=1)
    centres = 2 * rng.normal(size=(support.NUM_CLASSES, support.NUM_INPUTS))
    batches = batches._replace(x=jnp.asarray(centres[batches.y] + 0.1 * np.asarray(batches.x)))
    learner = bind(make(name))
    _, losses = jax.jit(lambda b, k: scanned(learner, b, k))(batches, jax.random.key(0))
    assert float(losses[-5:].mean()) < 0.5 * float(losses[:2].mean())
