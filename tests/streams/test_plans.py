from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import mnist_support as support
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cljax
from cljax import streams
from cljax.errors import UserError
from cljax.streams import plan
from cljax.streams.transforms import pixels

DATA = support.digits(200, 20)


def stream(num_tasks=3, samples=13):
    return streams.MNISTRotations(num_tasks=num_tasks, samples_per_task=samples).build(DATA)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_a_plan_shows_each_example_once_an_epoch(batch_size, epochs, seed):
    subject = stream()
    steps = plan(subject, seed, batch_size, epochs)
    assert all(len(part) == len(steps.current) for part in steps)
    assert steps.index.shape[1] == batch_size
    for task, rows in enumerate(subject.subsets(seed)):
        for epoch in range(epochs):
            at = (steps.current == task) & (steps.epoch == epoch)
            shown = steps.index[at][steps.mask[at]]
            assert np.array_equal(np.sort(shown), np.sort(rows))
            if epoch == 0:
                assert np.array_equal(shown, rows)
            assert (steps.task[at] == task).all()
            assert np.isin(steps.index[at], rows).all()  # padding too: real examples of the task


@pytest.mark.parametrize(("batch_size", "valid"), [(5, [5, 5, 3]), (13, [13]), (20, [13])])
def test_remainders_are_masked(batch_size, valid):
    steps = plan(stream(), 0, batch_size, 2)
    assert steps.mask.sum(axis=1).tolist() == valid * 6
    assert all(not row[i] or row[: i + 1].all() for row in steps.mask for i in range(batch_size))


def test_clocks_mark_first_passes_and_ends_of_tasks():
    steps = plan(stream(), 0, 5, 2)
    assert steps.first_pass.tolist() == [True, True, True, False, False, False] * 3
    assert steps.last.tolist() == [False] * 5 + [True] + [False] * 5 + [True] + [False] * 5 + [True]
    assert (np.diff(steps.current) >= 0).all() and steps.current[-1] == 2
    assert [a.dtype for a in steps] == [np.int32, np.int32, bool, np.int32, np.int32, bool, bool]


def test_the_same_seed_gives_the_same_plan_and_later_epochs_are_reshuffled():
    a, b = plan(stream(), 1, 4, 3), plan(stream(), 1, 4, 3)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a.index, plan(stream(), 2, 4, 3).index)
    first, second, third = (a.index[(a.current == 0) & (a.epoch == e)] for e in range(3))
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    longer = plan(stream(), 1, 4, 4)  # more epochs or tasks move nothing that was there
    assert np.array_equal(longer.index[(longer.current == 0) & (longer.epoch == 1)], second)


@pytest.mark.parametrize(("batch_size", "epochs"), [(0, 1), (1, 0)])
def test_counts_below_one_get_a_sentence(batch_size, epochs):
    for subject in (stream(), streams.task_free(stream())):
        with pytest.raises(UserError, match="whole number of at least 1"):
            plan(subject, 0, batch_size, epochs)


def test_rows_used_name_every_row_and_its_task():
    subject = stream()
    named = streams.rows_used(subject, [0, 7])
    assert "rotations_angles" in named
    for seed in (0, 7):
        rows, tasks = named[f"seed{seed}_train_rows"], named[f"seed{seed}_train_tasks"]
        for task in range(3):
            assert np.array_equal(rows[tasks == task], subject.subsets(seed)[task])
            held = named[f"seed{seed}_valid_rows"][named[f"seed{seed}_valid_tasks"] == task]
            assert np.array_equal(held, subject.valid(seed)[task])


def test_split_mnist_brings_two_digits_a_task():
    subject = streams.SplitMNIST().build(DATA)
    assert subject.scenario == "class" and not subject.multi_head and subject.num_tasks == 5
    assert subject.class_mask.sum(axis=0).tolist() == [1] * 10
    everything = []
    for task, (rows, held, tests) in enumerate(
        zip(subject.subsets(0), subject.valid(0), subject.test_index, strict=True)
    ):
        for labels in (subject.train_y[rows], subject.train_y[held], subject.test_y[tests]):
            assert set(labels) == {2 * task, 2 * task + 1}
        assert len(rows) == 36 and len(held) == 4 and len(tests) == 4
        everything += [*rows, *held]
    assert sorted(everything) == list(range(200))  # all images, none twice
    assert not np.array_equal(subject.valid(0)[0], subject.valid(1)[0])
    order = subject.train_y[subject.subsets(0)[0]]
    assert (np.diff(order) < 0).any()  # shuffled, not one digit after the other


def test_split_mnist_options():
    subject = streams.SplitMNIST(num_tasks=2, samples_per_task=7, multi_head=True).build(DATA)
    assert subject.scenario == "task" and subject.spec(3).multi_head
    assert [len(rows) for rows in subject.subsets(4)] == [7, 7]
    assert subject.class_mask[1].tolist() == [False] * 5 + [True] * 5
    assert subject.transform is pixels and subject.example.shape == (28, 28, 1)
    for options, message in (
        ({"num_tasks": 3}, "num_tasks is 3, but ten digits split"),
        ({"samples_per_task": 37}, "samples_per_task is 37, but a task of split-mnist has only 36"),
        ({"samples_per_task": 0}, "samples_per_task is 0"),
    ):
        with pytest.raises(UserError, match=message):
            streams.SplitMNIST(**options).build(DATA)


def test_split_by_class_refuses_classes_without_images():
    with pytest.raises(UserError, match="of class 11"):
        streams.split_by_class("s", DATA, [[0], [11]])
    with pytest.raises(UserError, match="classes of their own"):
        streams.split_by_class("s", DATA, [[0, 1], [1]])


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_task_free_stream_shows_the_same_examples_without_edges(order):
    base, subject = stream(), streams.task_free(stream(), order=order)
    steps = plan(subject, 0, 5, 2)
    assert not subject.boundaries and not steps.last.any() and not steps.current.any()
    assert len(steps.current) == 2 * 8  # ceil(39 / 5): one remainder an epoch, not one a task
    for epoch in range(2):
        at = steps.epoch == epoch
        assert (steps.first_pass[at] == (epoch == 0)).all()
        shown, tasks = steps.index[at][steps.mask[at]], steps.task[at][steps.mask[at]]
        for task, rows in enumerate(base.subsets(0)):
            assert np.array_equal(np.sort(shown[tasks == task]), np.sort(rows))
        mixed = (np.diff(tasks) < 0).any()
        assert mixed == (order == "shuffled")
        if order == "sequential" and epoch == 0:
            assert np.array_equal(shown, np.concatenate(base.subsets(0)))
    assert subject.checksum != base.checksum and not subject.published
    assert subject.num_tasks == 3 and len(subject.test_index) == 3


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_blurry_stream_moves_a_share_of_each_task(fraction):
    base = stream(num_tasks=4, samples=30)
    subject = streams.blurry(base, fraction)
    steps = plan(subject, 0, 30, 1)
    assert not subject.boundaries and steps.mask.all() and len(steps.current) == 4
    away = round(fraction * 30)
    for task, rows in enumerate(base.subsets(0)):
        assert np.array_equal(np.sort(steps.index[steps.task == task]), np.sort(rows))
        here = (steps.task == task).sum(axis=1)  # a stretch is a batch of 30 here
        assert here[task] == 30 - away
        assert np.ptp(np.delete(here, task)) <= 1  # the others share evenly
    later = plan(subject, 0, 30, 2)
    assert np.array_equal(np.sort(later.index[:4]), np.sort(later.index[4:]))  # same stretches
    assert not np.array_equal(later.index[:4], later.index[4:])


def test_streams_with_their_own_plan_are_not_blurred_again():
    with pytest.raises(UserError, match="a plan of its own"):
        streams.blurry(streams.task_free(stream()))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="share from 0 to 1"):
            streams.blurry(stream(), wrong)
    with pytest.raises(UserError, match="did you mean"):
        streams.task_free(stream(), order="shuffle")  # pyright: ignore[reportArgumentType]


def test_a_plan_is_a_pytree_of_device_arrays():
    steps = jax.tree.map(jnp.asarray, plan(stream(), 0, 5))
    first = jax.tree.map(lambda a: a[0], steps)
    assert first.index.shape == (5,) and first.current.shape == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: tuple(steps), "planner of .* makes .*, but it must make a StepPlan"),
        (lambda steps: steps._replace(index=steps.index[:, :3]),
         r"makes int32\[\d+, 3\] as index, but with \d+ batches of 5 that must be int\[\d+, 5\]"),
        (lambda steps: steps._replace(mask=steps.mask * 1.0),
         r"float64\[\d+, 5\] as mask, .* bool"),
        (lambda steps: steps._replace(last=steps.last[1:]), "as last"),
        (lambda steps: steps._replace(current=0), r"int\[\] as current"),
    ],
)  # fmt: skip
def test_a_planner_of_ones_own_that_makes_no_plan_gets_a_sentence(change, message):
    base = stream()
    planner = lambda seed, size, epochs: change(plan(base, seed, size, epochs))
    own = dataclasses.replace(base, planner=planner)
    with pytest.raises(UserError, match=message):
        plan(own, 0, 5)
    right = dataclasses.replace(base, planner=lambda *of: plan(base, *of))
    assert np.array_equal(plan(right, 0, 5).index, plan(base, 0, 5).index)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda tables, x, task: x @ np.ones((5, 5)), "transform of .* fails on stored examples"),
        (lambda tables, x, task: x.sum() / 255, r"makes float32\[\] of .* a row for each, \[1, "),
    ],
)  # fmt: skip
def test_a_transform_of_ones_own_that_does_not_fit_gets_a_sentence(apply, message):
    base = stream()
    own = dataclasses.replace(base, transform=base.transform._replace(apply=apply))
    with pytest.raises(UserError, match=message):
        cljax.run(cljax.Finetune(), own, seeds=1, net="mlp:2", batch_size=5)
