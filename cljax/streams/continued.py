"""Going on: tasks that were learned, and more of them after those, as one stream.

    continued(A, B):   tasks 0 .. k - 1 are those of A,  k .. k + n - 1 those of B

Examples of both lie in one array, A's first, and once where both are of the same. Outputs keep
their numbers: a label of B that A has, too, is the same output. Where both say what their classes
are called, names tell which are the same, and other classes of B are numbered after those of A. So
a run that goes on with B is one on this stream that begins with its task k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_positive
from cljax.streams.base import (
    Rows,
    Stream,
    Transform,
    check_stream,
    checksum,
    derived,
    encoder_of,
    plan,
    sealed,
    told,
)
from cljax.types import Array, PyTree, StepPlan

__all__ = ["continued", "later_tasks"]


def later_tasks(stream: Stream, first: int) -> Stream:
    """The stream's tasks from number ``first`` on alone: the counterpart of ``first_tasks``.

    Raises:
      UserError: if there are none, or the stream has a plan of its own.
    """
    check_stream(stream)
    check_positive(first=first)
    if first >= stream.num_tasks or stream.planner is not None:
        raise UserError(
            f"The stream {stream.name} has no tasks from number {first} on apart; it has "
            f"{stream.num_tasks} tasks" + (" and a plan of its own." if stream.planner else ".")
        )
    subsets, valid = stream.subsets, stream.valid
    tables = jax.tree.map(lambda table: table[first:], stream.transform.tables)
    return derived(
        stream,
        "later tasks",
        first,
        name=f"{stream.name}[from task {first}]",
        transform=stream.transform._replace(tables=tables),
        class_mask=stream.class_mask[first:],
        test_index=stream.test_index[first:],
        subsets=lambda seed: subsets(seed)[first:],
        valid=lambda seed: valid(seed)[first:],
        published=False,
    )


def continued(learned: Stream, more: Stream) -> Stream:
    """The tasks of ``learned``, then those of ``more``, as one stream.

    Training images are augmented as those of ``more``. Methods that learn from examples held out,
    or pretrain, have those of ``learned``.

    Raises:
      UserError: for streams whose examples, outputs, or ways to be learned do not go together.
    """
    check_stream(more)
    more = _by_name(learned, more)
    _check(learned, more)
    tasks, classes = learned.num_tasks, more.num_classes
    (train_x, train_y), shift = _together(learned, more, "train")
    (test_x, test_y), test_shift = _together(learned, more, "test")
    wide = np.pad(learned.class_mask, ((0, 0), (0, classes - learned.num_classes)))
    planned = learned.planner is not None or more.planner is not None
    manifest = {f"before_{name}": array for name, array in learned.manifest.items()}
    held = learned.held
    if held is None and more.held is not None:
        held = more.held + shift
    made = Stream(
        name=f"{learned.name}+{more.name}",
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        transform=_transforms(learned, more),
        class_mask=np.concatenate([wide, more.class_mask]),
        test_index=(*learned.test_index, *_shifted(more.test_index, test_shift)),
        subsets=_both(learned.subsets, more.subsets, shift),
        valid=_both(learned.valid, more.valid, shift),
        multi_head=more.multi_head,
        scenario=more.scenario,
        planner=_planned(learned, more, tasks, shift) if planned else None,
        held=held,
        class_orders=more.class_orders,
        pretraining=learned.pretraining,
        objective=more.objective,
        manifest={**manifest, **more.manifest},
        source=_one(learned, more, "source"),
        licence=_one(learned, more, "licence"),
        checksum=checksum(learned.checksum, {}, "goes on with", more.checksum),
        published=False,
    )
    return sealed(made) if told(learned) and told(more) else made


def _check(learned: Stream, more: Stream) -> None:
    a, b = learned.name, more.name
    kind = lambda s: [(x.shape[1:], x.dtype) for x in (s.train_x, s.test_x)]
    shapes = lambda s: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s.example)
    targets = lambda s: "labels" if s.labelled else f"floats{list(s.train_y.shape[1:])}"
    if targets(learned) != targets(more):
        raise UserError(
            f"The run learned {a}, whose targets are {targets(learned)}, but those of {b} are "
            f"{targets(more)}; go on with a stream of the same kind."
        )
    if kind(learned) != kind(more) or shapes(learned) != shapes(more):
        raise UserError(
            f"The run learned {a}, whose examples have another shape or type than those of {b}; go "
            "on with a stream of the same kind."
        )
    if more.num_classes < learned.num_classes:
        raise UserError(
            f"The run learned {learned.num_classes} classes, but {b} has {more.num_classes}, which "
            "would be another head; number its classes by the run's outputs, and new ones after "
            f"those (num_classes={learned.num_classes} or more)."
        )
    if not (learned.boundaries and more.boundaries):
        without = b if learned.boundaries else a
        raise UserError(f"{without} has no task boundaries, and a run goes on from task to task.")
    differs = {
        "a head for each task": learned.multi_head != more.multi_head,
        "another scenario": learned.scenario != more.scenario,
        "features of another network": encoder_of(learned) != encoder_of(more),
        "another order of classes for each seed": learned.class_orders is not more.class_orders,
    }
    for what in (what for what, true in differs.items() if true):
        raise UserError(
            f"One of {a} and {b} has {what}, so neither goes on with the other; choose streams of "
            "one kind."
        )


def _by_name(learned: Stream, more: Stream) -> Stream:
    """``more`` with its classes as the outputs that have their names, new ones after those.

    The stream itself unless both say what all their classes are called.
    """
    names = [list(s.manifest.get("class_names", ())) for s in (learned, more)]
    if any(len(own) != s.num_classes for own, s in zip(names, (learned, more), strict=True)):
        return more
    listed = [*names[0], *(name for name in names[1] if name not in names[0])]
    if listed == names[1]:
        return more
    if more.objective.weights is not None:
        raise UserError(
            f"{more.name} has weights of its {more.num_classes} classes, which are renumbered here "
            f"by their names; leave them out, or give weights of all {len(listed)} to the run."
        )
    outputs = np.array([listed.index(name) for name in names[1]], np.int32)
    class_mask = np.zeros((more.num_tasks, len(listed)), bool)
    class_mask[:, outputs] = more.class_mask
    return derived(
        more,
        "outputs by name",
        listed,
        train_y=outputs[more.train_y],
        test_y=outputs[more.test_y],
        class_mask=class_mask,
        manifest={**more.manifest, "class_names": np.array(listed)},
    )


def _one(learned: Stream, more: Stream, name: str) -> str:
    a, b = getattr(learned, name), getattr(more, name)
    return a if a == b else f"{a}; {b}"


def _together(
    learned: Stream, more: Stream, part: str
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Examples and labels of both, and what to add to the rows of ``more``."""
    (x, y), (own_x, own_y) = (
        (getattr(s, f"{part}_x"), getattr(s, f"{part}_y")) for s in (learned, more)
    )
    same = lambda a, b: a is b or (a.shape == b.shape and np.array_equal(a, b))
    if same(y, own_y) and same(x, own_x):
        return (x, y), 0
    return (np.concatenate([x, own_x]), np.concatenate([y, own_y])), len(x)


def _shifted(index: Sequence[np.ndarray], shift: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(rows + shift, np.int32) for rows in index)


def _both(before: Rows, after: Rows, shift: int) -> Rows:
    return lambda seed: (*before(seed), *_shifted(after(seed), shift))


def _transforms(learned: Stream, more: Stream) -> Transform:
    """By the number of the task, the transform of one or of the other."""
    (tables, apply, _, name), (own, apply_own, augment, name_own) = (
        learned.transform, more.transform,
    )  # fmt: skip
    tasks = learned.num_tasks
    same = apply is apply_own or bool(name and name == name_own)
    if same and not jax.tree.leaves((tables, own)):
        return more.transform
    if same and jax.tree.structure(tables) == jax.tree.structure(own):
        # Of a part of a stream's tasks, the tables may still be of all of them.
        cut = lambda a, b: np.concatenate([a[:tasks], b[: more.num_tasks]])
        return more.transform._replace(tables=jax.tree.map(cut, tables, own))

    def either(tables: PyTree, x: Array, task: Array) -> Array:
        first = apply(tables[0], x, jnp.minimum(task, tasks - 1))
        second = apply_own(tables[1], x, jnp.maximum(task - tasks, 0))

        def choose(a: Array, b: Array) -> Array:
            return jnp.where((task < tasks).reshape(-1, *(1 for _ in a.shape[1:])), a, b)

        return jax.tree.map(choose, first, second)

    return Transform((tables, own), either, augment, f"{name} for {tasks} tasks, then {name_own}")


def _planned(
    learned: Stream, more: Stream, tasks: int, shift: int
) -> Callable[[int, int, int], StepPlan]:
    """The plans of both, one after the other."""

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        before, after = (plan(s, seed, batch_size, epochs) for s in (learned, more))
        after = after._replace(
            index=np.where(after.index >= 0, after.index + shift, after.index).astype(np.int32),
            task=(after.task + tasks).astype(np.int32),
            current=(after.current + tasks).astype(np.int32),
        )
        widths = [part.index.shape[1] for part in (before, after)]
        parts = [_widened(part, max(widths)) for part in (before, after)]
        return StepPlan(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    return planner


def _widened(steps: StepPlan, width: int) -> StepPlan:
    """Rows of a plan with padding up to a width: a real example, masked."""
    extra: Any = width - steps.index.shape[1]
    fill = lambda a: np.concatenate([a, np.repeat(a[:, :1], extra, axis=1)], axis=1)
    mask = np.pad(steps.mask, ((0, 0), (0, extra)))
    return steps._replace(index=fill(steps.index), task=fill(steps.task), mask=mask)
