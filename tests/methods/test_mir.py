"""MIR: the virtual step, what it retrieves, and the step on that, by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import support

import cljax
from cljax import tree
from cljax.errors import UserError
from cljax.losses import cross_entropy
from cljax.methods import make
from cljax.types import Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


OPTIONS = {"lr": 0.1, "capacity": 9, "replay_size": 2, "candidates": 5}
NET = cljax.nets.mlp(5)(support.NUM_CLASSES)


def losses_of(params, x, y):
    if not len(x):
        return np.zeros(0)
    return cross_entropy(NET.apply(Variables(params, {}), x, False)[0].logits, y)


@pytest.mark.parametrize("rate", [None, 2.0])
@pytest.mark.parametrize("updates", [0, 1, 4])
def test_two_steps_by_hand(rate, updates):
    learner = support.bind(make("mir", glances=2, virtual_lr=rate, **OPTIONS))
    batches, state = support.batches(5, tasks=2), learner.init(jax.random.key(0))
    if updates:
        state, _ = support.run(learner, jax.tree.map(lambda a: a[:updates], batches))
    batch = support.at(batches, updates)
    draws = jax.device_get(learner.draw(state, batch, jax.random.key(5)))
    params, losses = state.params, []
    for glance in range(2):
        drawn, mask = support.at(draws.replay, glance), draws.replay_mask[glance]
        assert mask.sum() == min(5, 4 * updates)
        grads = jax.grad(lambda p: losses_of(p, batch.x, batch.y).mean())(params)
        moved = tree.add_scaled(params, grads, -(rate or 0.1))
        x, y = drawn.x[mask], drawn.y[mask]
        harm = np.asarray(losses_of(moved, x, y) - losses_of(params, x, y))
        worst = np.argsort(-harm, kind="stable")[:2]
        x = np.concatenate([x[worst], batch.x])
        y = np.concatenate([y[worst], batch.y])
        assert len(y) == 4 + min(2, 4 * updates)
        value, grads = jax.value_and_grad(lambda p, x=x, y=y: losses_of(p, x, y).mean())(params)
        params = tree.add_scaled(params, grads, -0.1)
        losses.append(value)
    after, info = learner.update(state, batch, draws)
    support.assert_close(after.params, params, 1e-12)
    np.testing.assert_allclose(info.loss, np.mean(losses), atol=1e-12)


def test_with_as_many_candidates_as_replayed_examples_it_is_er():
    """Up to the order of what is replayed."""
    batches = support.batches(4)
    mir = support.bind(make("mir", **{**OPTIONS, "candidates": 2}))
    er = support.bind(cljax.ER(lr=0.1, capacity=9, replay_size=2))
    after, expected = (support.run(learner, batches)[0].params for learner in (mir, er))
    support.assert_close(after, expected, 1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": 10}, "candidates is 10, but the memory has 9 places"),
        ({"candidates": 1}, "candidates is 1, but 2 of them are replayed"),
    ],
)
def test_a_number_of_candidates_that_fits_nothing_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        support.bind(make("mir", **{**OPTIONS, **options}))


def test_the_gradients_of_the_virtual_steps_count():
    learner = support.bind(make("mir", glances=3, **OPTIONS))
    assert (learner.gradients_per_update, learner.examples_per_update) == (6, 3 * (4 + 4 + 2))
