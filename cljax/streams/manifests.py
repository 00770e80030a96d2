"""Class orders and splits as files with checksums: to share one's own, and to use another's.

A class order is JSON, ``{"class_order": [...], "sha256": ...}``. A split is an ``.npz`` of rows:

    seed0_train_rows, seed0_train_tasks     [n] int32, in order of arrival, and the task of each
    seed0_valid_rows, seed0_valid_tasks     [m] int32
    labels_sha256                           of the labels that the rows refer to
    manifest_sha256                         of all the other arrays

Every run leaves a split of its seeds in ``manifest/stream.npz``, so any run's examples can be
given to another one by ``--stream-manifest``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cljax.errors import UserError
from cljax.keys import check_seeds
from cljax.storage.files import write_arrays
from cljax.streams.base import (
    Stream,
    check_stream,
    derived,
    labels_checksum,
    manifest_checksum,
    rows_used,
)
from cljax.streams.fixed import read_arrays

__all__ = ["load_class_order", "load_split", "save_class_order", "save_split", "with_split"]


def save_class_order(path: str | os.PathLike[str], order: Sequence[int]) -> Path:
    """Writes a class order, which ``--class-order FILE`` reads.

    Args:
      path: ends in ``.json``. order: each class of the data set once, first to last.

    Raises:
      UserError: for another ending, or unless ``order`` holds 0 to C - 1 once each.
    """
    path = _ending(path, ".json")
    order = [int(c) for c in order]
    _check_order(order, path)
    path.write_text(json.dumps({"class_order": order, "sha256": _sum_of(order)}) + "\n")
    return path


def load_class_order(path: str | os.PathLike[str]) -> list[int]:
    """Reads a class order and compares its checksum.

    Raises:
      UserError: if the file is missing or damaged.
    """
    path = Path(path).expanduser()
    try:
        stored = json.loads(path.read_text("utf-8"))
        order, recorded = [int(c) for c in stored["class_order"]], stored["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The class order {path} cannot be read ({type(error).__name__}); it must be a JSON "
            'file with "class_order" and "sha256", as save_class_order writes it.'
        ) from error
    _check_order(order, path)
    if _sum_of(order) != recorded:
        raise UserError(
            f"The class order {path} has the checksum {_sum_of(order)[:12]}..., but "
            f"{str(recorded)[:12]}... is recorded; copy it again, or save it anew."
        )
    return order


def save_split(path: str | os.PathLike[str], stream: Stream, seeds: Sequence[int]) -> Path:
    """Writes the training and validation rows of a stream's tasks for some seeds.

    Raises:
      UserError: unless ``path`` ends in ``.npz``, and for what is no stream or no list of seeds.
    """
    path = _ending(path, ".npz")
    check_stream(stream)
    seeds = check_seeds(seeds)
    write_arrays(path, rows_used(stream, seeds))
    return path


def load_split(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a split and compares its checksum.

    Raises:
      UserError: if the file is missing, damaged, or holds no rows.
    """
    path = Path(path).expanduser()
    arrays = read_arrays(path)
    recorded = str(arrays.get("manifest_sha256", ""))
    if not recorded or not _seeds(arrays):
        raise UserError(
            f"The stream manifest {path} holds no rows of seeds with a checksum; name the "
            "manifest/stream.npz of a run, or a file that save_split wrote."
        )
    result = manifest_checksum(arrays)
    if result != recorded:
        raise UserError(
            f"The stream manifest {path} has the checksum {result[:12]}..., but {recorded[:12]}... "
            "is recorded; copy it again."
        )
    return arrays


def with_split(stream: Stream, path: str | os.PathLike[str]) -> Stream:
    """The stream with the recorded training and validation rows, for the recorded seeds.

    Args:
      stream: of the same examples, classes and tasks as the one that was saved.

    Raises:
      UserError: as ``load_split``; if the rows are of other examples or tasks, or a task validates
        on what it learns from; for a stream with a plan, or class orders for each seed, of its
        own; and, when a run asks, for a seed that is not recorded.
    """
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")
    if stream.class_orders is not None:
        raise UserError(
            f"The stream {stream.name} has an order of the classes for each seed, but recorded "
            "rows are of one order; choose one that all seeds share."
        )
    arrays = load_split(path)
    if str(arrays.get("labels_sha256")) != labels_checksum(stream):
        raise UserError(
            f"The stream manifest {path} was made for other examples or another class order than "
            f"those of {stream.name}, so its rows mean nothing here."
        )
    seeds = _seeds(arrays)
    parts = {
        (seed, kind): _parts(arrays, seed, kind, stream, path)
        for seed in seeds
        for kind in ("train", "valid")
    }
    for seed in seeds:
        pairs = zip(parts[seed, "train"], parts[seed, "valid"], strict=True)
        for task, (train, valid) in enumerate(pairs):
            train.flags.writeable = valid.flags.writeable = False  # the checksum tells them
            if not len(train) or len(np.intersect1d(train, valid)):
                raise UserError(
                    f"In the stream manifest {path}, task {task} of seed {seed} has no training "
                    "examples, or validates on some of them."
                )

    def of(kind: str):
        def rows(seed: int) -> tuple[np.ndarray, ...]:
            if seed not in seeds:
                raise UserError(
                    f"The stream manifest {path} records the seeds {', '.join(map(str, seeds))}, "
                    f"but not {seed}; run those."
                )
            return parts[seed, kind]

        return rows

    own = ("split", str(arrays["manifest_sha256"]))
    return derived(stream, *own, subsets=of("train"), valid=of("valid"))


def _parts(
    arrays: Mapping[str, np.ndarray], seed: int, kind: str, stream: Stream, path: object
) -> tuple[np.ndarray, ...]:
    rows, tasks = (arrays.get(f"seed{seed}_{kind}_{what}") for what in ("rows", "tasks"))
    if rows is None or tasks is None or rows.ndim != 1 or rows.shape != tasks.shape:
        raise UserError(f"The stream manifest {path} lacks {kind} rows or tasks of seed {seed}.")
    if len(rows) and (
        min(rows.min(), tasks.min()) < 0
        or rows.max() >= len(stream.train_y)
        or tasks.max() >= stream.num_tasks
    ):
        raise UserError(
            f"The stream manifest {path} has {kind} rows up to {rows.max()} of tasks up to "
            f"{tasks.max()}, but {stream.name} has {len(stream.train_y)} examples and "
            f"{stream.num_tasks} tasks."
        )
    strange = ~stream.class_mask[tasks, stream.train_y[rows]]
    if strange.any():
        row = int(rows[np.flatnonzero(strange)[0]])
        raise UserError(
            f"The stream manifest {path} gives the training example {row} to a task of "
            f"{stream.name} without its class."
        )
    return tuple(rows[tasks == t].astype(np.int32) for t in range(stream.num_tasks))


def _seeds(arrays: Mapping[str, np.ndarray]) -> list[int]:
    result = (re.fullmatch(r"seed(\d+)_train_rows", name) for name in arrays)
    return sorted(int(match[1]) for match in result if match)


def _check_order(order: Sequence[int], path: object) -> None:
    if not order or sorted(order) != list(range(len(order))):
        raise UserError(
            f"The class order {path} holds {len(order)} classes, but it must hold each of 0 to "
            f"{max(len(order) - 1, 0)} once."
        )


def _sum_of(order: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()


def _ending(path: str | os.PathLike[str], ending: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ending:
        raise UserError(f"The file is {path}, but its name must end in {ending}.")
    return path
