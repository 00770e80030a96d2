"""MNIST rotations, permutations and many permutations.

Every task shows the ten digits through its own table of pixels: turned by an angle, or with the
pixels in another order. Angles and permutations are the same for training, tests and all seeds;
each seed and task learns from its own draw of the training images, and is tested on all test
images. Validation images are among those no task of the seed learns from.

References: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", 2017; Riemer
et al., "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference", 2019 (1000 or 200 images a task).
"""

from __future__ import annotations

import numpy as np

from cljax.data import ImageData, check_images, images_or_sample, marked
from cljax.errors import UserError, check_flag, check_path, check_positive, given
from cljax.streams import fixed
from cljax.streams.base import Rows, Stream, checksum, sealed
from cljax.streams.orders import permutation
from cljax.streams.transforms import gather_pixels, rotation_table

__all__ = ["mnist_data", "mnist_many_permutations", "mnist_permutations", "mnist_rotations"]

_NUM_VALID = 1000
_ENOUGH = 100  # fewer unused images than this make no validation set


def mnist_rotations(
    data: ImageData | None = None,
    *,
    num_tasks: int = 20,
    samples_per_task: int = 1000,
    data_dir: str | None = None,
    sample: bool = False,
    stream_manifest: str | None = None,
) -> Stream:
    """Digits turned counter-clockwise, each task by its own angle between 0 and 180 degrees.

    Args:
      data: images to use instead of those found by name.
      num_tasks: T, at most 20; fewer are the first of the 20.
      samples_per_task: training images of each task.
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.
      stream_manifest: .npz file with recorded angles and training images of each task; every
        seed then learns from those images, in its own order.

    Raises:
      UserError: for counts out of range, missing data or a bad manifest.
    """
    check_path(**given(stream_manifest=stream_manifest))
    data, whole = mnist_data(data, data_dir, sample)
    _check_counts(data, num_tasks, samples_per_task, None if stream_manifest else fixed.NUM_ANGLES)
    recorded = fixed.read_manifest(
        stream_manifest, "rotations", num_tasks, samples_per_task, len(data.train_y)
    )
    angles = fixed.angles(num_tasks) if recorded.values is None else recorded.values
    tables = np.stack([rotation_table(float(angle)) for angle in angles])
    return _tasks(
        "mnist-rotations", data, tables, {"rotations_angles": np.asarray(angles, np.float64)},
        recorded.rows, samples_per_task, whole and (num_tasks, samples_per_task) == (20, 1000),
    )  # fmt: skip


def mnist_permutations(
    data: ImageData | None = None,
    *,
    num_tasks: int = 20,
    samples_per_task: int = 1000,
    data_dir: str | None = None,
    sample: bool = False,
    stream_manifest: str | None = None,
) -> Stream:
    """Digits with the pixels in another order in each task, the first task included.

    Args:
      data: images to use instead of those found by name.
      num_tasks: T, at most 100; fewer are the first of the 100.
      samples_per_task: training images of each task.
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.
      stream_manifest: .npz file with recorded permutations and training images of each task;
        every seed then learns from those images, in its own order.

    Raises:
      UserError: for counts out of range, missing data or a bad manifest.

    Example:
        >>> import cljax
        >>> options = {"sample": True, "num_tasks": 3, "samples_per_task": 100}
        >>> stream = cljax.streams.mnist_permutations(**options)
        >>> stream.name, stream.num_tasks, stream.num_classes
        ('mnist-permutations[sample]', 3, 10)
    """
    return _permuted(
        "mnist-permutations", data, num_tasks, samples_per_task, data_dir, sample, stream_manifest,
        (20, 1000),
    )  # fmt: skip


def mnist_many_permutations(
    data: ImageData | None = None,
    *,
    num_tasks: int = 100,
    samples_per_task: int = 200,
    data_dir: str | None = None,
    sample: bool = False,
    stream_manifest: str | None = None,
) -> Stream:
    """As mnist-permutations, with more tasks of fewer images.

    Args:
      data: images to use instead of those found by name.
      num_tasks: T, at most 100; fewer are the first of the 100.
      samples_per_task: training images of each task.
      data_dir: folder with the prepared MNIST; else CLJAX_DATA_DIR, else the
        sample that cljax ships.
      sample: use the sample that cljax ships.
      stream_manifest: .npz file with recorded permutations and training images of each task;
        every seed then learns from those images, in its own order.

    Raises:
      UserError: for counts out of range, missing data or a bad manifest.
    """
    return _permuted(
        "mnist-many-permutations", data, num_tasks, samples_per_task, data_dir, sample,
        stream_manifest, (100, 200),
    )  # fmt: skip


def mnist_data(
    data: ImageData | None, data_dir: str | None, sample: bool
) -> tuple[ImageData, bool]:
    """MNIST as given or found, checked, and whether it is the whole data set itself.

    Raises:
      UserError: if there is none, or what is given does not have the form of MNIST.
    """
    check_flag(sample=sample)
    check_path(**given(data_dir=data_dir))
    own = data is not None
    data = data if own else images_or_sample("mnist", data_dir, sample)
    if own:
        check_images(data, 10)
        if data.train_x[0].size != 784 or data.test_x[0].size != 784:
            raise UserError(
                f"Images of {data.source} have shape {list(data.train_x.shape[1:])}, but an MNIST "
                "stream needs 28 x 28 pixels."
            )
    return data, data.source.startswith("tfds:mnist/") and not data.sample


def _permuted(
    name: str,
    data: ImageData | None,
    num_tasks: int,
    samples_per_task: int,
    data_dir: str | None,
    sample: bool,
    stream_manifest: str | None,
    published: tuple[int, int],
) -> Stream:
    check_path(**given(stream_manifest=stream_manifest))
    data, whole = mnist_data(data, data_dir, sample)
    limit = None if stream_manifest else fixed.NUM_PERMUTATIONS
    _check_counts(data, num_tasks, samples_per_task, limit)
    recorded = fixed.read_manifest(
        stream_manifest, "permutations", num_tasks, samples_per_task, len(data.train_y)
    )
    tables = fixed.permutations(num_tasks) if recorded.values is None else recorded.values
    manifest = {"permutations": np.asarray(tables, np.int16)}
    same = whole and (num_tasks, samples_per_task) == published
    return _tasks(name, data, tables, manifest, recorded.rows, samples_per_task, same)


def _check_counts(
    data: ImageData, num_tasks: int, samples_per_task: int, limit: int | None
) -> None:
    check_positive(num_tasks=num_tasks, samples_per_task=samples_per_task)
    if limit is not None and num_tasks > limit:
        raise UserError(f"num_tasks is {num_tasks}, but this stream has {limit} recorded tasks.")
    if samples_per_task > len(data.train_y):
        raise UserError(
            f"samples_per_task is {samples_per_task}, but {data.source} has only "
            f"{len(data.train_y)} training images."
        )


def _tasks(
    name: str,
    data: ImageData,
    tables: np.ndarray,
    manifest: dict[str, np.ndarray],
    recorded: np.ndarray | None,
    samples_per_task: int,
    published: bool,
) -> Stream:
    num_tasks, num_train = len(tables), len(data.train_y)

    def subsets(seed: int) -> tuple[np.ndarray, ...]:
        if recorded is not None:
            return tuple(
                rows[permutation(samples_per_task, name, "arrival", seed, task)]
                for task, rows in enumerate(recorded)
            )
        return tuple(
            permutation(num_train, name, "subset", seed, task, take=samples_per_task)
            for task in range(num_tasks)
        )

    if recorded is not None:
        kind = "rotations" if "rotations_angles" in manifest else "permutations"
        manifest = {**manifest, f"{kind}_train_indices": recorded}
    stream = Stream(
        name=marked(name, data),
        train_x=data.train_x.reshape(num_train, -1),
        train_y=data.train_y,
        test_x=data.test_x.reshape(len(data.test_y), -1),
        test_y=data.test_y,
        transform=gather_pixels(tables),
        class_mask=np.ones((num_tasks, 10), bool),
        test_index=(np.arange(len(data.test_y), dtype=np.int32),) * num_tasks,
        subsets=subsets,
        valid=_unused(name, subsets, num_train),
        manifest=manifest,
        source=data.source,
        licence=data.licence,
        checksum=checksum(data.checksum, manifest, name, samples_per_task),
        published=published,
    )
    return sealed(stream) if data.fixed else stream


def _unused(name: str, subsets: Rows, num_train: int) -> Rows:
    """Up to 1000 images that no task of the seed learns from; too few left: not the task itself."""

    def rest(rows: np.ndarray) -> np.ndarray:
        free = np.ones(num_train, bool)
        free[rows] = False
        return np.flatnonzero(free).astype(np.int32)

    def draw(free: np.ndarray, seed: int, task: int) -> np.ndarray:
        return free[permutation(len(free), name, "valid", seed, task, take=_NUM_VALID)]

    def valid(seed: int) -> tuple[np.ndarray, ...]:
        parts = subsets(seed)
        free = rest(np.concatenate(parts))
        if len(free) >= _ENOUGH:
            return (draw(free, seed, 0),) * len(parts)
        return tuple(draw(rest(rows), seed, task) for task, rows in enumerate(parts))

    return valid
