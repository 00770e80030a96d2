"""What holds for every memory, whatever its rule; the class-balanced reservoir by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_support import Fading, LastOne, offered

import cljax
from cljax.errors import UserError
from cljax.memory import MEMORIES, Balanced, Reservoir, Ring, memories
from cljax.types import Examples

WIDTH = 5  # of a batch
KINDS = {
    **MEMORIES,
    "reservoir, inclusive": Reservoir(rule="inclusive"),
    "ring, per class": Ring(per="class"),
    "of one's own": Fading(0.5),
    "of one's own, without draws": LastOne(),
}
BATCHES = st.lists(st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH), max_size=7)
every = pytest.mark.parametrize("name", KINDS)


@functools.cache
def compiled(name):
    """Draw and offer at once, one after the other a row at a time, and draws of replay."""
    memory = KINDS[name]

    def together(state, examples, mask, key):
        return memory.offer(state, examples, mask, memory.draw(state, examples, mask, key))

    def apart(state, examples, mask, key):
        drawn = memory.draw(state, examples, mask, key)
        for i in range(WIDTH):
            row = jax.tree.map(lambda a, i=i: a[i : i + 1], (examples, mask, drawn))
            state = memory.offer(state, *row)
        return state

    sample = lambda state, key, replace: memory.sample(state, 4, key, replace=replace)
    return jax.jit(together), jax.jit(apart), jax.jit(sample, static_argnums=2)


def masked(rows):
    return np.asarray(rows, bool)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stored(memory):
    """Numbers of the examples in a memory, each as it was offered, from its contents."""
    contents, mask = jax.device_get(memory).contents, np.asarray(memory.contents.mask)
    found = contents.x[mask][:, 0].astype(int)
    same(offered(found), Examples(*(a[mask] for a in contents[:3])))
    return found.tolist()


@every
@settings(max_examples=20)
@given(batches=BATCHES, capacity=st.integers(4, 9), seed=st.integers(0, 99))
def test_only_offered_examples_are_stored_each_once_and_within_the_capacity(
    name, batches, capacity, seed
):
    offer, apart, sample = compiled(name)
    memory = one_by_one = KINDS[name].init(support.spec(), capacity)
    seen = set()
    for i, mask in enumerate(batches):
        ids = 10 * i + np.arange(WIDTH)
        seen |= set(ids[mask].tolist())
        given = offered(ids), masked(mask), jax.random.fold_in(jax.random.key(seed), i)
        memory, one_by_one = offer(memory, *given), apart(one_by_one, *given)
        found = stored(memory)
        assert len(found) <= capacity and set(found) <= seen and len(set(found)) == len(found)
        assert bool(found) == bool(seen)
        same(memory, one_by_one)
    total = len(stored(memory))
    for replace in (False, True):
        examples, mask = sample(memory, jax.random.key(seed), replace)
        assert mask.tolist() == (np.arange(4) < total).tolist()
        drawn = np.asarray(examples.x)[np.asarray(mask)][:, 0].astype(int).tolist()
        assert set(drawn) <= set(stored(memory)) and np.isfinite(examples.x).all()
        assert replace or len(set(drawn)) == len(drawn)
        same(offered(drawn), jax.tree.map(lambda a: np.asarray(a)[: min(4, total)], examples))


@every
def test_a_row_outside_the_mask_moves_no_bit(name):
    offer, _, _ = compiled(name)
    memory = KINDS[name].init(support.spec(), 6)
    for i in range(4):
        mask, key = masked([True, False, True, True, False]), jax.random.key(i)
        given = offered(10 * i + np.arange(WIDTH))
        others = jax.tree.map(np.copy, given)
        for values, other in zip(others, (np.nan, 0, 1), strict=True):
            values[[1, 4]] = other
        same(offer(memory, given, mask, key), offer(memory, others, mask, key))
        memory = offer(memory, given, mask, key)
    same(memory, offer(memory, given, jnp.zeros(WIDTH, bool), jax.random.key(9)))


@every
def test_compiled_or_not_it_is_the_same(name):
    offer, _, sample = compiled(name)
    memory = KINDS[name].init(support.spec(), 6)
    for i in range(3):
        given = offered(10 * i + np.arange(WIDTH)), masked([1, 1, i != 1, 1, 0]), jax.random.key(i)
        with jax.disable_jit():
            drawn = KINDS[name].draw(memory, *given)
            eager = KINDS[name].offer(memory, *given[:2], drawn)
        memory = offer(memory, *given)
        same(eager, memory)
    for replace in (False, True):
        with jax.disable_jit():
            drawn = KINDS[name].sample(memory, 4, jax.random.key(5), replace=replace)
        same(drawn, sample(memory, jax.random.key(5), replace))


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("name", ["ring", "balanced", "of one's own"])
def test_replay_is_uniform_over_what_is_stored(name, replace):
    """Also where the empty slots lie between occupied ones, as in a ring."""
    offer, _, _ = compiled(name)
    memory = KINDS[name].init(support.spec(), 9)
    given = offered(np.arange(WIDTH))._replace(task=jnp.array([0, 0, 2, 2, 2]))
    memory = offer(memory, given, masked([1, 1, 1, 1, 0]), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3000)
    draw = jax.vmap(lambda key: KINDS[name].sample(memory, 2, key, replace=replace)[0].x[:, 0])
    found = np.asarray(jax.jit(draw)(keys)).astype(int)
    np.testing.assert_allclose(np.bincount(found.ravel(), minlength=5) / found.size,
                               [0.25, 0.25, 0.25, 0.25, 0], atol=0.02)  # fmt: skip
    assert (found[:, 0] == found[:, 1]).mean() == pytest.approx(0.25 * replace, abs=0.03)


def balanced(labels, drawn, capacity=4):
    """Offers one example of each label, with given draws; the numbers and labels stored."""
    memory, count = Balanced(), len(labels)
    given = offered(np.arange(count))._replace(y=jnp.asarray(labels, jnp.int32))
    state = memory.init(support.spec(), capacity)
    state = memory.offer(state, given, jnp.ones(count, bool), jnp.asarray(drawn))
    return np.asarray(state.stored.data.x)[:, 0].astype(int).tolist(), state


def test_the_class_balanced_reservoir_by_hand():
    """Classes 0 0 0 1 fill four slots; then each case of the rule, with draws (enter, place)."""
    start, first = [0, 0, 0, 1], [(0.0, 0.0)] * 4
    found, state = balanced(start, first)
    assert found == [0, 1, 2, 3] and not state.full.any()
    # Class 0 has the most and is full: of a second class's example the place is one of its three,
    # the second for 0.5.
    found, state = balanced([*start, 2], [*first, (0.99, 0.5)])
    assert found == [0, 4, 2, 3] and state.full.tolist() == [True, False, False, False]
    # Another of class 0, of which 3 of 4 are stored: it enters below 3/4, in the third's place.
    found, _ = balanced([*start, 0], [*first, (0.74, 0.9)])
    assert found == [0, 1, 4, 3]
    assert balanced([*start, 0], [*first, (0.75, 0.9)])[0] == [0, 1, 2, 3]
    # Two of 0, one of 1 and one of 2 are left. Class 1 is not full: its example takes the place of
    # one of class 0, and then 0 has one, 1 has two and becomes full with the next example.
    found, state = balanced([*start, 2, 1], [*first, (0.0, 0.0), (0.9, 0.9)])
    assert found == [4, 1, 5, 3] and state.full.tolist() == [True, False, False, False]
    # Of class 0, once full, one is stored and 4 were offered: it stays full.
    draws = [*first, (0.0, 0.0), (0.9, 0.9), (0.25, 0.0)]
    found, state = balanced([*start, 2, 1, 0], draws)
    assert found == [4, 1, 5, 3] and state.full.tolist() == [True, True, False, False]
    assert state.seen.tolist() == [4, 2, 1, 0]
    assert balanced([*start, 2, 1, 0], [*draws[:-1], (0.24, 0.0)])[0] == [4, 6, 5, 3]


def by_hand(labels, mask, drawn, capacity):
    """The rule in plain Python, example by example."""
    slots, seen, full = [], {}, set()
    for number, (label, valid, (enter, place)) in enumerate(zip(labels, mask, drawn, strict=True)):
        if not valid:
            continue
        seen[label] = seen.get(label, 0) + 1
        if len(slots) < capacity:
            slots.append((number, label))
            continue
        held = [own for _, own in slots]
        most = max(map(held.count, held))
        full |= {own for own in held if held.count(own) == most}
        leaving = [label] if label in full else [own for own in held if held.count(own) == most]
        places = [i for i, own in enumerate(held) if own in leaving]
        if label not in full or enter < held.count(label) / seen[label]:
            slots[places[int(place * len(places))]] = number, label
    return [number for number, _ in slots]


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=12, max_size=12),
    capacity=st.integers(1, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_class_balanced_reservoir_is_that_of_plain_python(rows, capacity, seed):
    labels, mask = zip(*rows, strict=True)
    drawn = np.random.default_rng(seed).integers(0, 64, (12, 2)) / 64  # without rounding
    given = offered(np.arange(12))._replace(y=jnp.asarray(labels, jnp.int32))
    memory = Balanced().init(support.spec(), capacity)
    memory = OFFER(memory, given, masked(mask), jnp.asarray(drawn, jnp.float32))
    expected = by_hand(labels, mask, drawn, capacity)
    assert np.asarray(memory.stored.data.x)[: len(expected), 0].tolist() == expected


OFFER = jax.jit(Balanced().offer)


def test_rare_classes_keep_all_they_have_and_frequent_ones_a_uniform_sample():
    """96 of class 0 beside 4 of class 1 in 12 slots, in random order."""
    labels = np.zeros(100, np.int32)
    labels[[10, 40, 60, 90]] = 1
    given = offered(np.arange(100))._replace(y=jnp.asarray(labels))
    empty, mask = Balanced().init(support.spec(), 12), jnp.ones(100, bool)

    def run(key):
        memory = OFFER(empty, given, mask, Balanced().draw(empty, given, mask, key))
        return memory.stored.data.x[:, 0]

    found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4000)))
    counts = np.bincount(found.astype(int).ravel(), minlength=100) / len(found)
    assert (counts[labels == 1] == 1).all()
    frequent = counts[labels == 0]
    assert frequent.sum() == pytest.approx(8)
    # Those that came after all of class 1 are as likely as those before: 8 of 96.
    np.testing.assert_allclose(frequent, 8 / 96, atol=5 * np.sqrt(8 / 96 / 4000))


@pytest.mark.parametrize(
    ("per", "buffers"), [("task", support.NUM_TASKS), ("class", support.NUM_CLASSES)]
)
def test_a_ring_holds_the_last_examples_of_each_task_or_class(per, buffers):
    ring, spec = Ring(per=per), support.spec()
    given = offered(np.arange(40))
    memory = ring.offer(ring.init(spec, 2 * buffers + 1), given, jnp.ones(40, bool), ())
    owner = np.asarray(given.task if per == "task" else given.y)
    expected = [np.flatnonzero(owner == i)[-2:].tolist() for i in range(buffers)]
    assert sorted(stored(memory)) == sorted(sum(expected, []))
    with pytest.raises(UserError, match=f"capacity is {buffers - 1}, but a ring .* each {per}"):
        ring.init(spec, buffers - 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reservoir", Reservoir()), ("reservoir:rule=inclusive", Reservoir(rule="inclusive")),
        ("ring:per=class", Ring(per="class")), ("balanced", Balanced()),
    ],
)  # fmt: skip
def test_a_memory_is_named_with_its_options(text, found):
    assert (
        memories.named(text)
        == found
        == cljax.ER(memory=text).store.replace(**({"rule": None} if text == "reservoir" else {}))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rings", "memory 'rings' is not known"), ("ring:per=head", "known are class, task"),
        ("ring:size=3", "The memory ring:size=3 has 'size=3', .* the names per"),
        ("balanced:", None), (3, "memory is 3, but it must be the name"),
        (Ring, "memory is .*Ring.*, but it must be the name"),
    ],
)  # fmt: skip
def test_what_is_no_memory_is_refused(text, words):
    if words is None:
        assert memories.named(text) == Balanced()
        return
    with pytest.raises(UserError, match=words):
        cljax.ER(memory=text)
