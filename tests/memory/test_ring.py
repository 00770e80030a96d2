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
