"""Split streams: each task brings classes of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from cljax.data import ImageData, marked
from cljax.errors import UserError
from cljax.identity.content import content
from cljax.streams import transforms
from cljax.streams.base import Rows, Stream, Transform, checksum, sealed
from cljax.streams.options import SplitOptions
from cljax.streams.orders import permutation

__all__ = ["split_by_class"]


def split_by_class(
    name: str,
    data: ImageData,
    groups: Sequence[Sequence[int]],
    options: SplitOptions = SplitOptions(),  # noqa: B008, it is immutable
    *,
    renumber: bool = False,
    order: Callable[[int], Sequence[int] | np.ndarray] | None = None,
    transform: Transform = transforms.pixels,
) -> Stream:
    """A stream whose task t has the classes ``groups[t]``; tasks may differ in size.

    Args:
      groups: disjoint lists of classes; outputs are numbered by label.
      options: how many examples learn and validate, drawn anew for each seed, and the heads.
      renumber: number outputs by place in ``groups`` instead, so that each task's follow those
        of the one before, and leave out images of other classes. The manifest's ``class_order``
        holds the original classes.
      order: seed -> its order of the classes, all of them or the first few, in which ``groups``
        are then places, and outputs are numbered by it. None: all seeds share the classes.
      transform: what the network sees of the stored images.

    Raises:
      UserError: if a class is in no image or in two tasks, or a count is out of range.
    """
    groups = [[int(c) for c in group] for group in groups]
    flat = [c for group in groups for c in group]
    if len(set(flat)) < len(flat) or not all(groups):
        raise UserError(f"Tasks {groups} must each have classes of their own.")
    data = _without_others(data, flat) if renumber and order is None else data
    known = flat if order is None else range(int(data.train_y.max()) + 1)
    examples = _examples(data, known, options.val)
    _check_samples(name, groups, examples, options, alike=order is not None)
    outputs = np.arange(max(flat) + 1, dtype=np.int32)  # by class
    if renumber and order is None:
        outputs[flat] = np.arange(len(flat))
        renumbered = data._replace(train_y=outputs[data.train_y], test_y=outputs[data.test_y])
        data = renumbered.frozen() if data.fixed else renumbered
    class_mask = np.zeros((len(groups), len(flat) if renumber else len(outputs)), bool)
    for task, group in enumerate(groups):
        class_mask[task, outputs[group]] = True
    groups_of = _groups_of(groups, order)
    tests = [np.concatenate([examples.test[c] for c in g]) for g in ([] if order else groups)]
    stream = Stream(
        name=marked(name, data),
        train_x=data.train_x,
        train_y=data.train_y,
        test_x=data.test_x,
        test_y=data.test_y,
        transform=transform,
        class_mask=class_mask,
        test_index=tuple(tests),
        subsets=_subsets(name, examples, groups_of, options),
        valid=_valid(name, examples, groups_of),
        multi_head=options.multi_head,
        scenario="task" if options.multi_head else "class",
        class_orders=_class_orders(groups, groups_of, len(examples.train)) if order else None,
        manifest={} if order else {"class_order": np.array(flat, np.int32)},
        source=data.source,
        licence=data.licence,
        checksum=_checksum(name, data, groups, options, renumber, order is not None, transform),
        published=False,
    )
    named = not jax.tree.leaves(transform.tables) and not content((transform, order)).own
    return sealed(stream) if data.fixed and named else stream  # else the checksum tells too little


class _Examples(NamedTuple):
    """Rows of each class, and how many of its training rows validate."""

    train: Mapping[int, np.ndarray]
    test: Mapping[int, np.ndarray]
    held: Mapping[int, int]


def _examples(data: ImageData, classes: Sequence[int], val: float) -> _Examples:
    train = {c: np.flatnonzero(data.train_y == c).astype(np.int32) for c in classes}
    test = {c: np.flatnonzero(data.test_y == c).astype(np.int32) for c in classes}
    absent = [c for c in classes if not len(train[c]) or not len(test[c])]
    if absent:
        raise UserError(f"{data.source} has no training or no test images of class {absent[0]}.")
    return _Examples(train, test, {c: int(len(rows) * val) for c, rows in train.items()})


def _check_samples(
    name: str,
    groups: Sequence[Sequence[int]],
    examples: _Examples,
    options: SplitOptions,
    alike: bool,
) -> None:
    """Raises UserError where a task or class has fewer examples than are asked for.

    Args:
      alike: ``groups`` are places, which any class may take.
    """
    free = {c: len(rows) - examples.held[c] for c, rows in examples.train.items()}
    fewest = min(free.values())
    least = min(sum(fewest if alike else free[c] for c in group) for group in groups)
    for part, count, there in (
        ("task", options.samples_per_task, least),
        ("class", options.samples_per_class, fewest),
    ):
        if count is not None and count > there:
            raise UserError(
                f"samples_per_{part} is {count}, but a {part} of {name} has only {there} training "
                "images beside its validation images."
            )


_Groups = Callable[[int], Sequence[Sequence[int]]]  # seed -> the classes of each task


def _groups_of(
    groups: Sequence[Sequence[int]],
    order: Callable[[int], Sequence[int] | np.ndarray] | None,
) -> _Groups:
    def groups_of(seed: int) -> Sequence[Sequence[int]]:
        if order is None:
            return groups
        ordered = order(seed)
        return [[int(ordered[place]) for place in group] for group in groups]

    return groups_of


def _shuffled(name: str, examples: _Examples, seed: int, c: int) -> np.ndarray:
    """The training rows of a class, of which the first ones validate."""
    rows = examples.train[c]
    return rows[permutation(len(rows), name, "valid", seed, c)]


def _subsets(name: str, examples: _Examples, groups_of: _Groups, options: SplitOptions) -> Rows:
    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        parts = []
        for task, group in enumerate(groups_of(seed)):
            learned = [
                _shuffled(name, examples, seed, c)[examples.held[c] :][: options.samples_per_class]
                for c in group
            ]
            rows = np.concatenate([np.sort(part) for part in learned])
            take = options.samples_per_task
            parts.append(rows[permutation(len(rows), name, "subset", seed, task, take=take)])
        return tuple(parts)

    return subsets


def _valid(name: str, examples: _Examples, groups_of: _Groups) -> Rows:
    def valid(seed: int) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate([_shuffled(name, examples, seed, c)[: examples.held[c]] for c in group])
            for group in groups_of(seed)
        )

    return valid


def _class_orders(
    groups: Sequence[Sequence[int]], groups_of: _Groups, num_labels: int
) -> Callable[[int], np.ndarray]:
    """Seed -> [labels] the output of each; see ``Stream.class_orders``."""

    def class_orders(seed: int) -> np.ndarray:
        outputs = np.full(num_labels, -1, np.int32)
        for places, group in zip(groups, groups_of(seed), strict=True):
            outputs[group] = places
        return outputs

    return class_orders


def _checksum(
    name: str,
    data: ImageData,
    groups: Sequence[Sequence[int]],
    options: SplitOptions,
    renumber: bool,
    by_seed: bool,
    transform: Transform,
) -> str:
    more = ["renumbered"] * renumber + [transform.name] * bool(transform.name)
    if options.samples_per_class is not None:
        more.append(f"{options.samples_per_class} of each class")
    if transform.augment is not None:
        more.append(transform.augment.name)
    if by_seed:
        more.append("an order for each seed")
    split = (options.samples_per_task, options.multi_head, options.val)
    return checksum(data.checksum, {}, name, groups, *split, *more)


def _without_others(data: ImageData, classes: Sequence[int]) -> ImageData:
    """Only the images of ``classes``; the same arrays where that is all of them."""
    train, test = (np.isin(y, classes) for y in (data.train_y, data.test_y))
    if train.all() and test.all():
        return data
    chosen = data._replace(
        train_x=data.train_x[train],
        train_y=data.train_y[train],
        test_x=data.test_x[test],
        test_y=data.test_y[test],
    )
    return chosen.frozen() if data.fixed else chosen
