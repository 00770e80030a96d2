"""A-GEM's reference examples: a draw without replacement from past memories."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.methods.gem import draw


def learned(tasks, **options):
    """A state after some tasks of three batches of four, and a batch of the last of them."""
    learner = support.bind(cljax.agem(lr=0.1, per_task=5, **options))
    batches = support.batches(3 * tasks, tasks=tasks)
    state, _ = support.run(learner, batches)
    return learner, state, support.at(batches, 3 * tasks - 1)


def rows_of(examples):
    return [tuple(row) for row in np.asarray(examples.x).reshape(-1, support.NUM_INPUTS)]


@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (2, 5), (3, 7)])
def test_no_example_is_drawn_twice_for_a_step(tasks, size):
    learner, state, batch = learned(tasks, reference_size=size, glances=2)
    stored = np.asarray(state.memory.data.x)[: tasks - 1].reshape(-1, support.NUM_INPUTS)
    first = None
    for seed in range(5):
        draws = learner.draw(state, batch, jax.random.key(seed))
        assert np.asarray(draws.mask).all() and draws.mask.shape == (2, 1, size)
        for glance in range(2):
            rows = rows_of(jax.tree.map(lambda a, g=glance: a[g], draws.reference))
            assert len(set(rows)) == size and set(rows) <= {tuple(row) for row in stored}
            first = rows if first is None else first
    assert set(rows) != set(first) or size == len(stored)


@pytest.mark.parametrize("size", [6, 10, 64])
def test_all_of_a_small_memory_are_drawn_and_the_rest_is_masked(size):
    learner, state, batch = learned(2, reference_size=size)
    draws = learner.draw(state, batch, jax.random.key(0))
    mask = np.asarray(draws.mask).reshape(-1)
    assert mask.sum() == 5  # of the one past task
    rows = np.array(rows_of(draws.reference))[mask]
    assert {tuple(row) for row in rows} == {
        tuple(row) for row in np.asarray(state.memory.data.x)[0]
    }


def test_every_stored_example_is_as_likely():
    learner, state, batch = learned(3, reference_size=4)
    stored = np.asarray(state.memory.data.x)[:2].reshape(-1, support.NUM_INPUTS)
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.jit(jax.vmap(lambda key: learner.draw(state, batch, key).reference.x))(keys)
    drawn = np.asarray(drawn).reshape(2000, 4, -1)
    share = [(drawn == row).all(axis=-1).any(axis=1).mean() for row in stored]
    np.testing.assert_allclose(share, 4 / 10, atol=0.05)


def test_nothing_is_drawn_in_the_first_task():
    learner, state, batch = learned(1, reference_size=4)
    draws = learner.draw(state, batch, jax.random.key(0))
    assert not np.asarray(draws.mask).any()
    skipped = draw(state, batch, jax.random.key(0), reference_size=4, skip_first_task=True)
    assert not np.asarray(skipped.mask).any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(draws.reference))
