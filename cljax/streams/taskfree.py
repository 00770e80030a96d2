"""Streams without boundaries, made from any stream of tasks.

All are only other plans over the same examples, each of which arrives once an epoch: batches run
across the edges between tasks, nothing marks where one ends, and ``Clock.task`` stays 0. An
example still carries its own task, which chooses how it is seen and groups the tests. Measures
while learning fit them best: ``online=True`` counts right predictions before learning
(prequential accuracy), ``eval_every`` tests every so many updates (average anytime accuracy). The
rows of an accuracy matrix are taken after each T-th of the updates, when as many tasks count as
seen (in the scenario "class" the outputs of those are allowed).

    sequential   task after task, no marks
    blurry       a share M of each task's examples arrives during the others
    i-blurry     likewise, but a share N of the classes never leaves its task
    gaussian     place ~ Normal(t, width^2) for each example of task (or class) t, in that order

Sources: Bang et al., "Rainbow Memory", CVPR 2021 (arXiv:2103.17230), section 3 (blurry-M); Koh et
al., "Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime
Inference", ICLR 2022 (arXiv:2110.10031), section 3 (i-Blurry-N-M); Shanahan, Kaplanis, Mitrovic,
"Encoders and Ensembles for Task-Free Continual Learning", 2021 (arXiv:2105.13327; how likely a
class is present is a Gaussian over time). That every example arrives once, the exact counts and
the even dealing out are ours: those papers draw at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from cljax.data import ImageData
from cljax.errors import UserError, check_above_zero, check_known, check_share, in_words
from cljax.options import Bound, StaticShare
from cljax.streams.base import Stream, batches, check_stream, derived
from cljax.streams.options import StreamSource
from cljax.streams.orders import permutation, uniform
from cljax.types import StepPlan

__all__ = [
    "Blurry", "Gaussian", "IBlurry", "TaskFree", "blurry", "gaussian", "i_blurry", "task_free",
]  # fmt: skip

Arrival = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # seed, epoch -> rows, tasks


def task_free(stream: Stream, *, order: Literal["sequential", "shuffled"] = "sequential") -> Stream:
    """The same examples as one long stream that says nothing of tasks.

    Args:
      stream: with the default plan.
      order: ``sequential`` keeps task after task; ``shuffled`` mixes all of them.

    Raises:
      UserError: for an unknown order, or if the stream has a plan of its own.
    """
    check_stream(stream)
    check_known("order", order, ("sequential", "shuffled"))

    def arrival(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        parts = stream.subsets(seed)
        if order == "shuffled":
            return _joined([_tagged(parts)], "task-free", seed, epoch, shuffle_first=True)
        tagged = [(rows, np.full(len(rows), t, np.int32)) for t, rows in enumerate(parts)]
        return _joined(tagged, "task-free", seed, epoch, shuffle_first=False)

    suffix = "task-free" if order == "sequential" else "task-free-shuffled"
    return _without_boundaries(stream, arrival, suffix)


def blurry(stream: Stream, fraction: float = 0.1) -> Stream:
    """Blurs the edges: a share of each task's examples arrives during the other tasks.

    The blurry-M setting of Bang et al., "Rainbow Memory", 2021, with M = 100 * ``fraction``: the
    examples that leave a task are dealt out evenly to all others, then each stretch is shuffled.
    Every example arrives once an epoch.

    Args:
      stream: with the default plan.
      fraction: share of each task's examples that leaves it, in [0, 1].

    Raises:
      UserError: if ``fraction`` is out of range, or the stream has a plan of its own.
    """
    check_stream(stream)
    check_share(fraction=fraction)
    everything = lambda seed: np.ones(stream.num_classes, bool)
    return _blurred(stream, fraction, everything, f"blurry{100 * fraction:g}", (fraction,))


def i_blurry(stream: Stream, *, disjoint: float = 0.5, fraction: float = 0.1) -> Stream:
    """Some classes stay in their task, a share of the others' examples arrives in other tasks.

    The i-Blurry-N-M setting of Koh et al. 2022, with N = 100 * ``disjoint`` and M = 100 *
    ``fraction``: new classes go on arriving, while old ones come back. Which classes stay is drawn
    anew for each seed, as many of each task as go evenly.

    Args:
      stream: whose tasks have classes of their own, with the default plan.
      disjoint: share of all classes that never leave their task, in [0, 1].
      fraction: share of each other class's examples that leaves its task, in [0, 1].

    Raises:
      UserError: if a share is out of range, tasks share classes, or the stream has a plan of its
        own.
    """
    check_stream(stream)
    check_share(disjoint=disjoint, fraction=fraction)
    _check_own_classes(stream, "i-blurry")

    def leaves(seed: int) -> np.ndarray:
        moving = np.ones(stream.num_classes, bool)
        before = np.cumsum([0, *stream.class_mask.sum(axis=1)])
        stays = np.floor(before * disjoint + 0.5).astype(int)  # of all classes up to each task
        for task, outputs in enumerate(stream.class_mask):
            classes = np.flatnonzero(outputs)
            chosen = permutation(len(classes), "i-blurry", "disjoint", seed, task)
            moving[classes[chosen[: stays[task + 1] - stays[task]]]] = False
        return moving

    suffix = f"i-blurry{100 * disjoint:g}-{100 * fraction:g}"
    return _blurred(stream, fraction, leaves, suffix, (disjoint, fraction))


def gaussian(
    stream: Stream, *, width: float = 0.5, peaks: Literal["tasks", "classes"] = "tasks"
) -> Stream:
    """Tasks, or classes, come and go gradually: each one's share is a Gaussian over time.

    The Gaussian schedule of Shanahan et al. 2021. Every example's place is drawn from the Gaussian
    of its task or class, whose peaks lie apart evenly, and examples arrive in the order of their
    places; later epochs draw anew. Wang et al. (arXiv:2112.08654, released code) have classes as
    peaks and a width of 5 on CIFAR-100, half a task of ten classes.

    Args:
      stream: with the default plan.
      width: standard deviation, in distances of two peaks.
      peaks: of what there is one each: tasks, or classes in the order of the tasks.

    Raises:
      UserError: if ``width`` is not a positive number, tasks share the classes that are to have a
        peak each, or the stream has a plan of its own.
    """
    check_stream(stream)
    check_above_zero(width=width)
    check_known("peaks", peaks, ("tasks", "classes"))
    rank = np.zeros(stream.num_classes, int)
    if peaks == "classes":
        _check_own_classes(stream, "a peak a class")
        ordered = np.concatenate([np.flatnonzero(own) for own in stream.class_mask])
        rank[ordered] = np.arange(len(ordered))

    def arrival(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        from scipy.special import ndtri  # here, so that importing cljax stays quick

        rows, tasks = _tagged(stream.subsets(seed))
        peak = tasks if peaks == "tasks" else rank[stream.train_y[rows]]
        u = uniform(len(rows), "gaussian", seed, epoch) + 2.0**-54  # in (0, 1)
        order = np.argsort(peak + width * ndtri(u), kind="stable")
        return rows[order], tasks[order]

    suffix = f"gaussian{width:g}" + ("-classes" if peaks == "classes" else "")
    return _without_boundaries(stream, arrival, suffix, () if _short(width) == width else (width,))


def _check_own_classes(stream: Stream, what: str) -> None:
    if np.any(stream.class_mask.sum(axis=0) > 1):
        raise UserError(
            f"The tasks of {stream.name} share their classes, but {what} needs tasks with classes "
            "of their own, as in split-mnist."
        )


def _blurred(
    stream: Stream,
    fraction: float,
    leaves: Callable[[int], np.ndarray],
    suffix: str,
    shares: tuple[float, ...],
) -> Stream:
    """Deals a share of each task's examples, or of each class's, out to the other tasks.

    Args:
      leaves: seed -> [C] bool, the classes whose examples may leave.
    """

    def arrival(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows, tasks = _tagged(stream.subsets(seed))
        stretch, moves = tasks.copy(), leaves(seed)[stream.train_y[rows]]
        for task in range(stream.num_tasks if stream.num_tasks > 1 else 0):
            own = np.flatnonzero((tasks == task) & moves)
            num = round(fraction * len(own))
            leaving = permutation(len(own), "blurry", "leave", seed, task, take=num)
            hops = 1 + np.arange(len(leaving)) % (stream.num_tasks - 1)
            stretch[own[leaving]] = (task + hops) % stream.num_tasks
        parts = [(rows[stretch == t], tasks[stretch == t]) for t in range(stream.num_tasks)]
        return _joined(parts, "blurry", seed, epoch, shuffle_first=True)

    exact = [share for share in shares if _short(100 * share) / 100 != share]
    return _without_boundaries(stream, arrival, suffix, exact)


def _short(value: float) -> float:
    """A value as names show it."""
    return float(f"{value:g}")


def _tagged(parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    tasks = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows in parts])
    return np.concatenate(parts), tasks


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray]],
    purpose: str,
    seed: int,
    epoch: int,
    *,
    shuffle_first: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches one after the other, each shuffled (in the first epoch only if asked for)."""
    if epoch or shuffle_first:
        orders = [
            permutation(len(rows), purpose, "order", seed, i, epoch)
            for i, (rows, _) in enumerate(parts)
        ]
        parts = [
            (rows[order], tasks[order]) for (rows, tasks), order in zip(parts, orders, strict=True)
        ]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([t for _, t in parts])


def _without_boundaries(
    stream: Stream, arrival: Arrival, suffix: str, exact: Sequence[float] = ()
) -> Stream:
    """The stream by arrival alone; ``exact`` values tell apart what ``suffix`` shows alike."""
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")
    if stream.multi_head:
        raise UserError(
            f"The stream {stream.name} tells losses and predictions the task of every example, so "
            "it cannot be without tasks; give it one head."
        )

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        parts = [batches(*arrival(seed, e), batch_size, epoch=e) for e in range(epochs)]
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    return derived(
        stream,
        suffix,
        *exact,
        name=f"{stream.name}-{suffix}",
        planner=planner,
        boundaries=False,
        published=False,
    )


class _Rearranged(StreamSource):
    """Of streams made of one with tasks, whose options are theirs too."""

    stream: StreamSource

    def check(self) -> None:
        if not isinstance(self.stream, StreamSource):
            raise UserError(
                f"stream is {in_words(self.stream)}, but {type(self).__name__} is made of the "
                "options of one with tasks, such as cljax.streams.SplitMNIST()."
            )

    def arrange(self, stream: Stream) -> Stream:
        """The stream without its boundaries."""
        raise NotImplementedError

    def build(self, *data: ImageData) -> Stream:
        """Opens the stream with tasks, and takes its boundaries.

        Raises:
          UserError: as that stream does, or where it cannot be without tasks.
        """
        return self.arrange(self.stream.build(*data))


class TaskFree(_Rearranged):
    """The same examples as one long stream that says nothing of tasks."""

    order: Literal["sequential", "shuffled"] = "sequential"
    """Sequential keeps task after task; shuffled mixes all of them."""

    def arrange(self, stream: Stream) -> Stream:
        return task_free(stream, order=self.order)


class Blurry(_Rearranged):
    """Blurs the edges: a share of each task's examples arrives during the other tasks."""

    fraction: StaticShare = 0.1
    """Share of each task's examples that leaves it, in [0, 1]."""

    def arrange(self, stream: Stream) -> Stream:
        return blurry(stream, self.fraction)


class IBlurry(_Rearranged, name="i-blurry"):
    """Some classes stay in their task, a share of the others' examples arrives in other tasks."""

    disjoint: StaticShare = 0.5
    """Share of all classes that never leave their task, in [0, 1]."""
    fraction: StaticShare = 0.1
    """Share of each other class's examples that leaves its task, in [0, 1]."""

    def arrange(self, stream: Stream) -> Stream:
        return i_blurry(stream, disjoint=self.disjoint, fraction=self.fraction)


class Gaussian(_Rearranged):
    """Tasks, or classes, come and go gradually: each one's share is a Gaussian over time."""

    width: Bound = 0.5
    """Standard deviation, in distances of two peaks."""
    peaks: Literal["tasks", "classes"] = "tasks"
    """Of what there is one each: tasks, or classes in the order of the tasks."""

    def arrange(self, stream: Stream) -> Stream:
        return gaussian(stream, width=self.width, peaks=self.peaks)
