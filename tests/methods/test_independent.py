"""Independent networks: each task its own, started from the last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax.losses import classification_loss
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("transfer", [True, False])
def test_a_task_changes_its_own_network_only(transfer):
    learner = support.bind(cljax.Independent(lr=0.1, transfer=transfer))
    batches = support.batches(6)
    before, _ = support.run(learner, jax.tree.map(lambda a: a[:2], batches))
    after, _ = support.run(learner, batches)
    first = learner.init(jax.random.key(0))
    support.assert_close(support.at(before.params, 0), support.at(after.params, 0))
    support.assert_close(support.at(before.params, 2), support.at(first.params, 2))
    assert after.task == 2


@pytest.mark.parametrize("transfer", [True, False])
def test_a_new_task_starts_from_the_last_or_from_the_first_weights(transfer):
    learner = support.bind(cljax.Independent(lr=0.1, transfer=transfer))
    batches = support.batches(3)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:1], batches))
    batch = support.at(batches, 1)
    start = support.at(state.params, 0 if transfer else 1)
    loss_fn = classification_loss(cljax.nets.mlp(5)(4), support.spec())

    def loss(params):
        examples = Examples(batch.x, batch.y, batch.task)
        return jnp.mean(loss_fn(params, {}, examples, batch.mask)[0])

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start, jax.grad(loss)(start))
    after, _ = learner.update(state, batch, learner.draw(state, batch, jax.random.key(1)))
    support.assert_close(support.at(after.params, 1), expected, 1e-12)


def test_nothing_is_forgotten():
    history = learn(
        cljax.Independent(lr=0.1), cljax.nets.mlp(5)(4), support.stream(), [0], batch_size=4
    )
    matrix = history.evaluations["logits"][0]
    np.testing.assert_array_equal(np.diagonal(matrix[1:]), matrix[-1])


def test_the_optimiser_begins_anew_with_each_task():
    learner = support.bind(cljax.Independent(lr=0.1, optimizer="momentum"))
    batches = support.batches(3)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:1], batches))
    batch = support.at(batches, 1)
    after, _ = learner.update(state, batch, ())
    fresh = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    other, _ = learner.update(fresh, batch, ())
    support.assert_close(after.params, other.params)
