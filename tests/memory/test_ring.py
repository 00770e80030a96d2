"""The ring memory: each task's last examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax.errors import UserError
from cljax.memory import ring

ADD = jax.jit(ring.add, static_argnames="rule")


def offer(batches, rule, per_task=3):
    """Fills a ring of two tasks; batches are (task, values, mask)."""
    memory = ring.init(jax.ShapeDtypeStruct((), jnp.int32), 2, per_task)
    for task, values, mask in batches:
        memory = ADD(
            memory, jnp.asarray(values, jnp.int32), jnp.int32(task), jnp.asarray(mask), rule=rule
        )
    return memory


def held(memory, task):
    return set(np.asarray(memory.data[task])[np.asarray(ring.valid(memory)[task])].tolist())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.booleans(), min_size=4, max_size=4)), max_size=8
    )
)
def test_it_holds_the_last_valid_examples_of_each_task(draws):
    counter, batches, seen = 0, [], {0: [], 1: []}
    for task, mask in draws:
        values = list(range(counter, counter + 4))
        counter += 4
        batches.append((task, values, mask))
        seen[task] += [v for v, ok in zip(values, mask, strict=True) if ok]
    memory = offer(batches, "textbook")
    for task in (0, 1):
        assert held(memory, task) == set(seen[task][-3:])
        assert memory.age[task] == len(seen[task])


def test_truncation_drops_what_goes_past_the_end():
    batches = [(0, [1, 2], [True, True]), (0, [3, 4], [True, True]), (0, [5, 6], [True, True])]
    assert held(offer(batches, "truncate"), 0) == {5, 6, 3}
    assert held(offer(batches, "textbook"), 0) == {4, 5, 6}


@pytest.mark.parametrize("rule", ["textbook", "truncate"])
def test_the_rules_agree_where_batches_divide_the_buffer(rule):
    batches = [(1, list(range(i, i + 3)), [True] * 3) for i in range(0, 12, 3)]
    assert held(offer(batches, rule), 1) == {9, 10, 11}
    assert held(offer(batches, rule), 0) == set()


@pytest.mark.parametrize("counts", [(0, 3), (2, 0)])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(UserError):
        ring.init(jax.ShapeDtypeStruct((), jnp.int32), *counts)


def by_hand(batches, rule, per_task):
    """Slots of each task, and how many examples were taken, in plain Python."""
    slots, ages = np.zeros((2, per_task), int), [0, 0]
    for task, values, mask in batches:
        valid = [v for v, ok in zip(values, mask, strict=True) if ok]
        if rule == "truncate":
            valid = valid[: per_task - ages[task] % per_task]
        for value in valid:
            slots[task, ages[task] % per_task] = value
            ages[task] += 1
    return slots, ages


@pytest.mark.parametrize("rule", ["textbook", "truncate"])
@settings(deadline=None, max_examples=30)
@given(
    per_task=st.sampled_from([1, 3, 7]),
    draws=st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.booleans(), min_size=5, max_size=5)), max_size=8
    ),
)
def test_every_slot_is_that_of_one_example_at_a_time(rule, per_task, draws):
    """Also where the batch is longer than the buffer."""
    batches = [(task, [10 * i + j for j in range(1, 6)], m) for i, (task, m) in enumerate(draws)]
    memory = offer(batches, rule, per_task)
    slots, ages = by_hand(batches, rule, per_task)
    np.testing.assert_array_equal(memory.data, slots)
    np.testing.assert_array_equal(memory.age, ages)
    filled = np.arange(per_task)[None] < np.array(ages)[:, None]
    np.testing.assert_array_equal(ring.valid(memory), filled)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.lists(st.integers(0, 1), max_size=9))
def test_the_rules_agree_slot_by_slot_where_batches_divide_the_buffer(parts, tasks):
    batches = [(t, [3 * i + 1, 3 * i + 2, 3 * i + 3], [True] * 3) for i, t in enumerate(tasks)]
    textbook, truncate = (offer(batches, rule, 3 * parts) for rule in ("textbook", "truncate"))
    jax.tree.map(np.testing.assert_array_equal, textbook, truncate)


def test_all_leaves_of_an_example_go_to_the_same_slot():
    memory = ring.init({"x": jnp.zeros(2, jnp.uint8), "y": jnp.zeros((), jnp.int32)}, 2, 3)
    assert ring.nbytes(memory) == 2 * 3 * (2 + 4)
    for start in (0, 4):
        y = jnp.arange(start, start + 4, dtype=jnp.int32)
        x = jnp.stack([10 * y, 10 * y + 1], axis=1)  # int32: the ring keeps its own type
        mask = jnp.array([True, False, True, True])
        memory = ADD(memory, {"x": x, "y": y}, jnp.int32(1), mask, rule="textbook")
    assert memory.data["x"].dtype == jnp.uint8
    np.testing.assert_array_equal(memory.data["y"][1], [4, 6, 7])
    np.testing.assert_array_equal(memory.data["x"][1, :, 1], [41, 61, 71])
    assert not np.asarray(memory.data["x"][0]).any() and memory.age.tolist() == [0, 6]
