"""MER: its limits, and a step by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.errors import UserError
from cljax.losses import classification_loss
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


OPTIONS = {"lr": 0.1, "capacity": 8, "replay_size": 3, "sweeps": 2}


def single(batches, i, j):
    """Example j of batch i as a batch of one."""
    batch = support.at(batches, i)
    return batch._replace(
        x=batch.x[j : j + 1], y=batch.y[j : j + 1], task=batch.task[j : j + 1],
        mask=batch.mask[j : j + 1], index=batch.index[j : j + 1],
    )  # fmt: skip


def bind(**options):
    return cljax.MER(**{**OPTIONS, **options}).bind(
        cljax.nets.mlp(5)(4), support.spec()._replace(batch_size=1)
    )


def warmed(learner, batches, updates=3):
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    for i in range(updates):
        batch = single(batches, 0, i)
        state, _ = update(state, batch, learner.draw(state, batch, jax.random.key(i)))
    return state


def sgd(params, examples, lr=0.1, scale=None):
    loss_fn = classification_loss(cljax.nets.mlp(5)(4), support.spec())
    for i in range(examples.y.shape[0]):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], examples)
        factor = 1.0 if scale is None else scale[i]
        grads = jax.grad(lambda p, one=one: loss_fn(p, {}, one, jnp.ones(1, bool))[0][0])(params)
        params = cljax.tree.add_scaled(params, grads, -lr * factor)
    return params


def towards(a, b, share):
    return jax.tree.map(lambda x, y: x + share * (y - x), a, b)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.3, 0.7)])
def test_algorithm_one_by_hand(beta, gamma):
    """With both at 1 it is plain sequential SGD over the drawn sequences."""
    batches, learner = support.batches(2), bind(beta=beta, gamma=gamma)
    state, batch = warmed(learner, batches), single(batches, 1, 0)
    draws = learner.draw(state, batch, jax.random.key(9))
    assert np.asarray(draws.mask).all()
    np.testing.assert_array_equal(draws.sequence.x[0, :, 0], np.stack([batch.x[0]] * 2))
    params = state.params
    for sweep in range(2):
        sequence = jax.tree.map(lambda a, s=sweep: a[0, s], draws.sequence)
        params = towards(params, sgd(params, sequence), beta)
    params = towards(state.params, params, gamma)
    after, _ = jax.jit(learner.update)(state, batch, draws)
    support.assert_close(after.params, params, 1e-12)
    assert int(after.memory.age) == 4


def test_without_a_memory_each_sweep_is_a_step_on_the_example():
    batches, learner = support.batches(1), bind(beta=1.0)
    state, batch = learner.init(jax.random.key(0)), single(batches, 0, 0)
    draws = learner.draw(state, batch, jax.random.key(1))
    after, _ = jax.jit(learner.update)(state, batch, draws)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), Examples(batch.x, batch.y, batch.task))
    support.assert_close(after.params, sgd(state.params, twice), 1e-12)


def test_algorithm_six_puts_the_example_last_and_steps_by_gamma():
    batches, learner = support.batches(2), bind(algorithm="6", gamma=0.4, sweeps=1)
    state, batch = warmed(learner, batches), single(batches, 1, 0)
    draws = learner.draw(state, batch, jax.random.key(9))
    np.testing.assert_array_equal(draws.sequence.x[0, 0, -1], batch.x[0])
    sequence = jax.tree.map(lambda a: a[0, 0], draws.sequence)
    after, _ = jax.jit(learner.update)(state, batch, draws)
    expected = towards(state.params, sgd(state.params, sequence), 0.4)
    support.assert_close(after.params, expected, 1e-12)


def test_algorithm_seven_weighs_the_example_at_a_random_place():
    batches, learner = support.batches(2), bind(algorithm="7", gamma=0.4, z_scale=5.0)
    state, batch = warmed(learner, batches), single(batches, 1, 0)
    places = set()
    for seed in range(12):
        draws = learner.draw(state, batch, jax.random.key(seed))
        assert draws.mask.shape == (1, 1, 4)  # one sweep
        place = int(np.flatnonzero(np.asarray(draws.scale[0, 0]) == 5.0)[0])
        np.testing.assert_array_equal(draws.sequence.x[0, 0, place], batch.x[0])
        places.add(place)
    assert len(places) > 1
    sequence = jax.tree.map(lambda a: a[0, 0], draws.sequence)
    after, _ = jax.jit(learner.update)(state, batch, draws)
    stepped = sgd(state.params, sequence, scale=draws.scale[0, 0])
    support.assert_close(after.params, towards(state.params, stepped, 0.4), 1e-12)


def test_algorithm_seven_only_stores_the_streams_first_example():
    batches, learner = support.batches(1), bind(algorithm="7", z_scale=5.0)
    state, batch = learner.init(jax.random.key(0)), single(batches, 0, 0)
    after, _ = learner.update(state, batch, learner.draw(state, batch, jax.random.key(1)))
    support.assert_close(after.params, state.params)
    assert int(after.memory.age) == 1


def test_a_batch_is_its_examples_one_after_the_other():
    """Fed with the batch's own draws, single updates give the same parameters and memory."""
    many = support.bind(cljax.MER(**OPTIONS, beta=0.3))
    batch = support.at(support.batches(1), 0)
    state = many.init(jax.random.key(0))
    draws = many.draw(state, batch, jax.random.key(3))
    together, _ = jax.jit(many.update)(state, batch, draws)
    one = jax.jit(bind(beta=0.3).update)
    for i in range(4):
        own = jax.tree.map(lambda a, i=i: a[i : i + 1], draws)
        state, _ = one(state, single(support.batches(1), 0, i), own)
    support.assert_close(together, state, 1e-12)


@pytest.mark.parametrize("options", [{"sweeps": 0}, {"beta": float("nan")}, {"algorithm": "2"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        cljax.MER(**options)
