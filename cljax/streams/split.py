"""Split streams: each task brings classes of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cljax.data import ImageData
from cljax.errors import UserError, check_positive
from cljax.streams.base import Stream, checksum
from cljax.streams.mnist import mnist_data
from cljax.streams.orders import permutation
from cljax.streams.transforms import pixels

__all__ = ["split_by_class", "split_mnist"]


def split_mnist(
    data: ImageData | None = None,
    *,
    num_tasks: int = 5,
    samples_per_task: int | None = None,
    multi_head: bool = False,
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """The ten digits in order, two to a task: 0 and 1, then 2 and 3, ... (Zenke et al. 2017).

    Images reach the network as [28, 28, 1] in [0, 1].

    Args:
      data: images to use instead of those found by name.
      num_tasks: T: 1, 2, 5 or 10, with 10 / T digits each.
      samples_per_task: training images of each task; by default all but the validation images,
        one in ten of each digit.
      multi_head: tell losses and predictions the task, so that each competes over its own digits
        (task-incremental) instead of all ten (class-incremental).
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.

    Raises:
      UserError: for counts out of range or missing data.
    """
    check_positive(num_tasks=num_tasks)
    if 10 % num_tasks:
        raise UserError(f"num_tasks is {num_tasks}, but ten digits split into 1, 2, 5 or 10 tasks.")
    data, whole = mnist_data(data, data_dir, sample)
    groups = np.arange(10).reshape(num_tasks, -1).tolist()
    return split_by_class(
        "split-mnist", data, groups, samples_per_task=samples_per_task, multi_head=multi_head,
        published=whole and num_tasks == 5 and samples_per_task is None,
    )  # fmt: skip


def split_by_class(
    name: str,
    data: ImageData,
    groups: Sequence[Sequence[int]],
    *,
    samples_per_task: int | None = None,
    multi_head: bool = False,
    hold_out: float = 0.1,
    published: bool = False,
) -> Stream:
    """A stream whose task t has the classes ``groups[t]``.

    Args:
      groups: disjoint lists of classes; outputs are numbered by label.
      samples_per_task: training images of each task, drawn anew for each seed; None for all.
      hold_out: share of each class's training images, drawn anew for each seed, that validates.

    Raises:
      UserError: if a class is in no image or in two tasks, or ``samples_per_task`` is out of range.
    """
    groups = [[int(c) for c in group] for group in groups]
    flat = [c for group in groups for c in group]
    if len(set(flat)) < len(flat) or not all(groups):
        raise UserError(f"Tasks {groups} must each have classes of their own.")
    members = {c: np.flatnonzero(data.train_y == c).astype(np.int32) for c in flat}
    tests = {c: np.flatnonzero(data.test_y == c).astype(np.int32) for c in flat}
    absent = [c for c in flat if not len(members[c]) or not len(tests[c])]
    if absent:
        raise UserError(f"{data.source} has no training or no test images of class {absent[0]}.")
    held = {c: int(len(rows) * hold_out) for c, rows in members.items()}
    sizes = [sum(len(members[c]) - held[c] for c in group) for group in groups]
    if samples_per_task is not None:
        check_positive(samples_per_task=samples_per_task)
        if samples_per_task > min(sizes):
            raise UserError(
                f"samples_per_task is {samples_per_task}, but a task of {name} has only "
                f"{min(sizes)} training images beside its validation images."
            )

    def shuffled(seed: int, c: int) -> np.ndarray:
        return members[c][permutation(len(members[c]), name, "valid", seed, c)]

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        parts = []
        for task, group in enumerate(groups):
            rows = np.concatenate([np.sort(shuffled(seed, c)[held[c] :]) for c in group])
            order = permutation(len(rows), name, "subset", seed, task, take=samples_per_task)
            parts.append(rows[order])
        return tuple(parts)

    def valid(seed: int) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate([shuffled(seed, c)[: held[c]] for c in group]) for group in groups
        )

    num_classes = max(flat) + 1
    class_mask = np.zeros((len(groups), num_classes), bool)
    for task, group in enumerate(groups):
        class_mask[task, group] = True
    return Stream(
        name=f"{name}[sample]" if data.sample else name,
        train_x=data.train_x,
        train_y=data.train_y,
        test_x=data.test_x,
        test_y=data.test_y,
        transform=pixels,
        class_mask=class_mask,
        test_index=tuple(np.concatenate([tests[c] for c in group]) for group in groups),
        subsets=subsets,
        valid=valid,
        multi_head=multi_head,
        scenario="task" if multi_head else "class",
        manifest={"class_order": np.array(flat, np.int32)},
        source=data.source,
        licence=data.licence,
        checksum=checksum(data.checksum, {}, name, groups, samples_per_task, multi_head, hold_out),
        published=published,
    )
