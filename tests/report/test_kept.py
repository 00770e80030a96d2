"""What runs keep for reports: exact counts of rates, and the memory's own pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_support import picture_stream

from cljax.engine.rates import rates_of
from cljax.errors import UserError
from cljax.memory import reservoir, ring
from cljax.memory.learned import Learned
from cljax.runner import snapshots
from cljax.states import Contents
from cljax.types import Examples


class State(NamedTuple):
    params: Any = ()
    alpha: Any = None
    memory: Any = None
    exemplars: Any = None
    inner: Any = None


def test_a_run_keeps_rates_of_every_row_and_seed_and_the_memory(real):
    found = snapshots.read(real)
    rows = snapshots.rate_rows(found)
    assert list(rows) == [0, 1, 2]
    weights = 64 * 6 + 6 + 6 * 4 + 4
    for histograms in rows.values():
        assert histograms.shape == (2, 2 * 48 + 1)
        np.testing.assert_array_equal(histograms[:, 49:].sum(axis=1), weights)
        assert (np.diff(histograms[:, :49]) > 0).all()
    np.testing.assert_allclose(rows[0][:, [0, 48]], 0.05, rtol=1e-5)  # alpha_init
    assert np.ptp(rows[2][:, :49], axis=1).min() > 1e-4, "rates were learned"
    assert found["memory/x"].shape[1:] == (8, 8, 1) and found["memory/x"].dtype == np.uint8
    stream = picture_stream()
    stored = {x.tobytes() for x in stream.train_x}
    assert all(x.tobytes() in stored for x in found["memory/x"])
    assert found["memory/counts"].sum() == 20


def test_batched_states_give_the_histograms_of_single_ones():
    rng = np.random.default_rng(0)
    alpha = {
        "w": jnp.asarray(rng.normal(size=(3, 5, 4))),
        "b": jnp.asarray(rng.normal(size=(3, 4))),
    }
    batched = rates_of(State(alpha=alpha), 3)
    for i, own in enumerate(batched):
        (single,) = rates_of(State(alpha=jax.tree.map(lambda a, i=i: a[i], alpha)))
        assert own is not None and own[49:].sum() == 24
        np.testing.assert_array_equal(own, single)
    assert rates_of(State(), 3) == [None] * 3 and rates_of(State()) == [None]
    inner = State(inner=State(alpha={"w": jnp.ones((2, 2))}))
    assert rates_of(inner)[0][49:].sum() == 4
    assert rates_of(State(alpha=jnp.full(3, jnp.nan))) == [None]


def test_a_histogram_is_numpys():
    values = np.random.default_rng(0).normal(size=5000)
    (found,) = rates_of(State(alpha={"w": values}))
    counts, edges = np.histogram(values, 48)
    np.testing.assert_allclose(found[:49], edges)
    assert np.abs(found[49:] - counts).sum() <= 2, "an edge may fall to either side"


def stream_of(shape, *, shared=False, dtype=np.uint8):
    mask = np.ones((2, 4), bool) if shared else np.kron(np.eye(2), np.ones((1, 2))).astype(bool)
    return SimpleNamespace(train_x=np.zeros((9, *shape), dtype), class_mask=mask, labelled=True)


def examples(num, shape=(8, 8, 1), dtype=jnp.uint8):
    x = jnp.arange(num * np.prod(shape)).reshape(num, *shape) % 250
    return Examples(x.astype(dtype), jnp.arange(num) % 4, (jnp.arange(num) % 4) // 2)


@pytest.mark.parametrize("shared", [True, False])
def test_memories_are_shown_by_class_or_by_task_where_classes_are_shared(shared):
    state = State(memory=reservoir.State(examples(40), jnp.int32(30)))
    found = snapshots.memory_of(state, stream_of((8, 8, 1), shared=shared))
    assert found["groups"].tolist() == ([0, 1] if shared else [0, 1, 2, 3])
    assert found["counts"].tolist() == ([16, 14] if shared else [8, 8, 7, 7])
    assert len(found["x"]) == (24 if shared else 30), "at most 12 of each"
    np.testing.assert_array_equal(found["x"][0], examples(1).x[0])


def test_rings_flat_rows_floats_and_learned_exemplars_are_pictures():
    data = jax.tree.map(lambda a: a.reshape(2, 6, *a.shape[1:]), examples(12, (64,), jnp.float32))
    state = State(memory=ring.State(data._replace(x=data.x / 250), jnp.array([6, 2])))
    found = snapshots.memory_of(state, stream_of((64,), shared=True))
    assert found["x"].shape == (8, 8, 8, 1) and found["counts"].sum() == 8
    assert abs(int(found["x"][0, 3, 7, 0]) - round(255 * 31 / 250)) <= 1
    x, y, task = examples(8)
    learned = Learned(x, y, task, y, jnp.arange(8) < 5, x + 1, x, x, ())
    found = snapshots.memory_of(State(exemplars=learned), stream_of((8, 8, 1)))
    assert found["counts"].sum() == 5
    np.testing.assert_array_equal(found["before"], found["x"] + 1)


class Newest(NamedTuple):
    """A memory of a kind that reports have never seen."""

    stored: Examples

    @property
    def contents(self):
        return Contents(*self.stored, jnp.ones(len(self.stored.y), bool))


def test_a_memory_of_a_new_kind_is_shown_by_what_it_says_of_itself():
    found = snapshots.memory_of(State(memory=Newest(examples(5))), stream_of((8, 8, 1)))
    assert found["counts"].sum() == 5
    inside = State(inner=State(memory=Newest(examples(5))))
    assert snapshots.memory_of(inside, stream_of((8, 8, 1))).keys() == found.keys()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((7,), np.uint8), ((64,), np.float32), ((4, 4, 2), np.uint8)]
)
def test_what_is_no_picture_is_not_kept(shape, dtype):
    state = State(memory=reservoir.State(examples(6, shape, jnp.float32), jnp.int32(6)))
    assert snapshots.memory_of(state, stream_of(shape, dtype=dtype)) == {}
    assert snapshots.memory_of(State(), stream_of((8, 8, 1))) == {}
    empty = State(memory=reservoir.State(examples(6), jnp.int32(0)))
    assert snapshots.memory_of(empty, stream_of((8, 8, 1))) == {}


def test_large_pictures_become_thumbnails():
    state = State(memory=reservoir.State(examples(4, (130, 100, 3)), jnp.int32(4)))
    found = snapshots.memory_of(state, stream_of((130, 100, 3)))
    assert max(found["x"].shape[1:3]) <= 64


def test_a_damaged_file_is_a_users_error(tmp_path):
    assert snapshots.read(tmp_path) == {}
    for content in (b"", b"PK\x03\x04nothing", b"x" * 100):
        (tmp_path / snapshots.NAME).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            snapshots.read(tmp_path)


def test_outer_losses_are_kept_by_task_and_thinned():
    first = ((np.arange(3.0),), (np.arange(3.0) + 10,))
    later = ((np.arange(5000.0), np.arange(2.0)), (np.arange(5000.0) + 1, np.arange(2.0)))
    history = SimpleNamespace(
        seeds=(0, 1), phase_losses={"mnemonics": later, "mnemonics-first": first, "balanced": later}
    )
    found = snapshots.outer_losses(history)
    assert [losses.shape for losses in found] == [(2, 3), (2, 1667), (2, 2)]
    np.testing.assert_array_equal(found[0][1], [10, 11, 12])
    np.testing.assert_array_equal(found[1][0], np.arange(0, 5000, 3))
    assert snapshots.outer_losses(SimpleNamespace(seeds=(0, 1), phase_losses={})) == []
