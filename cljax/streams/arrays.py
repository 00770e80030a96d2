"""A stream from a user's own arrays."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from cljax.data import digest
from cljax.errors import UserError, check_known
from cljax.streams.base import Stream, checksum
from cljax.streams.orders import permutation
from cljax.streams.transforms import as_is, cast, pixels

__all__ = ["from_arrays"]

Labelled: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # x [n, ...], y [n], task [n]


def from_arrays(
    train: Labelled,
    *,
    test: Labelled,
    val: float = 0.1,
    name: str = "arrays",
    licence: str = "not stated",
    shuffle: Literal["within-task", "none"] = "within-task",
    dtype: str = "uint8",
    num_classes: int | None = None,
    scenario: Literal["domain", "class", "task"] | None = None,
) -> Stream:
    """A stream of examples that each know their task.

    Args:
      train: ``(x, y, task)``: examples ``[N, ...]`` of any shape, labels ``[N]`` in ``[0, C)``,
        tasks ``[N]`` in ``[0, T)`` with none left out; integers.
      test: likewise; every task needs tests.
      val: share of each task's training examples, drawn anew for each seed, that validates.
      name: of the stream. licence: of the examples; both are printed in reports.
      shuffle: ``within-task`` shows a task's examples in a new order for each seed, ``none`` in
        the order of the arrays.
      dtype: ``uint8`` for images from 0 to 255, which the network sees divided by 255; a float
        type for values that it sees as they are, in the default precision; another integer type
        for integers that it sees as they are.
      num_classes: C; by default the largest label plus one.
      scenario: ``class`` (or ``task``, which also tells losses and predictions the task) gives
        each task the classes of its training labels; in ``domain`` all tasks share all classes.
        By default ``domain`` if every task has the same labels, else ``class``.

    Example:
      ``from_arrays((x, y, site), test=(xt, yt, sites_t), name="clinic", licence="private")``

    Raises:
      UserError: if shapes, types, labels or tasks do not fit together.
    """
    check_known("shuffle", shuffle, ("within-task", "none"))
    if not 0 <= val < 1:
        raise UserError(f"val is {val}, but it must be a share from 0 to below 1.")
    kind = _kind(dtype)
    x, y, task = (np.asarray(a) for a in train)
    xt, yt, tt = (np.asarray(a) for a in test)
    _check("train", x, y, task, kind)
    _check("test", xt, yt, tt, kind)
    if x.shape[1:] != xt.shape[1:]:
        raise UserError(
            f"Training examples have shape {list(x.shape[1:])}, test examples {list(xt.shape[1:])}."
        )
    num_tasks = int(task.max()) + 1
    for part, tasks in (("training", task), ("test", tt)):
        found = np.unique(tasks)
        if len(found) != num_tasks or found[-1] != num_tasks - 1:
            raise UserError(
                f"The {part} examples have the tasks {_few(found)}, but they must be 0 to "
                f"{num_tasks - 1}, none left out."
            )
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    own = np.zeros((num_tasks, max(num_classes, int(y.max()) + 1)), bool)
    own[task, y] = True
    scenario = scenario or ("domain" if (own == own[:1]).all() else "class")
    check_known("scenario", scenario, ("domain", "class", "task"))
    class_mask = np.ones_like(own) if scenario == "domain" else own
    _check_labels(y, yt, tt, class_mask, num_classes)
    rows = [np.flatnonzero(task == t).astype(np.int32) for t in range(num_tasks)]
    held = [min(round(len(r) * val), len(r) - 1) for r in rows]

    def split(seed: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        order = permutation(len(rows[t]), "arrays", "valid", seed, t)
        return rows[t][order[: held[t]]], rows[t][np.sort(order[held[t] :])]

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        parts = [split(seed, t)[1] for t in range(num_tasks)]
        if shuffle == "none":
            return tuple(parts)
        return tuple(
            part[permutation(len(part), "arrays", "arrival", seed, t)]
            for t, part in enumerate(parts)
        )

    arrays = (x.astype(kind), y.astype(np.int32), xt.astype(kind), yt.astype(np.int32))
    return Stream(
        name=name,
        train_x=arrays[0],
        train_y=arrays[1],
        test_x=arrays[2],
        test_y=arrays[3],
        transform=pixels if kind == np.uint8 else cast if kind.kind == "f" else as_is,
        class_mask=class_mask,
        test_index=tuple(np.flatnonzero(tt == t).astype(np.int32) for t in range(num_tasks)),
        subsets=subsets,
        valid=lambda seed: tuple(split(seed, t)[0] for t in range(num_tasks)),
        multi_head=scenario == "task",
        scenario=scenario,
        source=f"arrays of {name}",
        licence=licence,
        checksum=checksum(
            digest(*arrays, task.astype(np.int32), tt.astype(np.int32)), {}, val, shuffle, scenario
        ),
        published=False,
    )


def _kind(dtype: str) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "fiu":
        raise UserError(f"dtype is {dtype}, but it must be uint8, a float or an integer type.")
    return kind


def _check(part: str, x: np.ndarray, y: np.ndarray, task: np.ndarray, kind: np.dtype) -> None:
    if x.ndim < 1 or not len(x) or y.shape != x.shape[:1] or task.shape != x.shape[:1]:
        raise UserError(
            f"The {part} arrays have shapes {list(x.shape)}, {list(y.shape)} and "
            f"{list(task.shape)}, but each example needs one label and one task, and at least one "
            "example is needed."
        )
    if kind == np.uint8 and x.dtype != np.uint8:
        own = "float32" if x.dtype.kind == "f" else x.dtype
        raise UserError(
            f"The {part} examples hold {x.dtype} values, but images are uint8 from 0 to 255; pass "
            f"dtype='{own}' to use the values as they are."
        )
    if not np.can_cast(x.dtype, kind, "same_kind"):
        raise UserError(
            f"The {part} examples hold {x.dtype} values, which dtype {kind} cannot hold."
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise UserError(f"The {part} examples hold values that are not finite numbers.")
    for what, values in (("labels", y), ("tasks", task)):
        if values.dtype.kind not in "iu":
            raise UserError(
                f"The {part} {what} hold {values.dtype} values, but they must be integers."
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
