"""Split streams: each task brings classes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import jax
import numpy as np

from cljax.data import ImageData, marked
from cljax.errors import UserError, check_known, check_positive
from cljax.identity.content import content
from cljax.streams import transforms
from cljax.streams.base import Stream, Transform, checksum, sealed
from cljax.streams.classes import ClassOrder, check_options, class_groups, name_of
from cljax.streams.manifests import with_split
from cljax.streams.mnist import mnist_data
from cljax.streams.orders import permutation
from cljax.streams.transforms import normalised

__all__ = ["mnist_b5_5", "split_by_class", "split_mnist"]

_MEAN, _DEVIATION = (0.1307,), (0.3081,)  # of MNIST's training images
Pixels: TypeAlias = Literal["unit", "normalised"]


def split_mnist(
    data: ImageData | None = None,
    *,
    num_tasks: int = 5,
    samples_per_task: int | None = None,
    multi_head: bool = False,
    pixels: Pixels = "unit",
    stream_manifest: str | None = None,
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """The ten digits in order, two to a task: 0 and 1, then 2 and 3, ... (Zenke et al. 2017).

    Images reach the network as [28, 28, 1].

    Args:
      data: images to use instead of those found by name.
      num_tasks: T: 1, 2, 5 or 10, with 10 / T digits each.
      samples_per_task: training images of each task; by default all but the validation images,
        one in ten of each digit.
      multi_head: tell losses and predictions the task, so that each competes over its own digits
        (task-incremental) instead of all ten (class-incremental).
      pixels: unit is 0 to 1; normalised has mean 0 and deviation 1 over the training images, as
        iTAML's code has it.
      stream_manifest: .npz file of training and validation images of each seed and task, as every
        run leaves it in manifest/stream.npz.
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.

    Raises:
      UserError: for counts out of range or missing data.

    Example:
        >>> import cljax
        >>> stream = cljax.streams.split_mnist(sample=True, samples_per_task=100)
        >>> stream.name, stream.num_tasks, [len(rows) for rows in stream.subsets(seed=0)]
        ('split-mnist[sample]', 5, [100, 100, 100, 100, 100])
    """
    check_positive(num_tasks=num_tasks)
    if 10 % num_tasks:
        raise UserError(f"num_tasks is {num_tasks}, but ten digits split into 1, 2, 5 or 10 tasks.")
    transform = _mnist_transform(pixels)
    check_options(
        samples_per_task=samples_per_task, multi_head=multi_head, sample=sample,
        stream_manifest=stream_manifest, data_dir=data_dir,
    )  # fmt: skip
    data, whole = mnist_data(data, data_dir, sample)
    groups = np.arange(10).reshape(num_tasks, -1).tolist()
    return split_by_class(
        "split-mnist", data, groups, samples_per_task=samples_per_task, multi_head=multi_head,
        published=whole and num_tasks == 5 and samples_per_task is None, transform=transform,
        stream_manifest=stream_manifest,
    )  # fmt: skip


def mnist_b5_5(
    data: ImageData | None = None,
    *,
    base: int = 5,
    classes_per_task: int = 1,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_class: int | None = None,
    multi_head: bool = False,
    pixels: Pixels = "unit",
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """Five digits, then the other five one at a time.

    Images reach the network as [28, 28, 1].

    Args:
      data: images to use instead of those found by name.
      base: digits of the first task.
      classes_per_task: digits of each later task; the last has fewer where they do not divide.
      class_order: natural, by number; seeded, in an order that --class-seed chooses; 1993, the
        shuffle of mnemonics' code; or a FILE.json of your own. Outputs are numbered in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_class: training images of each digit; by default all but the validation images,
        one in ten of each digit.
      multi_head: tell losses and predictions the task, so that each competes over its own digits
        (task-incremental) instead of all ten (class-incremental).
      pixels: unit is 0 to 1; normalised has mean 0 and deviation 1 over the training images.
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.

    Raises:
      UserError: for counts out of range, an unknown order or missing data.
    """
    transform = _mnist_transform(pixels)
    check_positive(base=base, classes_per_task=classes_per_task)
    check_options(
        class_seed=class_seed, samples_per_class=samples_per_class, multi_head=multi_head,
        sample=sample, data_dir=data_dir,
    )  # fmt: skip
    groups = class_groups(10, classes_per_task, base=base, order=class_order, seed=class_seed)
    data, _ = mnist_data(data, data_dir, sample)
    return split_by_class(
        name_of("mnist", groups, classes_per_task, base), data, groups,
        samples_per_class=samples_per_class, multi_head=multi_head, renumber=True,
        transform=transform,
    )  # fmt: skip


def split_by_class(
    name: str,
    data: ImageData,
    groups: Sequence[Sequence[int]],
    *,
    samples_per_task: int | None = None,
    samples_per_class: int | None = None,
    multi_head: bool = False,
    hold_out: float = 0.1,
    renumber: bool = False,
    order: Callable[[int], Sequence[int] | np.ndarray] | None = None,
    transform: Transform = transforms.pixels,
    published: bool = False,
    stream_manifest: str | None = None,
) -> Stream:
    """A stream whose task t has the classes ``groups[t]``; tasks may differ in size.

    Args:
      groups: disjoint lists of classes; outputs are numbered by label.
      samples_per_task: training images of each task, drawn anew for each seed; None for all.
      samples_per_class: of each class instead, for tasks that differ in size.
      hold_out: share of each class's training images, drawn anew for each seed, that validates.
      renumber: number outputs by place in ``groups`` instead, so that each task's follow those
        of the one before, and leave out images of other classes. The manifest's ``class_order``
        holds the original classes.
      order: seed -> its order of the classes, all of them or the first few, in which ``groups``
        are then places, and outputs are numbered by it. None: all seeds share the classes.
      transform: what the network sees of the stored images.
      published: whether published numbers apply.
      stream_manifest: .npz file whose rows replace those drawn; see ``with_split``.

    Raises:
      UserError: if a class is in no image or in two tasks, a count or share is out of range, or
        recorded rows meet an order for each seed.
    """
    if order is not None and stream_manifest is not None:
        raise UserError(
            f"The stream manifest {stream_manifest} records rows of one class order, but {name} "
            "has an order for each seed; choose a class order that all seeds share."
        )
    check_options(
        samples_per_task=samples_per_task, samples_per_class=samples_per_class, val=hold_out,
        multi_head=multi_head, stream_manifest=stream_manifest,
    )  # fmt: skip
    if hold_out == 1:
        raise UserError(
            f"The validation share is {hold_out}, but it must be a share from 0 to below 1."
        )
    groups = [[int(c) for c in group] for group in groups]
    flat = [c for group in groups for c in group]
    if len(set(flat)) < len(flat) or not all(groups):
        raise UserError(f"Tasks {groups} must each have classes of their own.")
    data = _without_others(data, flat) if renumber and order is None else data
    known = flat if order is None else range(int(data.train_y.max()) + 1)
    members = {c: np.flatnonzero(data.train_y == c).astype(np.int32) for c in known}
    tests = {c: np.flatnonzero(data.test_y == c).astype(np.int32) for c in known}
    absent = [c for c in known if not len(members[c]) or not len(tests[c])]
    if absent:
        raise UserError(f"{data.source} has no training or no test images of class {absent[0]}.")
    held = {c: int(len(rows) * hold_out) for c, rows in members.items()}
    free = {c: len(rows) - held[c] for c, rows in members.items()}
    if samples_per_task is not None and samples_per_class is not None:
        raise UserError(
            f"samples_per_task is {samples_per_task} and samples_per_class is "
            f"{samples_per_class}, but only one of them can be given."
        )
    fewest = min(free.values())
    tasks = [sum(fewest if order else free[c] for c in group) for group in groups]
    _check_samples("task", samples_per_task, min(tasks), name)
    _check_samples("class", samples_per_class, fewest, name)

    def groups_of(seed: int) -> list[list[int]]:
        if order is None:
            return groups
        ordered = order(seed)
        return [[int(ordered[place]) for place in group] for group in groups]

    def shuffled(seed: int, c: int) -> np.ndarray:
        return members[c][permutation(len(members[c]), name, "valid", seed, c)]

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        parts = []
        for task, group in enumerate(groups_of(seed)):
            kept = [shuffled(seed, c)[held[c] :][:samples_per_class] for c in group]
            rows = np.concatenate([np.sort(own) for own in kept])
            order = permutation(len(rows), name, "subset", seed, task, take=samples_per_task)
            parts.append(rows[order])
        return tuple(parts)

    def valid(seed: int) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate([shuffled(seed, c)[: held[c]] for c in group])
            for group in groups_of(seed)
        )

    def class_orders(seed: int) -> np.ndarray:
        outputs = np.full(len(members), -1, np.int32)
        for task, group in enumerate(groups_of(seed)):
            outputs[group] = groups[task]
        return outputs

    outputs = np.arange(max(flat) + 1, dtype=np.int32)  # by class
    if renumber and order is None:
        outputs[flat] = np.arange(len(flat))
        renumbered = data._replace(train_y=outputs[data.train_y], test_y=outputs[data.test_y])
        data = renumbered.frozen() if data.fixed else renumbered
    class_mask = np.zeros((len(groups), len(flat) if renumber else len(outputs)), bool)
    for task, group in enumerate(groups):
        class_mask[task, outputs[group]] = True
    more = ["renumbered"] * renumber + [transform.name] * bool(transform.name)
    if samples_per_class is not None:
        more.append(f"{samples_per_class} of each class")
    if transform.augment is not None:
        more.append(transform.augment.name)
    if order is not None:
        more.append("an order for each seed")
    test_index = () if order else tuple(np.concatenate([tests[c] for c in g]) for g in groups)
    stream = Stream(
        name=marked(name, data),
        train_x=data.train_x,
        train_y=data.train_y,
        test_x=data.test_x,
        test_y=data.test_y,
        transform=transform,
        class_mask=class_mask,
        test_index=test_index,
        subsets=subsets,
        valid=valid,
        multi_head=multi_head,
        scenario="task" if multi_head else "class",
        class_orders=class_orders if order else None,
        manifest={} if order else {"class_order": np.array(flat, np.int32)},
        source=data.source,
        licence=data.licence,
        checksum=checksum(
            data.checksum, {}, name, groups, samples_per_task, multi_head, hold_out, *more
        ),
        published=published,
    )
    named = not jax.tree.leaves(transform.tables) and not content((transform, order)).own
    if data.fixed and named:  # else the checksum tells less than the stream is
        stream = sealed(stream)
    return stream if stream_manifest is None else with_split(stream, stream_manifest)


def _mnist_transform(pixels: str) -> Transform:
    check_known("pixels", pixels, get_args(Pixels))
    return transforms.pixels if pixels == "unit" else normalised(_MEAN, _DEVIATION)


def _check_samples(part: str, asked: int | None, there: int, name: str) -> None:
    if asked is None:
        return
    if asked > there:
        raise UserError(
            f"samples_per_{part} is {asked}, but a {part} of {name} has only {there} training "
            "images beside its validation images."
        )


def _without_others(data: ImageData, classes: Sequence[int]) -> ImageData:
    """Only the images of ``classes``; the same arrays where that is all of them."""
    train, test = (np.isin(y, classes) for y in (data.train_y, data.test_y))
    if train.all() and test.all():
        return data
    kept = data._replace(
        train_x=data.train_x[train],
        train_y=data.train_y[train],
        test_x=data.test_x[test],
        test_y=data.test_y[test],
    )
    return kept.frozen() if data.fixed else kept
