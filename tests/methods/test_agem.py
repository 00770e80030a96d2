"""A-GEM's reference examples: a draw without replacement from past memories."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.memory import ring
from cljax.types import Examples


@functools.cache
def learned(tasks):
    """A state after some tasks of three batches of four, and a batch of the last of them."""
    batches = support.batches(3 * tasks, tasks=tasks)
    learner = support.bind(cljax.AGEM(lr=0.1, per_task=5))
    state, add = learner.init(jax.random.key(0)), jax.jit(ring.add, static_argnums=4)
    memory = state.memory
    for i in range(3 * tasks):
        own = support.at(batches, i)
        current = Examples(own.x, own.y, own.task)
        memory = add(memory, current, own.clock.task, own.mask, "textbook")
    return state._replace(memory=memory), support.at(batches, 3 * tasks - 1)


def draw(state, batch, key, **options):
    problem = cljax.Problem(cljax.nets.mlp(5)(support.NUM_CLASSES), support.spec())
    return cljax.AGEM(per_task=5, **options).draw(problem, state, batch, key)


def rows_of(examples):
    return [tuple(row) for row in np.asarray(examples.x).reshape(-1, support.NUM_INPUTS)]


@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (2, 5), (3, 7)])
def test_no_example_is_drawn_twice_for_a_step(tasks, size):
    state, batch = learned(tasks)
    stored = np.asarray(state.memory.data.x)[: tasks - 1].reshape(-1, support.NUM_INPUTS)
    first = None
    for seed in range(5):
        draws = draw(state, batch, jax.random.key(seed), reference_size=size, glances=2)
        assert np.asarray(draws.mask).all() and draws.mask.shape == (2, 1, size)
        for glance in range(2):
            rows = rows_of(jax.tree.map(lambda a, g=glance: a[g], draws.reference))
            assert len(set(rows)) == size and set(rows) <= {tuple(row) for row in stored}
            first = rows if first is None else first
    assert set(rows) != set(first) or size == len(stored)


@pytest.mark.parametrize("size", [6, 10, 64])
def test_all_of_a_small_memory_are_drawn_and_the_rest_is_masked(size):
    state, batch = learned(2)
    draws = draw(state, batch, jax.random.key(0), reference_size=size)
    mask = np.asarray(draws.mask).reshape(-1)
    assert mask.sum() == 5  # of the one past task
    rows = np.array(rows_of(draws.reference))[mask]
    assert {tuple(row) for row in rows} == {
        tuple(row) for row in np.asarray(state.memory.data.x)[0]
    }


def test_every_stored_example_is_as_likely():
    state, batch = learned(3)
    stored = np.asarray(state.memory.data.x)[:2].reshape(-1, support.NUM_INPUTS)
    keys = jax.random.split(jax.random.key(0), 2000)
    one = lambda key: draw(state, batch, key, reference_size=4).reference.x
    drawn = np.asarray(jax.jit(jax.vmap(one))(keys)).reshape(2000, 4, -1)
    share = [(drawn == row).all(axis=-1).any(axis=1).mean() for row in stored]
    np.testing.assert_allclose(share, 4 / 10, atol=0.05)


def test_nothing_is_drawn_in_the_first_task():
    state, batch = learned(1)
    draws = draw(state, batch, jax.random.key(0), reference_size=4)
    assert not np.asarray(draws.mask).any()
    skipped = draw(state, batch, jax.random.key(0), reference_size=4, skip_first_task=True)
    assert not np.asarray(skipped.mask).any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(draws.reference))
