"""Streams without boundaries: what arrives when, who may run there, and what is measured."""

from __future__ import annotations

import mnist_support
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax import streams
from cljax.errors import UserError
from cljax.resolve import options_of
from cljax.streams import plan

DATA = mnist_support.digits(200, 20)
NET = cljax.nets.mlp(5)


def split(num_tasks=5, **options):
    return streams.SplitMNIST(num_tasks=num_tasks, **options).build(DATA)


EACH = pytest.mark.parametrize(
    "arrange",
    [streams.task_free, streams.blurry, streams.i_blurry, streams.gaussian,
     lambda stream: streams.gaussian(stream, peaks="classes")],
    ids=["task-free", "blurry", "i-blurry", "gaussian", "gaussian-classes"],
)  # fmt: skip


@EACH
def test_every_example_arrives_once_an_epoch_and_nothing_marks_a_task(arrange):
    base, subject = split(), arrange(split())
    steps = plan(subject, 3, 7, 2)
    assert not subject.boundaries and not steps.last.any() and not steps.current.any()
    for epoch in range(2):
        at = steps.epoch == epoch
        shown, tasks = steps.index[at][steps.mask[at]], steps.task[at][steps.mask[at]]
        for task, rows in enumerate(base.subsets(3)):
            assert np.array_equal(np.sort(shown[tasks == task]), np.sort(rows))
    again = plan(arrange(split()), 3, 7, 2)
    assert np.array_equal(steps.index, again.index)
    assert not np.array_equal(steps.index, plan(subject, 4, 7, 2).index)
    assert subject.checksum != base.checksum and subject.name.startswith("split-mnist-")


@pytest.mark.parametrize("seed", [0, 1])
def test_i_blurry_keeps_half_of_the_classes_in_their_task(seed):
    base = split()  # 18 examples of each digit; 8 of a blurry one are dealt out to 4 other tasks
    subject = streams.i_blurry(base, disjoint=0.5, fraction=8 / 18)
    steps = plan(subject, seed, 36, 1)  # so each stretch is again of 36 examples: a batch
    counts = np.array([np.bincount(base.train_y[rows], minlength=10) for rows in steps.index])
    stays = []
    for digit in range(10):
        home, away = counts[digit // 2, digit], np.delete(counts[:, digit], digit // 2)
        stays.append(home == 18)
        assert (home, *away) == ((18, 0, 0, 0, 0) if home == 18 else (10, 2, 2, 2, 2))
    assert np.reshape(stays, (5, 2)).sum(axis=1).tolist() == [1] * 5


def test_which_classes_stay_depends_on_the_seed_and_the_share():
    def stay(disjoint, seed, num_tasks=5):
        subject = streams.i_blurry(split(num_tasks), disjoint=disjoint, fraction=0.5)
        steps = plan(subject, seed, 10, 1)
        shown = steps.index.reshape(-1)
        thirds = [set(DATA.train_y[part]) for part in np.array_split(shown, 3)]
        return [digit for digit in range(10) if not all(digit in part for part in thirds)]

    assert len(stay(1.0, 0)) == 10 and not stay(0.0, 0)
    assert stay(0.3, 0) != stay(0.3, 1) and len(stay(0.3, 0)) == 3
    assert len(stay(0.5, 0, num_tasks=2)) == 5


def test_a_gaussian_stream_has_evenly_spaced_peaks_of_the_given_width():
    base = support.stream(num_tasks=10, per_task=2000, train_y=np.zeros(20020, np.int32))
    for width in (0.5, 1.0):
        subject = streams.gaussian(base, width=width)
        steps = plan(subject, 0, 20000, 1)
        tasks = steps.task[0]
        place = np.arange(20000) / 2000 - 0.5
        # In the middle of the stream examples arrive at an even rate, so places are Gaussian.
        for task in (4, 5):
            own = place[tasks == task]
            assert abs(own.mean() - task) < 0.1
            assert abs(own.std() - width) < 0.05 * width
    later = plan(subject, 0, 20000, 2)
    assert not np.array_equal(later.index[0], later.index[1])  # later epochs draw anew


def test_classes_may_have_a_peak_each():
    base = split()
    steps = plan(streams.gaussian(base, peaks="classes", width=0.2), 0, 18, 1)
    home = np.array([np.mean(base.train_y[rows] == c) for c, rows in enumerate(steps.index)])
    assert (home > 0.8).all()


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda: streams.i_blurry(support.stream()), "share their classes, but i-blurry needs"),
        (lambda: streams.gaussian(support.stream(), peaks="classes"), "but a peak a class needs"),
        (lambda: streams.i_blurry(split(), disjoint=1.5), "disjoint is 1.5"),
        (lambda: streams.i_blurry(split(), fraction=-1), "fraction is -1"),
        (lambda: streams.gaussian(split(), width=0.0), "width is 0.0"),
        (lambda: streams.gaussian(split(), width=float("nan")), "width is nan"),
        (lambda: streams.gaussian(split(), peaks="class"), "did you mean classes"),  # type: ignore
        (lambda: streams.gaussian(streams.task_free(split())), "a plan of its own"),
        (lambda: streams.blurry(split(multi_head=True)), "give it one head"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(arrange, message):
    with pytest.raises(UserError, match=message):
        arrange()


@pytest.mark.parametrize("how", ["gaussian", "i-blurry"])
@pytest.mark.parametrize("method", ["lamaml", "mer", "er"])
def test_methods_without_tasks_run_there_with_online_measures(method, how):
    arrange = {"gaussian": streams.gaussian, "i-blurry": streams.i_blurry}[how]
    make = {
        "lamaml": cljax.LaMAML(alpha_init=0.3, capacity=30, replay_size=5, glances=2),
        "mer": cljax.MER(lr=0.1, beta=0.3, sweeps=2, capacity=30, replay_size=5),
        "er": cljax.ER(lr=0.3, capacity=30),
    }
    done = cljax.run(
        make[method], arrange(split()), seeds=1, net=NET, batch_size=10, online=True, eval_every=6
    )
    assert done.config["needs"]["boundaries"] is False
    online = done.metric("prequential_accuracy")[0]
    points = done.results["anytime"][0]
    assert [point["step"] for point in points] == [6, 12, 18]
    seen = [np.mean([a for a in point["accuracy"] if a is not None]) for point in points]
    np.testing.assert_allclose(done.metric("average_anytime_accuracy")[0], np.mean(seen))
    assert 0 <= online <= 1


NEED_TASKS = [
    cljax.GEM(), cljax.AGEM(), cljax.ICaRL(), cljax.ITAML(), cljax.LUCIR(), cljax.BiC(),
    cljax.Replayed(), cljax.Reptile(), cljax.FixedRep(), cljax.Joint(), cljax.Independent(),
    cljax.Multitask(), cljax.Finetune(penalty=cljax.penalties.EWC(1.0)),
    cljax.ER(penalty=cljax.penalties.SI()),
    cljax.LaMAML(penalty=cljax.penalties.MAS()),
]  # fmt: skip


@pytest.mark.parametrize("method", NEED_TASKS, ids=lambda method: method.name)
def test_methods_that_need_tasks_are_refused_in_a_sentence(method):
    with pytest.raises(UserError, match="needs task boundaries, but the stream .* has none") as no:
        learn(method, NET(10), streams.gaussian(split()), [0], batch_size=4)
    assert "\n" not in str(no.value)


UNTASKED = [name for name in streams.STREAMS if name.endswith(("-free", "blurry", "gaussian"))]


def test_they_have_names_on_the_command_line():
    assert {"mnist-rotations-gaussian", "split-mnist-i-blurry", "cifar100-10x10-blurry",
            "split-mnist-task-free"} <= set(UNTASKED)  # fmt: skip
    flags = {option.name: option for option in options_of(streams.STREAMS["split-mnist-gaussian"])}
    assert flags["width"].default == 0.5 and "deviation" in flags["width"].help
    assert "peaks" in flags and "samples_per_task" in flags
    named = streams.make("split-mnist-i-blurry", num_tasks=2, fraction=0.2).build(DATA)
    by_hand = streams.i_blurry(split(2), fraction=0.2)
    assert named.name == by_hand.name and named.checksum == by_hand.checksum
    assert np.array_equal(plan(named, 0, 5).index, plan(by_hand, 0, 5).index)


@pytest.mark.parametrize("name", UNTASKED)
def test_every_flag_of_a_named_one_has_its_help(name):
    source = streams.STREAMS[name]
    assert all(option.help for option in options_of(source))
    assert "stream" not in [option.name for option in options_of(source)]
