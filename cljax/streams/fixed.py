"""What is the same for every seed: the angles and permutations of the MNIST streams.

Those of the papers were drawn without a seed and are not published, so cljax has its own, drawn
once and recorded in ``fixed.json``: the angles as numbers, the permutations as a checksum of what
the stable generator gives. A stream manifest replaces them, and the images of each task too.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.data import digest
from cljax.errors import UserError
from cljax.streams.orders import permutation

__all__ = ["NUM_ANGLES", "NUM_PERMUTATIONS", "Recorded", "angles", "permutations",
    "read_arrays", "read_manifest",
]  # fmt: skip

NUM_ANGLES = 20
NUM_PERMUTATIONS = 100
_PIXELS = 784


class Recorded(NamedTuple):
    """What a stream manifest fixes, None where it says nothing."""

    values: np.ndarray | None  # angles [T] degrees, or permutations [T, 784]
    rows: np.ndarray | None  # [T, n] int32, rows of the training images of each task


def angles(num_tasks: int = NUM_ANGLES) -> np.ndarray:
    """[T] float64 degrees: task t's is one draw from [9 t, 9 (t + 1)), as in the GEM generator."""
    return np.array(_fixed()["angles"][:num_tasks])


def permutations(num_tasks: int = NUM_PERMUTATIONS) -> np.ndarray:
    """[T, 784] int32: pixel q of task t's image is pixel ``permutations[t, q]`` of the stored one.

    Raises:
      RuntimeError: if this NumPy's Philox gives other numbers than the recorded ones.
    """
    drawn = np.stack(
        [permutation(_PIXELS, "mnist-permutations", t) for t in range(NUM_PERMUTATIONS)]
    )
    if digest(drawn.astype("<i4")) != _fixed()["permutations_sha256"]:
        raise RuntimeError("The permutations differ from the recorded ones; please report this.")
    return drawn[:num_tasks]


def read_manifest(
    path: str | os.PathLike[str] | None,
    kind: str,
    num_tasks: int,
    samples_per_task: int,
    num_train: int,
) -> Recorded:
    """Reads recorded angles or permutations, and the images of each task, from an ``.npz`` file.

    Args:
      path: None for nothing recorded. Keys read: ``rotations_angles`` [T] degrees and
        ``rotations_train_indices`` [T, n], or ``permutations`` [T, 784] and
        ``permutations_train_indices`` [T, n]; the indices may be missing.
      kind: ``rotations`` or ``permutations``.
      num_train: training images there are; indices refer to them.

    Raises:
      UserError: if the file is missing, damaged, too small for the stream or out of range.
    """
    if path is None:
        return Recorded(None, None)
    arrays = read_arrays(Path(path).expanduser())
    key = "rotations_angles" if kind == "rotations" else "permutations"
    if key not in arrays:
        raise UserError(
            f"The stream manifest {path} has no array '{key}'; it has {sorted(arrays)}."
        )
    values = arrays[key]
    wanted = (num_tasks,) if kind == "rotations" else (num_tasks, _PIXELS)
    if values.ndim != len(wanted) or values.shape[1:] != wanted[1:] or len(values) < num_tasks:
        raise UserError(
            f"'{key}' of the stream manifest {path} has shape {list(values.shape)}, but "
            f"{num_tasks} tasks need {list(wanted)}; lower --num-tasks or name another manifest."
        )
    values = values[:num_tasks]
    if kind == "rotations":
        sound = values.dtype.kind in "fiu" and bool(np.isfinite(values).all())
    else:
        sound = bool((np.sort(values, axis=1) == np.arange(_PIXELS)).all())
    if not sound:
        need = "finite angles in degrees" if kind == "rotations" else "an order of 0 to 783 a row"
        raise UserError(f"'{key}' of the stream manifest {path} must hold {need}.")
    rows = arrays.get(f"{kind}_train_indices")
    if rows is not None:
        rows = _check_rows(rows, path, num_tasks, samples_per_task, num_train)
    return Recorded(values, rows)


def _check_rows(
    rows: np.ndarray, path: object, num_tasks: int, samples_per_task: int, num_train: int
) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[0] < num_tasks or rows.shape[1] < samples_per_task:
        raise UserError(
            f"The stream manifest {path} records training indices of shape {list(rows.shape)}, but "
            f"{num_tasks} tasks of {samples_per_task} images need at least "
            f"{[num_tasks, samples_per_task]}."
        )
    rows = rows[:num_tasks, :samples_per_task]
    if not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0 or rows.max() >= num_train:
        raise UserError(
            f"The stream manifest {path} records training indices up to {rows.max()}, but there "
            f"are {num_train} training images; recorded indices need the whole data set "
            "(--data-dir)."
        )
    if any(len(np.unique(row)) < len(row) for row in rows):
        raise UserError(f"The stream manifest {path} records a training image twice in one task.")
    return rows.astype(np.int32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a stream manifest.

    Raises:
      UserError: if it is not a readable ``.npz`` file.
    """
    if not path.is_file():
        raise UserError(f"There is no stream manifest {path}; name an .npz file.")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive")
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zip, NumPy and the file system each raise their own
        raise UserError(
            f"The stream manifest {path} is not a readable .npz file ({error})."
        ) from error


def _fixed() -> Mapping:
    return json.loads((resources.files("cljax.streams") / "fixed.json").read_text())
