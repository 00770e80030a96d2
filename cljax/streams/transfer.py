"""Sequential transfer: a first task to pretrain on, new tasks of a few updates, held-out examples.

    A = groups[0], new tasks B_t = groups[t]
    held [H, n]: the first n training examples of each held class, in the order of the data
    task t learns from the others of its classes, less its validation images
    plan: the examples of A in order, then for each new task ``steps`` updates of
        B draws with replacement (iid), or batches of one permutation after another (epochs)

No task learns from held examples: a method that learns how to learn practises on them before it
meets a new task. Their classes may be ones that no task has, whose labels are C and above, or
those of new tasks, of which each example is then either held or learned from.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019,
sections on experiments; its named streams are in ``cljax.streams.transfers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from cljax.data import ImageData, mark_of
from cljax.errors import UserError, check_positive, check_share
from cljax.options import Count, Options, StaticShare
from cljax.streams.base import Stream, batches, checksum, sealed, told
from cljax.streams.options import SplitOptions
from cljax.streams.orders import permutation, uniform
from cljax.streams.split import split_by_class
from cljax.types import Pretraining, StepPlan

__all__ = ["TransferOptions", "joined", "pooled", "transfer"]


class TransferOptions(Options):
    """How the new tasks of a transfer stream are learned, and what validates."""

    steps: Count = 500
    """Updates of each new task."""
    draws: Literal["iid", "epochs"] = "iid"
    """Of a new task's examples, iid with replacement, or epochs of shuffled ones."""
    pool: Count = 1
    """Pixels are means over squares of so many by so many, rounded to grey levels."""
    val: StaticShare = 0.1
    """Share of each class's training images that are not held, drawn anew for each seed, that
    validates."""


def transfer(
    name: str,
    data: ImageData,
    groups: Sequence[Sequence[int]],
    options: TransferOptions = TransferOptions(),  # noqa: B008, it is immutable
    *,
    held: Sequence[int] = (),
    held_share: float = 1.0,
    pretraining: Pretraining | None = None,
) -> Stream:
    """A task to start from, then new tasks of some updates each; the task is always told.

    Outputs are numbered by place in ``groups``, held classes of no task from C on. Pixels reach
    the network between 0 and 1. An epoch is a pass over the first task's examples; new tasks have
    their steps whatever the number of epochs.

    Args:
      name: of the stream, without a mark for parts of a data set.
      groups: disjoint lists of classes, the first task's first.
      options: steps and draws of the new tasks, the pooling of pixels, and what validates.
      held: classes of which examples are held out.
      held_share: share of each held class's training examples that is, the first in the order of
        the data; of as many as the smallest held class has.
      pretraining: how the first task is learned before any method begins; None: as
        ``cljax.types.Pretraining`` has it.

    Raises:
      UserError: for a share out of range, classes without images, or a held class of which nothing
        is left to its task.
    """
    check_share(held_share=held_share)
    if held_share == 0:
        raise UserError(f"held_share is {held_share}, but it must be a share from above 0 to 1.")
    steps, draws = options.steps, options.draws
    data = pooled(data, options.pool)
    members = _held_rows(data, held, held_share)
    wanted = {int(c) for group in groups for c in group}
    free = _without_held(data, members, wanted & set(held), held_share)
    split = SplitOptions(val=options.val, multi_head=True)
    base = split_by_class(name, free, groups, split, renumber=True)
    order = base.manifest["class_order"].tolist()
    others = [c for c in held if c not in wanted]
    numbers = {c: i for i, c in enumerate([*order, *others])}  # of outputs, held ones from C on
    labels = np.repeat(np.array([numbers[c] for c in held], np.int32), members.shape[1])
    how = Pretraining() if pretraining is None else pretraining
    first = len(base.train_y)
    rows = np.arange(first, first + members.size, dtype=np.int32).reshape(members.shape)
    manifest = {**base.manifest, "held_classes": np.array(held, np.int32), "held_rows": rows}
    told_apart = (held_share, steps, draws, options.pool, tuple(how))
    stream = replace(
        base,
        train_x=np.concatenate([base.train_x, data.train_x[members.reshape(-1)]]),
        train_y=np.concatenate([base.train_y, labels]),
        planner=_planner(name, base.subsets, steps, draws),
        held=rows if len(held) else None,
        pretraining=how,
        manifest=manifest,
        checksum=checksum(base.checksum, manifest, *told_apart),
    )
    return sealed(stream) if told(base) else stream


def _without_held(
    data: ImageData, members: np.ndarray, learned: Iterable[int], held_share: float
) -> ImageData:
    """The data without held training examples.

    Args:
      members: [H, n] their rows. learned: held classes that a task learns too.
    """
    taken = np.zeros(len(data.train_y), bool)
    taken[members] = True
    for c in sorted(learned):
        if taken[data.train_y == c].all():
            raise UserError(
                f"held_share is {held_share}, but of class {c}, which a task learns, no training "
                "example would be left to it; choose a smaller share."
            )
    free = data._replace(train_x=data.train_x[~taken], train_y=data.train_y[~taken])
    return free.frozen() if data.fixed else free


def pooled(data: ImageData, pool: int) -> ImageData:
    """Images whose pixels are means over squares of ``pool`` by ``pool``, rounded to grey levels.

    Raises:
      UserError: if ``pool`` is below 1 or does not divide height and width.
    """
    check_positive(pool=pool)
    if pool == 1:
        return data

    def mean(x: np.ndarray) -> np.ndarray:
        height, width = x.shape[1:3]
        if height % pool or width % pool:
            raise UserError(
                f"pool is {pool}, but images of {data.source} have {height} x {width} pixels, "
                "which it does not divide."
            )
        squares = x.reshape(len(x), height // pool, pool, width // pool, pool, -1)
        total = squares.sum((2, 4), np.uint32)
        return ((total + pool**2 // 2) // pool**2).astype(np.uint8)  # halves up

    small = data._replace(train_x=mean(data.train_x), test_x=mean(data.test_x))
    return small.frozen() if data.fixed else small


def joined(first: ImageData, second: ImageData, shift: int) -> ImageData:
    """Two data sets as one; the classes of ``second`` are numbered from ``shift`` on.

    Raises:
      UserError: if their images differ in shape, or the classes meet.
    """
    if first.train_x.shape[1:] != second.train_x.shape[1:]:
        raise UserError(
            f"Images of {first.source} have shape {list(first.train_x.shape[1:])} and those of "
            f"{second.source} {list(second.train_x.shape[1:])}, but one stream needs one shape."
        )
    if max(first.train_y.max(), first.test_y.max()) >= shift:
        raise UserError(
            f"The classes of {second.source} are to start at {shift}, but {first.source} has "
            f"classes up to {max(first.train_y.max(), first.test_y.max())}."
        )
    shifted = (second.train_x, second.train_y + shift, second.test_x, second.test_y + shift)
    parts = zip(first[:4], shifted, strict=True)
    marks = dict.fromkeys(mark_of(part) for part in (first, second))
    both = ImageData(
        *(np.concatenate(pair) for pair in parts),
        source=f"{first.source} and {second.source}",
        licence="; ".join(dict.fromkeys([first.licence, second.licence])),
        checksum=checksum(first.checksum, {}, second.checksum, shift),
        mark=",".join(mark for mark in marks if mark),
    )
    return both.frozen() if first.fixed and second.fixed else both


def _held_rows(data: ImageData, held: Sequence[int], share: float) -> np.ndarray:
    """[H, n]: the first n training examples of each held class, as many of each."""
    if len(set(held)) < len(held):
        raise UserError(f"The held classes {list(held)} name a class twice.")
    members = [np.flatnonzero(data.train_y == c).astype(np.int32) for c in held]
    least = min((len(rows) for rows in members), default=0)
    if held and int(share * least) < 1:
        scarce = list(held)[[len(rows) for rows in members].index(least)]
        raise UserError(
            f"{data.source} has {least} training images of class {scarce}, too few to hold out a "
            f"share of {share}."
        )
    num = int(share * least)
    return np.array([rows[:num] for rows in members], np.int32).reshape(len(held), num)


def _planner(
    name: str, subsets: Callable[[int], tuple[np.ndarray, ...]], steps: int, draws: str
) -> Callable[[int, int, int], StepPlan]:
    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        first, *new = subsets(seed)
        parts = [_passes(first, 0, name, seed, batch_size, epochs)]
        for task, rows in enumerate(new, start=1):
            if draws == "iid":
                parts.append(_drawn(rows, task, name, seed, batch_size, steps))
            else:
                needed = -(-steps // -(-len(rows) // batch_size))
                part = _passes(rows, task, name, seed, batch_size, needed)
                parts.append(StepPlan(*(column[:steps] for column in part)))
        for part in parts:
            part.last[-1] = True
        return _concatenated(parts)

    return planner


def _passes(
    rows: np.ndarray, task: int, name: str, seed: int, batch_size: int, count: int
) -> StepPlan:
    """``count`` passes over a task's rows, the first in their order, later ones shuffled."""
    parts = []
    for epoch in range(count):
        shuffled = permutation(len(rows), name, "order", seed, task, epoch)
        order = rows[shuffled] if epoch else rows
        tasks = np.full(len(order), task, np.int32)
        parts.append(batches(order, tasks, batch_size, current=task, epoch=epoch))
    return _concatenated(parts)


def _drawn(
    rows: np.ndarray, task: int, name: str, seed: int, batch_size: int, steps: int
) -> StepPlan:
    """``steps`` batches drawn with replacement; an epoch is as many draws as there are rows."""
    shape = (steps, batch_size)
    places = uniform(steps * batch_size, name, "draw", seed, task) * len(rows)
    epoch = (np.arange(steps) * batch_size // len(rows)).astype(np.int32)
    return StepPlan(
        rows[places.astype(np.int64)].reshape(shape),
        np.full(shape, task, np.int32),
        np.ones(shape, bool),
        np.full(steps, task, np.int32),
        epoch,
        epoch == 0,
        np.zeros(steps, bool),
    )


def _concatenated(parts: Sequence[StepPlan]) -> StepPlan:
    return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))
