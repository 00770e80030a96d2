"""The reservoir against its exact inclusion probabilities, and its masks against slicing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax.errors import UserError
from cljax.memory import reservoir

EXAMPLE = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "y": jax.ShapeDtypeStruct((), jnp.int32)}


def examples(ids):
    ids = jnp.asarray(ids)
    return {"x": jnp.stack([ids, -ids], 1).astype(jnp.float32), "y": ids.astype(jnp.int32)}


def stream_through(capacity, total, batch, key, rule):
    def add(memory, i_key):
        i, key = i_key
        ids = i * batch + jnp.arange(batch)
        return reservoir.add(memory, examples(ids), key, rule=rule), None

    steps = jnp.arange(total // batch)
    memory = reservoir.init(EXAMPLE, capacity)
    return jax.lax.scan(add, memory, (steps, jax.random.split(key, len(steps))))[0]


@pytest.mark.parametrize("rule", ["textbook", "inclusive"])
@pytest.mark.parametrize("batch", [1, 5])
def test_inclusion_frequencies_follow_the_exact_formula(rule, batch):
    capacity, total, trials = 7, 40, 20000
    keys = jax.random.split(jax.random.key(1), trials)
    run = jax.jit(jax.vmap(lambda k: stream_through(capacity, total, batch, k, rule).data["y"]))
    counts = np.bincount(np.asarray(run(keys)).ravel(), minlength=total) / trials
    if rule == "textbook":
        expected = np.full(total, capacity / total)
    else:
        expected = np.full(total, capacity / (total + 1))
        expected[:capacity] = (capacity + 1) / (total + 1)
    error = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(counts - expected) < 4.5 * error).all()
    if rule == "inclusive":  # and the textbook's are not: the rules can be told apart
        assert abs(counts[:capacity].mean() - capacity / total) > 3 * error[0] / np.sqrt(capacity)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 99))
def test_memory_holds_distinct_examples_of_the_stream(capacity, sizes, seed):
    memory, offered = reservoir.init(EXAMPLE, capacity), 0
    for size in sizes:
        mask = jnp.arange(6) < size
        key = jax.random.fold_in(jax.random.key(seed), offered)
        memory = reservoir.add(memory, examples(offered + jnp.arange(6)), key, mask=mask)
        offered += size
    filled = int(reservoir.fill(memory))
    assert int(memory.age) == offered and filled == min(offered, capacity)
    ids = np.asarray(memory.data["y"])[:filled]
    assert len(set(ids.tolist())) == filled
    np.testing.assert_array_equal(np.asarray(memory.data["x"])[:filled, 1], -ids)


def test_a_batch_at_once_equals_one_by_one():
    """With the same slots, colliding ones included, the last writer wins."""
    memory = reservoir.init(EXAMPLE, 3)
    slots = jnp.array([0, 1, 1, 3, 0])
    together = reservoir.write(memory, examples(jnp.arange(5)), slots, jnp.ones(5, bool))
    for i in range(5):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], examples(jnp.arange(5)))
        memory = reservoir.write(memory, one, slots[i : i + 1], jnp.ones(1, bool))
    np.testing.assert_array_equal(together.data["y"], memory.data["y"])
    assert np.asarray(together.data["y"]).tolist() == [4, 2, 0]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("offered", [0, 1, 4, 10, 30])
def test_draws_are_masked_to_the_fill(replace, offered):
    memory = reservoir.init(EXAMPLE, 10)
    if offered:
        memory = reservoir.add(memory, examples(1 + jnp.arange(offered)), jax.random.key(0))
    drawn, mask = reservoir.sample(memory, 6, jax.random.key(3), replace=replace)
    assert drawn["x"].shape == (6, 2) and int(mask.sum()) == min(6, offered, 10)
    ids = np.asarray(drawn["y"])[np.asarray(mask)]
    assert (ids > 0).all() and np.isfinite(np.asarray(drawn["x"])).all()
    if not replace:
        assert len(set(ids.tolist())) == len(ids)


@pytest.mark.parametrize("replace", [True, False])
def test_draws_are_uniform_and_only_with_replacement_repeat(replace):
    memory = reservoir.add(reservoir.init(EXAMPLE, 8), examples(jnp.arange(5)), jax.random.key(0))
    draw = jax.vmap(lambda k: reservoir.sample(memory, 3, k, replace=replace)[0]["y"])
    ids = np.asarray(draw(jax.random.split(jax.random.key(5), 6000)))
    counts = np.bincount(ids.ravel(), minlength=5) / ids.size
    np.testing.assert_allclose(counts, 0.2, atol=0.02)
    repeated = np.mean([len(set(row)) < 3 for row in ids.tolist()])
    assert repeated == 0 if not replace else abs(repeated - (1 - 4 / 5 * 3 / 5)) < 0.03


def test_a_draw_larger_than_the_memory_keeps_its_shape():
    memory = reservoir.add(reservoir.init(EXAMPLE, 2), examples(jnp.arange(2)), jax.random.key(0))
    drawn, mask = reservoir.sample(memory, 5, jax.random.key(1))
    assert drawn["y"].shape == (5,) and int(mask.sum()) == 2
    assert set(np.asarray(drawn["y"])[:2].tolist()) == {0, 1}


def test_capacity_and_bytes_are_reported():
    memory = reservoir.init(EXAMPLE, 4)
    assert reservoir.capacity(memory) == 4 and reservoir.nbytes(memory) == 4 * (2 * 4 + 4)
    with pytest.raises(UserError, match="capacity is 0"):
        reservoir.init(EXAMPLE, 0)
