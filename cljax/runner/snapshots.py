"""What a run keeps for its report beside its numbers: rates over time, and what its memory holds.

    kept.npz    rates/SEED/ROW         [2 n + 1]  n + 1 edges, then the n counts between them
                memory/x, before       [K, H, W, channels] uint8, thumbnails of the first seed
                memory/y, task         [K] int32
                memory/groups, counts  [G] int32, tasks or classes, and the examples of each
    outer/TASK             [S, n] validation losses of exemplars while they are learned
    confusion/SEED/ROW     [C, C] int32, tests by class and by the class that the headline predicts

A row is one of the accuracy matrix: 0 before training, t after task t. Rates are those that a
method learns for its weights (``State.alpha``, La-MAML, arXiv:2007.13904), all weights together.
``memory/before`` is there for exemplars that were learned: the images they began as.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cljax.errors import UserError
from cljax.runner import artefacts
from cljax.states import Contents, contents_of
from cljax.storage import files
from cljax.storage.checkpoint import host_copy
from cljax.streams.base import Stream
from cljax.types import PyTree

__all__ = ["confusion_rows", "keep", "memory_of", "outer_losses", "rate_rows", "read"]

NAME = "kept.npz"
_OUTER = ("mnemonics-first", "mnemonics")  # phases, in the order of their tasks
_OF_A_GROUP, _IN_ALL = 12, 600  # thumbnails
_SIDE = 64  # pixels of a thumbnail at most
_STEPS = 2000  # outer losses of a task at most


def keep(folder: Path, stream: Stream, history: Any) -> None:
    """Writes ``kept.npz`` into a run's folder, if there is anything to keep."""
    arrays = {
        f"rates/{seed}/{row}": histogram
        for seed, rows in zip(history.seeds, history.rates, strict=True)
        for row, histogram in rows.items()
    }
    arrays |= {f"memory/{name}": a for name, a in memory_of(history.states[0], stream).items()}
    arrays |= {f"outer/{task}": losses for task, losses in enumerate(outer_losses(history))}
    arrays |= {
        f"confusion/{seed}/{row}": counts
        for seed, rows in zip(history.seeds, history.confusion, strict=True)
        for row, counts in rows.items()
    }
    if arrays:
        artefacts.write_arrays(folder / NAME, arrays)


def outer_losses(history: Any) -> list[np.ndarray]:
    """For each task [S, n], what exemplars were learned by (mnemonics), thinned if it is long."""
    phases = [history.phase_losses[name] for name in _OUTER if name in history.phase_losses]
    runs = [[task for phase in phases for task in phase[i]] for i in range(len(history.seeds))]
    of_tasks = [np.stack(result) for result in zip(*runs, strict=True)]
    return [losses[:, :: -(-losses.shape[1] // _STEPS) or 1] for losses in of_tasks]


def read(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of ``kept.npz``; empty for a run that kept nothing.

    Raises:
      UserError: if the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        return files.read_arrays(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run again in another folder.") from error


def memory_of(state: PyTree, stream: Stream) -> dict[str, np.ndarray]:
    """Thumbnails of the images that a state remembers; empty where it holds none.

    At most 12 of each class, or of each task where the tasks share their classes. Labels are -1
    where targets are none.
    """
    contents = contents_of(state)
    slots = None if contents is None else _flat(contents)
    if slots is None:
        return {}
    x, y, task, before, valid = slots
    shape = _image(stream.train_x)
    if shape is None or int(np.prod(x.shape[1:])) != int(np.prod(shape)) or not valid.any():
        return {}
    shared = bool((stream.class_mask.sum(axis=0) > 1).any())
    owner = task if shared or not stream.labelled else y
    y = y if stream.labelled else np.full(len(y), -1)
    groups, counts = np.unique(owner[valid], return_counts=True)
    most = max(1, min(_OF_A_GROUP, _IN_ALL // len(groups)))
    rows = np.concatenate([np.flatnonzero(valid & (owner == g))[:most] for g in groups[:_IN_ALL]])
    made = {
        "x": _thumbnails(x[rows], shape), "y": y[rows].astype(np.int32),
        "task": task[rows].astype(np.int32), "groups": groups.astype(np.int32),
        "counts": counts.astype(np.int32),
    }  # fmt: skip
    return made if before is None else made | {"before": _thumbnails(before[rows], shape)}


def _flat(contents: Contents) -> tuple[Any, ...] | None:
    """Examples, labels, tasks, what they began as and which slots are taken, slots in one row."""
    if not isinstance(contents.x, (jax.Array, np.ndarray)):
        return None
    mask = host_copy(contents.mask)
    row = lambda leaf: host_copy(leaf).reshape(mask.size, *leaf.shape[mask.ndim :])
    before = None if contents.before is None else row(contents.before)
    return row(contents.x), row(contents.y), row(contents.task), before, mask.reshape(-1)


def _image(stored: np.ndarray) -> tuple[int, int, int] | None:
    """Height, width and channels of a stream's images; None where examples are no pictures.

    Rows of bytes whose number is a square are taken as grey images, as digits are stored.
    """
    shape = stored.shape[1:]
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)):
        return shape[0], shape[1], 1 if len(shape) == 2 else shape[2]
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    flat = side >= 8 and side * side == shape[0] and stored.dtype == np.uint8
    return (side, side, 1) if flat else None


def _thumbnails(x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [K, H, W, channels], small; floats beyond [0, 1] (normalised images) are rescaled."""
    values = x.reshape(-1, *shape)
    step = -(-max(shape[:2]) // _SIDE)
    values = values[:, ::step, ::step]
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if high > 2 and low >= 0 and high <= 255:  # exemplars that are learned, in grey levels
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.round(255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)


def rate_rows(arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """The histograms of ``read``: row -> [S, 2 n + 1], for rows that every seed has."""
    return _rows(arrays, "rates")


def confusion_rows(arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """The confusion matrices of ``read``: row -> [S, C, C], for rows that every seed has."""
    return _rows(arrays, "confusion")


def _rows(arrays: Mapping[str, np.ndarray], wanted: str) -> dict[int, np.ndarray]:
    """What is kept as ``WANTED/SEED/ROW``: row -> of all seeds."""
    seeds: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == wanted:
            seed, _, row = rest.partition("/")
            seeds.setdefault(seed, {})[int(row)] = array
    if not seeds:
        return {}
    common = sorted(set.intersection(*(set(rows) for rows in seeds.values())))
    return {row: np.stack([rows[row] for rows in seeds.values()]) for row in common}
