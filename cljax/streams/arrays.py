"""A stream from a user's own arrays."""

from __future__ import annotations

import numbers
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype as canonical

from cljax.data import digest
from cljax.errors import UserError, check_known, check_positive, check_text
from cljax.objectives import Loss, Score, Weights
from cljax.streams.base import (
    Rows,
    Stream,
    Transform,
    check_stream,
    checksum,
    derived,
    sealed,
)
from cljax.streams.objective import with_objective
from cljax.streams.orders import permutation
from cljax.streams.packed import pack, seen_as, unpacked
from cljax.types import PyTree

__all__ = ["from_arrays", "in_order"]

_MOST_CLASSES = 10**6  # more are a mistake: codes of classes instead of their numbers
Scenario: TypeAlias = Literal["domain", "class", "task"]
Labelled: TypeAlias = tuple[PyTree, np.ndarray, np.ndarray]  # x [n, ...], y [n], task [n]


def from_arrays(
    train: Labelled,
    *,
    test: Labelled,
    val: float = 0.1,
    name: str = "arrays",
    licence: str = "not stated",
    dtype: str = "uint8",
    num_classes: int | None = None,
    scenario: Scenario | None = None,
    loss: Loss | str | None = None,
    weights: Weights | None = None,
    score: Score | str | None = None,
) -> Stream:
    """A stream of examples that each know their task.

    Each seed shows a task's examples in an order of its own; ``in_order`` takes that back.

    Args:
      train: ``(x, y, task)``: examples ``[N, ...]`` of any shape, or a pytree of such arrays, as
        in ``{"image": ..., "age": ...}``; labels ``[N]`` in ``[0, C)``, tasks ``[N]`` in ``[0, T)``
        with none left out; integers. With a ``loss``, targets instead of labels: floats ``[N]`` or
        ``[N, K]``, or for several labels at once ``[N, K]`` of 0 and 1.
      test: likewise; every task needs tests.
      val: share of each task's training examples, drawn anew for each seed, that validates.
      name: of the stream. licence: of the examples; both are printed in reports.
      dtype: ``uint8`` for images from 0 to 255, which the network sees divided by 255; a float
        type for values that it sees as they are, in the default precision; another integer type
        for integers that it sees as they are. In a pytree each array keeps its own type, by the
        same rules, and the network gets the pytree.
      num_classes: C; by default the largest label plus one. Of targets: how many outputs a network
        has, by default one for each.
      scenario: ``class`` (or ``task``, which also tells losses and predictions the task) gives
        each task the classes of its training labels; in ``domain`` all tasks share all classes.
        By default ``domain`` if every task has the same labels, else ``class``. Of targets always
        ``domain``.
      loss, weights, score: see ``cljax.objectives``; None: cross-entropy, none, and accuracy.

    Example:
      ``from_arrays((x, y, site), test=(xt, yt, sites_t), name="clinic", licence="private")``

    Raises:
      UserError: if shapes, types, labels or tasks do not fit together.
    """
    check_text(name=name, licence=licence)
    if dtype is None:
        raise UserError("dtype is None, but it must be uint8 or the name of a float, as float32.")
    if not isinstance(val, numbers.Real) or not 0 <= val < 1:
        raise UserError(f"val is {val!r}, but it must be a share from 0 to below 1.")
    train, test = _labelled("train", train), _labelled("test", test)
    (y, task), (yt, tt) = train[1:], test[1:]
    x, xt, transform = _stored(train, test, dtype)
    made = _targets if _are_targets(y, loss) else _labels
    y, yt, num_tasks, own, scenario = made((y, task), (yt, tt), num_classes, scenario)
    class_mask = np.ones_like(own) if scenario == "domain" else own
    subsets, valid = _split(task, num_tasks, val)
    arrays = (x, y, xt, yt)
    digested = digest(*arrays, task.astype(np.int32), tt.astype(np.int32))
    more = [transform.name] if transform.name else []
    given = y.max() + 1 if y.dtype.kind == "i" else y[:1].size
    more += [own.shape[1]] if own.shape[1] > int(given) else []
    stream = Stream(
        name=name,
        train_x=arrays[0],
        train_y=arrays[1],
        test_x=arrays[2],
        test_y=arrays[3],
        transform=transform,
        class_mask=class_mask,
        test_index=tuple(np.flatnonzero(tt == t).astype(np.int32) for t in range(num_tasks)),
        subsets=subsets,
        valid=valid,
        multi_head=scenario == "task",
        scenario=scenario,
        source=f"arrays of {name}",
        licence=licence,
        checksum=checksum(digested, {}, val, "within-task", scenario, *more),
        published=False,
    )
    return with_objective(sealed(stream), loss=loss, weights=weights, score=score)


def in_order(stream: Stream) -> Stream:
    """The stream whose tasks show their examples in the order of the arrays, for every seed.

    Epochs after the first are shuffled all the same.

    Raises:
      UserError: if the stream has a plan of its own.
    """
    check_stream(stream)
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        return tuple(np.sort(rows) for rows in stream.subsets(seed))

    return derived(stream, "in order", subsets=subsets)


def _are_targets(y: np.ndarray, loss: Any) -> bool:
    """Whether these are targets: several numbers an example, or floats and a loss for them."""
    return loss is not None and (y.ndim == 2 or y.dtype.kind == "f")


Part: TypeAlias = tuple[np.ndarray, np.ndarray]  # labels or targets, and tasks


def _labels(
    train: Part, test: Part, num_classes: int | None, scenario: Scenario | None
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, Scenario]:
    """Labels of both parts, T, the classes [T, C] of each task and the scenario."""
    (y, task), (yt, tt) = train, test
    for part, labels, tasks in (("train", y, task), ("test", yt, tt)):
        if labels.ndim != 1:
            raise UserError(
                f"The {part} have shape {list(tasks.shape)}, their labels {list(labels.shape)}, "
                "but each example needs one label; several targets of an example need a loss, such "
                "as loss='squared-error' or 'binary-cross-entropy'."
            )
        _check_integers(part, labels, tasks)
    num_tasks = _count_tasks(task, tt)
    own = _classes_of_tasks(y, task, num_tasks, num_classes)
    scenario = scenario or ("domain" if (own == own[:1]).all() else "class")
    check_known("scenario", scenario, ("domain", "class", "task"))
    class_mask = np.ones_like(own) if scenario == "domain" else own
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    _check_labels(y, yt, tt, class_mask, num_classes)
    return y.astype(np.int32), yt.astype(np.int32), num_tasks, own, scenario


def _targets(
    train: Part, test: Part, num_outputs: int | None, scenario: Scenario | None
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, Scenario]:
    """Targets of both parts, T, the outputs [T, C] of each task (all) and the scenario."""
    (y, task), (yt, tt) = train, test
    for part, values, tasks in (("train", y, task), ("test", yt, tt)):
        _check_integers(part, tasks, tasks)
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise UserError(
                f"The {part} targets hold {values.dtype} values, but they must be finite numbers."
                if values.dtype.kind not in "fiub"
                else f"The {part} targets hold values that are not finite numbers."
            )
    if y.shape[1:] != yt.shape[1:] or not y[:1].size:
        raise UserError(
            f"An example has targets {list(y.shape[1:])} in training and {list(yt.shape[1:])} in "
            "tests, but they must be alike, and at least one."
        )
    if scenario not in (None, "domain"):
        check_known("scenario", scenario, ("domain", "class", "task"))
        raise UserError(
            f"scenario is {scenario}, but tasks share all outputs where targets are no classes; "
            "leave it out."
        )
    num_outputs = y[:1].size if num_outputs is None else num_outputs
    check_positive(num_classes=num_outputs)
    num_tasks = _count_tasks(task, tt)
    kind = canonical(np.float64)
    every = np.ones((num_tasks, num_outputs), bool)
    return y.astype(kind), yt.astype(kind), num_tasks, every, "domain"


def _count_tasks(task: np.ndarray, tests: np.ndarray) -> int:
    """T, where training and test examples have the tasks 0 to T - 1."""
    num_tasks = int(task.max()) + 1
    for part, tasks in (("training", task), ("test", tests)):
        result = np.unique(tasks)
        if len(result) != num_tasks or result[-1] != num_tasks - 1:
            raise UserError(
                f"The {part} examples have the tasks {_few(result)}, but they must be 0 to "
                f"{num_tasks - 1}, none left out."
            )
    return num_tasks


def _classes_of_tasks(
    y: np.ndarray, task: np.ndarray, num_tasks: int, num_classes: int | None
) -> np.ndarray:
    """[T, C] bool, the training labels that each task has."""
    if num_classes is not None:
        check_positive(num_classes=num_classes)
    largest = int(y.max())
    num_classes = largest + 1 if num_classes is None else num_classes
    if num_classes > _MOST_CLASSES:
        raise UserError(
            f"The labels ask for {num_classes} classes (the largest is {largest}), but a label is "
            f"the number of an output, below {_MOST_CLASSES}; number the classes from 0."
        )
    if largest >= _MOST_CLASSES:
        raise UserError(
            f"The training labels go up to {largest}, but a label is the number of an output, "
            f"below {_MOST_CLASSES}; number the classes from 0."
        )
    own = np.zeros((num_tasks, max(num_classes, largest + 1)), bool)
    own[task, y] = True
    return own


def _split(task: np.ndarray, num_tasks: int, val: float) -> tuple[Rows, Rows]:
    """What each task learns from, in a new order for each seed, and what validates."""
    rows = [np.flatnonzero(task == t).astype(np.int32) for t in range(num_tasks)]
    held = [min(round(len(r) * val), len(r) - 1) for r in rows]

    def parts(seed: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        order = permutation(len(rows[t]), "arrays", "valid", seed, t)
        return rows[t][order[: held[t]]], rows[t][np.sort(order[held[t] :])]

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        learned = [parts(seed, t)[1] for t in range(num_tasks)]
        return tuple(
            part[permutation(len(part), "arrays", "arrival", seed, t)]
            for t, part in enumerate(learned)
        )

    return subsets, lambda seed: tuple(parts(seed, t)[0] for t in range(num_tasks))


def _labelled(part: str, given: Labelled) -> Labelled:
    """A part of the examples, its labels and tasks as arrays."""
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        got = f"{len(given)} entries" if isinstance(given, (tuple, list)) else type(given).__name__
        raise UserError(f"{part} must be (examples, labels, tasks), but got {got}.")
    x, y, task = given
    return x, _array(f"{part} labels", y), _array(f"{part} tasks", task)


def _array(what: str, values: Any) -> np.ndarray:
    """Values as an array, if that keeps all that they say."""
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        count = int(np.ma.getmaskarray(values).sum())
        raise UserError(
            f"The {what} hold {count} masked values, but a stream has no mask; fill them in, or "
            "leave their examples out."
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"The {what} are no array ({str(error).splitlines()[0].rstrip('.')}); give entries of "
            "one shape."
        ) from error


def _stored(
    train: Labelled, test: Labelled, dtype: str
) -> tuple[np.ndarray, np.ndarray, Transform]:
    """Training and test examples as one array each, and how the network sees them."""
    single = [isinstance(x, list) or jax.tree_util.all_leaves([x]) for x in (train[0], test[0])]
    if all(single):
        kind = _kind(dtype)
        x, xt = _checked(train, test, kind, "examples")
        return x.astype(kind), xt.astype(kind), seen_as(kind)
    if dtype != "uint8":
        raise UserError(
            f"dtype is {dtype}, but examples that are a pytree keep the type of each array; leave "
            "it out."
        )
    leaves, structure = jax.tree.flatten(train[0])
    if not leaves or jax.tree.structure(test[0]) != structure:
        raise UserError(
            f"Training examples are {structure}, test examples {jax.tree.structure(test[0])}, but "
            "they must be the same, with at least one array."
        )
    paths = jax.tree_util.tree_leaves_with_path(train[0])
    parts = []
    for (path, leaf), other in zip(paths, jax.tree.leaves(test[0]), strict=True):
        what = jax.tree_util.keystr(path)
        kind = _kind(str(_array(f"train {what}", leaf).dtype))
        pair = _checked((leaf, *train[1:]), (other, *test[1:]), kind, what)
        # What the network could not see is not stored either: float64 without x64.
        parts.append([a.astype(canonical(kind)) for a in pair])
    x, xt = (jax.tree.unflatten(structure, [pair[i] for pair in parts]) for i in (0, 1))
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
    return pack(x), pack(xt), unpacked(one)


def _checked(
    train: Labelled, test: Labelled, kind: np.dtype, what: str
) -> tuple[np.ndarray, np.ndarray]:
    x, xt = _array(f"train {what}", train[0]), _array(f"test {what}", test[0])
    for part, own, (_, y, task) in (("train", x, train), ("test", xt, test)):
        _check(f"{part} {what}", own, np.asarray(y), np.asarray(task), kind)
    if x.shape[1:] != xt.shape[1:]:
        raise UserError(
            f"Training {what} have shape {list(x.shape[1:])}, test {what} {list(xt.shape[1:])}."
        )
    return x, xt


def _kind(dtype: str) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "fiu":
        raise UserError(f"dtype is {dtype}, but it must be uint8, a float or an integer type.")
    return kind


def _check(part: str, x: np.ndarray, y: np.ndarray, task: np.ndarray, kind: np.dtype) -> None:
    count = x.shape[:1]
    if not x.ndim or not len(x) or y.shape[:1] != count or y.ndim > 2 or task.shape != count:
        raise UserError(
            f"The {part} have shape {list(x.shape)}, their labels {list(y.shape)} and their tasks "
            f"{list(task.shape)}, but each example needs one label and one task, and at least one "
            "example is needed."
        )
    if x.dtype.kind not in "fiub":
        raise UserError(f"The {part} hold {x.dtype} values, but they must be real numbers.")
    if not x.size:
        raise UserError(f"The {part} have shape {list(x.shape)}, so they hold no values.")
    if kind == np.uint8 and x.dtype != np.uint8:
        own = f", or dtype='{x.dtype}' for integers" if x.dtype.kind in "iu" else ""
        raise UserError(
            f"The {part} hold {x.dtype} values, but images are uint8 from 0 to 255; pass "
            f"dtype='float32' to use the values as they are{own}."
        )
    if not np.can_cast(x.dtype, kind, "same_kind"):
        raise UserError(f"The {part} hold {x.dtype} values, which dtype {kind} cannot hold.")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise UserError(f"The {part} hold values that are not finite numbers.")
    _check_range(part, x, kind)


def _check_range(part: str, x: np.ndarray, kind: np.dtype) -> None:
    """Raises UserError where a value is too large for the type that is stored, or that is seen."""
    seen = np.dtype(jnp.result_type(float)) if kind.kind == "f" else canonical(kind)
    for own in (kind, np.dtype(seen)):
        info = np.finfo(own) if own.kind == "f" else np.iinfo(own)
        low, high = x.min(), x.max()
        if low < info.min or high > info.max:
            value = low if low < info.min else high
            raise UserError(
                f"The {part} hold {value}, which {own} cannot hold: it reaches from {info.min} to "
                f"{info.max}; rescale the values."
            )


def _check_integers(part: str, y: np.ndarray, task: np.ndarray) -> None:
    for what, values in (("labels", y), ("tasks", task)):
        if values.dtype.kind not in "iu":
            more = "; targets that are no classes need a loss, such as loss='squared-error'"
            raise UserError(
                f"The {part} {what} hold {values.dtype} values, but they must be integers"
                f"{more if what == 'labels' and values.dtype.kind == 'f' else ''}."
            )
        if values.min() < 0:
            raise UserError(f"The {part} {what} hold {values.min()}, but they start at 0.")


def _check_labels(
    y: np.ndarray, yt: np.ndarray, tt: np.ndarray, class_mask: np.ndarray, num_classes: int
) -> None:
    for part, labels in (("training", y), ("test", yt)):
        if labels.max() >= num_classes:
            raise UserError(
                f"The {part} labels hold {labels.max()}, but the {num_classes} classes are 0 to "
                f"{num_classes - 1}."
            )
    new = np.setdiff1d(yt, y)
    if new.size:
        raise UserError(
            f"The test labels hold {new[0]}, which no training example has; leave its tests out."
        )
    strange = ~class_mask[tt, yt]
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise UserError(
            f"Test example {row} has the label {yt[row]}, which no training example of its task "
            f"{tt[row]} has; name scenario='domain' if tasks share their classes."
        )


def _few(values: np.ndarray) -> str:
    shown = ", ".join(str(v) for v in values[:8])
    return shown + (", ..." if len(values) > 8 else "")
