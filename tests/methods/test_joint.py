"""Joint and IID training: what their updates may see."""

from __future__ import annotations

import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax.errors import UserError
from cljax.streams.base import plan

NET = cljax.nets.mlp(5)


def arranged(method: cljax.Method, **changes):
    stream = support.stream(**changes)
    assert method.arrange is not None
    return stream, method.arrange(stream)


@pytest.mark.parametrize("epochs", [1, 2])
def test_joint_sees_every_example_of_the_tasks_so_far_once_an_epoch(epochs):
    stream, joint = arranged(cljax.Joint())
    rows = plan(joint, 0, 4, epochs)
    subsets = stream.subsets(0)
    for task in range(3):
        for epoch in range(epochs):
            own = (rows.current == task) & (rows.epoch == epoch)
            seen = rows.index[own][rows.mask[own]]
            assert sorted(seen) == sorted(np.concatenate(subsets[: task + 1]))
    assert np.flatnonzero(rows.last).tolist() == [
        np.flatnonzero(rows.current == t)[-1] for t in range(3)
    ]


def test_examples_keep_their_own_task():
    stream, joint = arranged(cljax.Joint())
    rows = plan(joint, 0, 4)
    owner = {int(row): t for t, subset in enumerate(stream.subsets(0)) for row in subset}
    assert all(owner[int(i)] == t for i, t in zip(rows.index.flat, rows.task.flat, strict=True))


def test_iid_is_one_pass_over_all_examples():
    stream, iid = arranged(cljax.IID())
    rows = plan(iid, 0, 4)
    assert sorted(rows.index.flat) == sorted(np.concatenate(stream.subsets(0)))
    assert not iid.boundaries and len(set(rows.task[:3].flat)) > 1


def test_iid_balances_tasks_and_never_repeats_an_example_within_an_update():
    stream, iid = arranged(cljax.IID(tasks_per_batch=2, updates=40))
    rows = plan(iid, 0, 4)
    assert rows.index.shape == (40, 4)
    chosen = set()
    for index, tasks in zip(rows.index, rows.task, strict=True):
        assert len(set(index)) == 4
        assert sorted(np.unique(tasks, return_counts=True)[1]) == [2, 2]
        chosen |= set(tasks.tolist())
    assert chosen == {0, 1, 2}


def test_orders_depend_on_the_seed_alone():
    _, iid = arranged(cljax.IID(tasks_per_batch=2))
    a, b, c = plan(iid, 0, 4), plan(iid, 0, 4), plan(iid, 1, 4)
    np.testing.assert_array_equal(a.index, b.index)
    assert (a.index != c.index).any()


@pytest.mark.parametrize("method", [cljax.Joint(lr=0.1), cljax.IID(lr=0.1)])
def test_they_run_and_test_every_task(method):
    history = learn(method, NET(4), support.stream(), [0], batch_size=4, entries="full")
    assert np.isfinite(history.evaluations["logits"]).all()


def test_a_joint_learner_remembers_what_finetuning_forgets():
    stream = support.stream(per_task=200)
    final = {}
    for name, method in (("joint", cljax.Joint(lr=0.2)), ("finetune", cljax.Finetune(lr=0.2))):
        history = learn(method, NET(4), stream, [0, 1], batch_size=4)
        final[name] = history.evaluations["logits"][:, -1].mean()
    assert final["joint"] > final["finetune"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (cljax.IID(tasks_per_batch=3), "must divide the batch of 4"),
        (cljax.IID(tasks_per_batch=4), "at most the stream's 3 tasks"),
    ],
)
def test_a_batch_that_cannot_be_balanced_is_refused(method, words):
    with pytest.raises(UserError, match=words):
        learn(method, NET(4), support.stream(), [0], batch_size=4)


@pytest.mark.parametrize("options", [{"tasks_per_batch": 0}, {"updates": 0}, {"lr": np.nan}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        cljax.IID(**options)


def test_methods_that_ask_for_tasks_refuse_a_stream_without():
    stream = cljax.streams.task_free(support.stream())
    for method in (
        cljax.Joint(),
        cljax.Independent(),
        cljax.GEM(),
        cljax.Finetune(penalty=cljax.penalties.SI()),
    ):
        with pytest.raises(UserError, match="such as mnist-rotations"):
            learn(method, NET(4), stream, [0], batch_size=4)
