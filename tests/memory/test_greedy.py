"""The greedy memory by hand, and beside the rule in plain Python."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_support import offered

import cljax
from cljax.errors import UserError
from cljax.memory import Greedy

CLASSES, ROWS = support.NUM_CLASSES, 14


def stored(labels, drawn, capacity, mask=None):
    """Offers one example of each label; the numbers in the slots, and the counts."""
    count = len(labels)
    examples = offered(np.arange(count))._replace(y=jnp.asarray(labels, jnp.int32))
    mask = jnp.ones(count, bool) if mask is None else jnp.asarray(mask)
    state = Greedy().init(support.spec(), capacity)
    state = Greedy().offer(state, examples, mask, jnp.asarray(drawn))
    filled, contents = int(np.sum(state.counts)), state.contents
    assert contents is not None and filled == int(state.stored.age) == int(np.sum(contents.mask))
    return np.asarray(state.stored.data.x)[:filled, 0].astype(int).tolist(), state.counts.tolist()


def test_shares_shrink_as_classes_come():
    """Six slots: six of class 0, then three of each of two, then two of each of three."""
    assert stored([0] * 8, [0.0] * 8, 6) == ([0, 1, 2, 3, 4, 5], [6, 0, 0, 0])
    first = [0] * 6
    # Class 1 takes the places 0.5, 0.0 and 0.99 among those of class 0 that are left, then no more.
    slots, counts = stored([*first, 1, 1, 1, 1], [0.0] * 6 + [0.5, 0.0, 0.99, 0.0], 6)
    assert slots == [7, 1, 2, 6, 4, 8] and counts == [3, 3, 0, 0]
    # Of class 2 the first may drive out one of either class; the second, one of the larger.
    draws = [0.0] * 6 + [0.5, 0.0, 0.99] + [0.99, 0.0, 0.0]
    slots, counts = stored([*first, 1, 1, 1, 2, 2, 2], draws, 6)
    assert slots == [7, 10, 2, 6, 4, 9] and counts == [2, 2, 2, 0]


def test_a_memory_with_room_takes_no_more_than_a_share():
    """Of class 0 the third comes when two classes have two places each."""
    slots, counts = stored([0, 0, 1, 0, 1], [0.0] * 5, 4)
    assert slots == [0, 1, 2, 4] and counts == [2, 2, 0, 0]


def by_hand(labels, mask, drawn, capacity):
    slots: list[tuple[int, int]] = []
    for number, (label, valid, draw) in enumerate(zip(labels, mask, drawn, strict=True)):
        held = [own for _, own in slots]
        if not valid or held.count(label) >= capacity / len({*held, label}):
            continue
        if len(slots) < capacity:
            slots.append((number, label))
            continue
        most = max(map(held.count, held))
        places = [i for i, own in enumerate(held) if held.count(own) == most]
        slots[places[int(draw * len(places))]] = number, label
    return [number for number, _ in slots]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, CLASSES - 1), st.booleans()), min_size=ROWS, max_size=ROWS
    ),
    capacity=st.integers(CLASSES, 7),
    seed=st.integers(0, 99),
)
def test_it_is_the_rule_in_plain_python(rows, capacity, seed):
    labels, mask = zip(*rows, strict=True)
    drawn = np.random.default_rng(seed).uniform(size=ROWS).astype(np.float32)
    assert stored(labels, drawn, capacity, mask)[0] == by_hand(labels, mask, drawn, capacity)


def test_fewer_places_than_classes_are_refused():
    with pytest.raises(
        UserError, match="capacity is 3, but a greedy memory needs at least 4 places"
    ):
        cljax.GDumb(capacity=3).bind(cljax.nets.mlp(3)(4), support.spec())
