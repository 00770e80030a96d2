"""A stream: one copy of the examples, and plans of which of them arrive when.

    plan(stream, seed, B, epochs):
        for task t:  for epoch e:
            order = subsets(seed)[t]           # later epochs: reshuffled
            cut into batches of B, the remainder padded and masked

Beside the plan lie the tests of each task, validation rows and the classes of each task. Streams
without boundaries are the same type with a ``planner`` of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.checks import check_memory, check_plan, shown
from cljax.errors import UserError, check_positive, in_words
from cljax.keys import check_seed
from cljax.options import Options
from cljax.streams.orders import permutation
from cljax.types import Array, Objective, Pretraining, PyTree, Spec, StepPlan

__all__ = [
    "DECISIVE",
    "ENCODER",
    "Augmentation",
    "Rows",
    "Stream",
    "Transform",
    "batches",
    "check_stream",
    "checksum",
    "derived",
    "encoder_of",
    "first_tasks",
    "labels_checksum",
    "manifest_checksum",
    "of_seed",
    "on_validation",
    "plan",
    "rows_used",
    "sealed",
    "targets_on_device",
    "told",
]

_BYTES_A_ROW = 9  # of a plan: two int32 and a bool
Rows = Callable[[int], tuple[np.ndarray, ...]]  # seed -> T arrays of rows

# What of a stream decides a run's results.
DECISIVE = (
    "train_x", "train_y", "test_x", "test_y", "transform", "class_mask", "test_index", "subsets",
    "valid", "multi_head", "boundaries", "scenario", "planner", "held", "class_orders",
    "pretraining",
)  # fmt: skip
ENCODER = "encoder_sha256"  # in the manifest of a stream of features: their network's
_SMALL = ("transform", "class_mask", "test_index", "held")  # arrays beside the examples


class Augmentation(NamedTuple):
    """Random changes of stored examples, drawn anew each time that one is learned from.

    ``draw(key, B) -> draws``, leaves ``[B, ...]``; ``apply(x [B, ...], draws) -> [B, ...]``.
    """

    draw: Callable[[Array, int], PyTree]
    apply: Callable[[Array, PyTree], Array]
    name: str = "custom"


class Transform(NamedTuple):
    """What the network sees of stored examples, task by task.

    ``apply(tables, x [B, ...], task [B]) -> [B, ...]`` is traced inside jit; ``tables`` are
    arrays indexed by task, ``()`` if there are none. In training ``augment`` comes before it.
    ``name`` tells it apart where neither tables nor the stream's name do.
    """

    tables: PyTree
    apply: Callable[[PyTree, Array, Array], Array]
    augment: Augmentation | None = None
    name: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """A sequence of T tasks over one copy of the examples.

    Attributes:
      name: such as ``mnist-rotations`` or ``mnist-rotations[sample]``.
      train_x: [N, ...], uint8 for images. train_y: [N] int32, global labels in [0, C), or
        float targets [N] or [N, K].
      test_x: [M, ...]. test_y: likewise, [M] or [M, K].
      transform: stored example -> what the network sees, by task.
      class_mask: [T, C] bool, the outputs that belong to each task.
      test_index: T arrays, the rows of ``test_x`` that test task t, seen as task t.
      subsets: seed -> T arrays, the rows of ``train_x`` that task t learns from, in order of
        arrival in the first epoch.
      valid: seed -> T arrays, validation rows of ``train_x``, disjoint from task t's subset
        (empty where the subsets leave nothing).
      multi_head: losses and predictions use only the outputs of the example's own task.
      boundaries: False for task-free streams, whose tasks only group tests.
      scenario: ``domain``, ``class`` or ``task``.
      planner: (seed, batch_size, epochs) -> plan; None for the default, task after task.
      held: [H, n] rows of ``train_x``, a row a class, that no task learns from: what methods that
        learn how to learn may practise on. None: nothing is held out for them.
      class_orders: seed -> [labels] int32, the output of each label in that seed's order of the
        classes, -1 for a class that it leaves out; None: labels are outputs. With orders
        ``test_index`` is (), and ``tests`` gives the rows of a seed.
      pretraining: how the first task is learned before any method begins, as transfer streams
        have it; None: the method learns it like the others.
      objective: what is minimised, and what tests are judged by; ``with_objective`` changes it.
      manifest: angles, permutations and recorded indices, as used.
      source, licence: of the examples.
      checksum: SHA-256 over examples, labels and manifest.
      covered: the very objects that the checksum is of, see ``sealed``; () for a stream of one's
        own, whose content a run reads anew.
      published: False where published numbers do not apply (samples, users' own streams).
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    transform: Transform
    class_mask: np.ndarray
    test_index: tuple[np.ndarray, ...]
    subsets: Rows
    valid: Rows
    multi_head: bool = False
    boundaries: bool = True
    scenario: str = "domain"
    planner: Callable[[int, int, int], StepPlan] | None = None
    held: np.ndarray | None = None
    class_orders: Callable[[int], np.ndarray] | None = None
    pretraining: Pretraining | None = None
    objective: Objective = Objective()
    manifest: Mapping[str, np.ndarray] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    checksum: str = ""
    covered: tuple[object, ...] = field(default=(), repr=False)
    published: bool = True

    def __repr__(self) -> str:
        kind, shape = self.train_x.dtype, list(self.train_x.shape[1:])
        outputs = "classes" if self.labelled else "outputs"
        return (
            f"Stream({self.name!r}, {self.num_tasks} tasks, {self.num_classes} {outputs}, "
            f"{len(self.train_x)} training and {len(self.test_x)} test examples of {kind}{shape})"
        )

    @property
    def num_tasks(self) -> int:
        """T, the rows of ``class_mask``."""
        return self.class_mask.shape[0]

    @property
    def num_classes(self) -> int:
        """C, the columns of ``class_mask``: outputs of the network."""
        return self.class_mask.shape[1]

    @property
    def labelled(self) -> bool:
        """Whether targets are labels of classes, not numbers to come close to."""
        return np.asarray(self.train_y).dtype.kind in "iu"

    @property
    def example(self) -> PyTree:
        """``jax.ShapeDtypeStruct`` of one example as the network sees it."""
        x = jax.ShapeDtypeStruct((1, *self.train_x.shape[1:]), self.train_x.dtype)
        task = jax.ShapeDtypeStruct((1,), np.int32)
        seen = shown(self.transform.apply, self.transform.tables, x, task, self.name)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), seen)

    def tests(self, seed: int) -> tuple[np.ndarray, ...]:
        """T arrays, the rows of ``test_x`` that test task t where the run has this seed."""
        if self.class_orders is None:
            return self.test_index
        outputs = self.class_orders(seed)[self.test_y]
        own = self.class_mask[:, outputs] & (outputs >= 0)
        return tuple(np.flatnonzero(task).astype(np.int32) for task in own)

    def told_by(self) -> dict[str, str] | None:
        """What tells this stream apart in an identity, where its checksum tells all of it."""
        return {"stream": self.checksum} if told(self) else None

    def spec(self, batch_size: int) -> Spec:
        """What a method may know of the stream before it sees it."""
        tables, apply, augment, _ = self.transform
        stored = jax.ShapeDtypeStruct(self.train_x.shape[1:], self.train_x.dtype)

        def show(x: Array, task: Array, key: Array | None = None) -> Array:
            if key is not None and augment is not None:
                x = augment.apply(x, augment.draw(key, x.shape[0]))
            return apply(jax.tree.map(jnp.asarray, tables), x, task)

        return Spec(
            self.example, self.class_mask, batch_size, self.multi_head, stored, show,
            None if self.class_orders else np.asarray(self.train_y), self.held, self.pretraining,
            self.objective, self._target,
        )  # fmt: skip

    @property
    def _target(self) -> Any:
        """``jax.ShapeDtypeStruct`` of one target as methods see it; None: a label."""
        shape = np.shape(self.train_y)[1:]
        return None if self.labelled else jax.ShapeDtypeStruct(shape, jnp.result_type(float))


def targets_on_device(y: np.ndarray) -> Array:
    """Labels as int32, or targets as floats of the default precision, on the device."""
    integers = np.asarray(y).dtype.kind in "iu"
    return jax.device_put(np.asarray(y, np.int32 if integers else jnp.result_type(float)))


def check_stream(stream: Any) -> None:
    """Raises UserError unless this is a ``Stream``, with what would make one of it."""
    if isinstance(stream, Stream):
        return
    more = ""
    if isinstance(stream, (tuple, list, dict)) or hasattr(stream, "shape"):
        more = "; cljax.streams.from_arrays makes one of arrays"
    elif isinstance(stream, Options) and hasattr(stream, "build"):
        more = f"; open it: {type(stream).__name__}(...).build()"
    elif callable(stream) and hasattr(stream, "__name__"):
        more = f"; call it: {stream.__name__}()"
    raise UserError(f"The stream is {in_words(stream)}, but it must be a Stream{more}.")


def plan(stream: Stream, seed: int, batch_size: int, epochs: int = 1) -> StepPlan:
    """Which examples each update sees, task after task.

    Args:
      seed: chooses subsets and orders, the same for every method.
      batch_size: B; where it does not divide a task's examples, the task's last batch is padded
        with its first example and masked.
      epochs: passes over each task's examples; the first in the subset's order, later ones
        reshuffled.

    Raises:
      UserError: if ``batch_size`` or ``epochs`` is below 1.
    """
    check_stream(stream)
    check_seed(seed)
    check_positive(batch_size=batch_size, epochs=epochs)
    subsets = stream.subsets(seed)
    padded = epochs * sum(-(-len(rows) // batch_size) * batch_size for rows in subsets)
    what = f"The plan of {epochs} epochs in batches of {batch_size}"
    check_memory(what, _BYTES_A_ROW * padded, "fewer epochs, or smaller batches")
    if stream.planner is not None:
        made = stream.planner(seed, batch_size, epochs)
        check_plan(made, stream.name)
        return made
    parts: list[StepPlan] = []
    for task, rows in enumerate(subsets):
        for epoch in range(epochs):
            if epoch:
                order = rows[permutation(len(rows), "order", seed, task, epoch)]
            else:
                order = rows
            tasks = np.full(len(order), task, np.int32)
            last = epoch == epochs - 1
            parts.append(batches(order, tasks, batch_size, current=task, epoch=epoch, last=last))
    return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def batches(
    rows: np.ndarray,
    tasks: np.ndarray,
    batch_size: int,
    *,
    current: int = 0,
    epoch: int = 0,
    last: bool = False,
) -> StepPlan:
    """Cuts examples, in order of arrival, into the updates of one epoch.

    Args:
      rows: [n] rows of the training arrays, n >= 1. tasks: [n] the task of each.
      current: the task being learned, 0 where there is none.
      last: whether the final batch ends the task.
    """
    num = -(-len(rows) // batch_size)
    padding = (0, num * batch_size - len(rows))
    shape = (num, batch_size)

    def padded(values: np.ndarray) -> np.ndarray:
        fill = values[0] if len(values) else 0  # a real example: its label fits its task
        return np.pad(values, padding, constant_values=fill).astype(np.int32).reshape(shape)

    mask = np.pad(np.ones(len(rows), bool), padding).reshape(shape)
    end = np.zeros(num, bool)
    end[-1:] = last
    return StepPlan(
        padded(rows),
        padded(tasks),
        mask,
        np.full(num, current, np.int32),
        np.full(num, epoch, np.int32),
        np.full(num, epoch == 0),
        end,
    )


def sealed(stream: Stream) -> Stream:
    """The stream whose checksum tells all of it, with arrays that can no longer be written.

    For streams that the library makes: a copy with anything replaced is told by its content again.
    Examples are made read-only as they are; of smaller arrays, which may be a caller's, a copy is.
    """
    for array in (stream.train_x, stream.train_y, stream.test_x, stream.test_y):
        array.flags.writeable = False
    small = {name: jax.tree.map(_kept, getattr(stream, name)) for name in _SMALL}
    stream = dataclasses.replace(stream, **small)
    return dataclasses.replace(stream, covered=tuple(getattr(stream, n) for n in DECISIVE))


def _kept(value: Any) -> Any:
    """A leaf that nobody else can write."""
    if not isinstance(value, np.ndarray) or not value.flags.writeable:
        return value
    value = value.copy()
    value.flags.writeable = False
    return value


def told(stream: Stream) -> bool:
    """Whether the checksum tells all that decides a run's results, as ``sealed`` left it."""
    own = tuple(getattr(stream, name) for name in DECISIVE)
    whole = len(stream.covered) == len(own)
    return whole and all(a is b for a, b in zip(stream.covered, own, strict=True))


def derived(stream: Stream, *more: object, **changes: Any) -> Stream:
    """The stream with changes that ``more`` tells, sealed if it was."""
    mark = checksum(stream.checksum, {}, *more)
    made = dataclasses.replace(stream, checksum=mark, **changes)
    return sealed(made) if told(stream) else made


def encoder_of(stream: Stream) -> str | None:
    """SHA-256 of the network whose features a stream's examples are; None: of none."""
    mark = stream.manifest.get(ENCODER)
    return None if mark is None else str(mark)


def of_seed(stream: Stream, seed: int) -> Stream:
    """The stream as a run of ``seed`` sees it, its labels the outputs of that seed's class order.

    The stream itself where all seeds share their order.
    """
    if stream.class_orders is None:
        return stream
    outputs = np.asarray(stream.class_orders(seed), np.int32)
    return derived(
        stream,
        "class order of seed",
        seed,
        train_y=outputs[stream.train_y],
        test_y=outputs[stream.test_y],
        test_index=stream.tests(seed),
        class_orders=None,
    )


def on_validation(stream: Stream, seed: int) -> Stream:
    """The stream with the validation rows of ``seed`` in place of its tests: for tuning.

    Raises:
      UserError: if the stream leaves no validation rows to a task.
    """
    check_stream(stream)
    check_seed(seed)
    stream = of_seed(stream, seed)
    rows = stream.valid(seed)
    for task, own in enumerate(rows):
        if not len(own):
            raise UserError(
                f"The stream {stream.name} has no validation images for task {task}; give its "
                "tasks fewer training images."
            )
    return derived(
        stream,
        "validation",
        seed,
        name=f"{stream.name}[validation]",
        test_x=stream.train_x,
        test_y=stream.train_y,
        test_index=rows,
        published=False,
    )


def first_tasks(stream: Stream, num_tasks: int) -> Stream:
    """The stream's first tasks alone: for tuning where later ones are not to be seen.

    Raises:
      UserError: if there are not so many, or the stream has a plan of its own.
    """
    check_stream(stream)
    check_positive(tasks=num_tasks)
    if num_tasks > stream.num_tasks or stream.planner is not None:
        raise UserError(
            f"The stream {stream.name} has no first {num_tasks} tasks apart; it has "
            f"{stream.num_tasks} tasks" + (" and a plan of its own." if stream.planner else ".")
        )
    return derived(
        stream,
        "first tasks",
        num_tasks,
        name=f"{stream.name}[{num_tasks} tasks]",
        class_mask=stream.class_mask[:num_tasks],
        test_index=stream.test_index[:num_tasks],
        subsets=lambda seed: stream.subsets(seed)[:num_tasks],
        valid=lambda seed: stream.valid(seed)[:num_tasks],
        published=False,
    )


def rows_used(stream: Stream, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """The stream's manifest, and the training and validation rows of each seed.

    Returns:
      arrays by name; ``seed0_train_rows`` [n] int32 holds all tasks' rows in order of arrival and
      ``seed0_train_tasks`` [n] int32 the task of each, likewise ``seed0_valid_rows``; with an
      order of the classes for each seed, ``seed0_class_outputs`` [labels] int32;
      ``labels_sha256`` [] says what the rows refer to, and ``manifest_sha256`` [] is of all the
      others. ``cljax.streams.with_split`` reads them back.
    """
    named = dict(stream.manifest)
    for seed in seeds:
        if stream.class_orders is not None:
            named[f"seed{seed}_class_outputs"] = np.asarray(stream.class_orders(seed), np.int32)
        for kind, parts in (("train", stream.subsets(seed)), ("valid", stream.valid(seed))):
            sizes = [len(part) for part in parts]
            named[f"seed{seed}_{kind}_rows"] = np.concatenate(parts).astype(np.int32)
            named[f"seed{seed}_{kind}_tasks"] = np.repeat(
                np.arange(len(sizes), dtype=np.int32), sizes
            )
    named["labels_sha256"] = np.array(labels_checksum(stream))
    named["manifest_sha256"] = np.array(manifest_checksum(named))
    return named


def labels_checksum(stream: Stream) -> str:
    """SHA-256 over the labels of a stream's examples: whether rows mean the same in another one."""
    kind = "<i4" if stream.labelled else "<f8"
    labels = {"train": np.asarray(stream.train_y, kind), "test": np.asarray(stream.test_y, kind)}
    return checksum("", labels)


def manifest_checksum(named: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the arrays of ``rows_used``, but for itself."""
    return checksum("", {name: a for name, a in named.items() if name != "manifest_sha256"})


def checksum(data: str, manifest: Mapping[str, np.ndarray], *more: object) -> str:
    """SHA-256 over a checksum of the examples, a manifest, and what else sets the stream apart."""
    total = hashlib.sha256(data.encode())
    entries: Iterable[tuple[str, np.ndarray]] = sorted(manifest.items())
    for name, array in entries:
        total.update(f"{name}{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    for value in more:
        total.update(repr(value).encode())
    return total.hexdigest()
