"""MNIST: turned, with its pixels in other orders, and split by digits.

Every task of the rotations and permutations shows the ten digits through its own table of pixels:
turned by an angle, or with the pixels in another order. Angles and permutations are the same for
training, tests and all seeds; each seed and task learns from its own draw of the training images,
and is tested on all test images. Validation images are among those no task of the seed learns from.

References: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", 2017; Riemer
et al., "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference", 2019 (1000 or 200 images a task). Zenke et al., "Continual Learning Through Synaptic
Intelligence", 2017 (split).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from cljax.data import ImageData, check_images, marked
from cljax.errors import UserError
from cljax.options import Count
from cljax.streams import fixed, transforms
from cljax.streams.base import Rows, Stream, Transform, checksum, sealed
from cljax.streams.classes import class_groups, name_of
from cljax.streams.options import (
    FilePath,
    ManifestOptions,
    OrderOptions,
    SampleOptions,
    SplitOptions,
    StreamSource,
)
from cljax.streams.orders import permutation
from cljax.streams.split import split_by_class
from cljax.streams.transforms import gather_pixels, normalised, rotation_table

__all__ = [
    "IncrementalMNIST", "MNISTManyPermutations", "MNISTPermutations", "MNISTRotations",
    "SplitMNIST",
]  # fmt: skip

_NUM_VALID = 1000
_ENOUGH = 100  # fewer unused images than this make no validation set
_MEAN, _DEVIATION = (0.1307,), (0.3081,)  # of MNIST's training images
Pixels: TypeAlias = Literal["unit", "normalised"]


class _MNIST(SampleOptions):
    """Of streams of MNIST."""

    data_dir: FilePath | None = None
    """Folder with the prepared MNIST; else CLJAX_DATA_DIR, else the sample that cljax ships."""

    def digits(self, data: ImageData | None) -> tuple[ImageData, bool]:
        """MNIST as given or found, checked, and whether it is the whole data set itself.

        Raises:
          UserError: if there is none, or what is given does not have the form of MNIST.
        """
        digits = self.images("mnist", data)
        if data is not None:
            check_images(data, 10)
            if data.train_x[0].size != 784 or data.test_x[0].size != 784:
                raise UserError(
                    f"Images of {data.source} have shape {list(data.train_x.shape[1:])}, but an "
                    "MNIST stream needs 28 x 28 pixels."
                )
        return digits, digits.source.startswith("tfds:mnist/") and not digits.sample


class _Tables(_MNIST, StreamSource):
    """Of streams whose tasks show all digits, each through a table of pixels."""

    published: ClassVar[tuple[int, int]] = (20, 1000)  # num_tasks and samples_per_task in papers
    num_tasks: Count = 20
    """T."""
    samples_per_task: Count = 1000
    """Training images of each task."""
    stream_manifest: FilePath | None = None
    """.npz file with recorded angles, or permutations, and training images of each task; every seed
    then learns from those images, in its own order."""

    def recorded(self, kind: str, limit: int, data: ImageData) -> fixed.Recorded:
        """What the manifest fixes; without one there are ``limit`` tasks at most."""
        num_tasks, samples = self.num_tasks, self.samples_per_task
        if self.stream_manifest is None and num_tasks > limit:
            raise UserError(
                f"num_tasks is {num_tasks}, but this stream has {limit} recorded tasks."
            )
        if samples > len(data.train_y):
            raise UserError(
                f"samples_per_task is {samples}, but {data.source} has only {len(data.train_y)} "
                "training images."
            )
        return fixed.read_manifest(
            self.stream_manifest, kind, num_tasks, samples, len(data.train_y)
        )

    def stream(
        self,
        data: ImageData,
        tables: np.ndarray,
        manifest: dict[str, np.ndarray],
        rows: np.ndarray | None,
        whole: bool,
    ) -> Stream:
        """The stream of some tables, and of recorded rows if there are any."""
        made = _tasks(self.kind, data, tables, manifest, rows, self.samples_per_task)
        same = (self.num_tasks, self.samples_per_task) == self.published
        return replace(made, published=whole and same)


class MNISTRotations(_Tables):
    """Digits turned counter-clockwise, each task by its own angle between 0 and 180 degrees."""

    num_tasks: Count = 20
    """T, at most 20; fewer are the first of the 20."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens MNIST, or takes images of its form.

        Raises:
          UserError: for counts out of range, missing data or a bad manifest.
        """
        digits, whole = self.digits(data)
        recorded = self.recorded("rotations", fixed.NUM_ANGLES, digits)
        angles = fixed.angles(self.num_tasks) if recorded.values is None else recorded.values
        tables = np.stack([rotation_table(float(angle)) for angle in angles])
        manifest = {"rotations_angles": np.asarray(angles, np.float64)}
        return self.stream(digits, tables, manifest, recorded.rows, whole)


class MNISTPermutations(_Tables):
    """Digits with the pixels in another order in each task, the first task included.

    Example:
        >>> import cljax
        >>> options = {"sample": True, "num_tasks": 3, "samples_per_task": 100}
        >>> stream = cljax.streams.MNISTPermutations(**options).build()
        >>> stream.name, stream.num_tasks, stream.num_classes
        ('mnist-permutations[sample]', 3, 10)
    """

    num_tasks: Count = 20
    """T, at most 100; fewer are the first of the 100."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens MNIST, or takes images of its form.

        Raises:
          UserError: for counts out of range, missing data or a bad manifest.
        """
        digits, whole = self.digits(data)
        recorded = self.recorded("permutations", fixed.NUM_PERMUTATIONS, digits)
        tables = recorded.values
        tables = fixed.permutations(self.num_tasks) if tables is None else tables
        manifest = {"permutations": np.asarray(tables, np.int16)}
        return self.stream(digits, tables, manifest, recorded.rows, whole)


class MNISTManyPermutations(MNISTPermutations):
    """As mnist-permutations, with more tasks of fewer images."""

    published: ClassVar[tuple[int, int]] = (100, 200)
    num_tasks: Count = 100
    samples_per_task: Count = 200


class SplitMNIST(SplitOptions, ManifestOptions, _MNIST, StreamSource):
    """The ten digits in order, two to a task: 0 and 1, then 2 and 3, ... (Zenke et al. 2017).

    Images reach the network as [28, 28, 1].

    Example:
        >>> import cljax
        >>> stream = cljax.streams.SplitMNIST(sample=True, samples_per_task=100).build()
        >>> stream.name, stream.num_tasks, [len(rows) for rows in stream.subsets(seed=0)]
        ('split-mnist[sample]', 5, [100, 100, 100, 100, 100])
    """

    val: ClassVar[float] = 0.1
    samples_per_class: ClassVar[None] = None
    samples_per_task: Count | None = None
    """Training images of each task; by default all but the validation images, one in ten of each
    digit."""
    num_tasks: Count = 5
    """T: 1, 2, 5 or 10, with 10 / T digits each."""
    pixels: Pixels = "unit"
    """Unit is 0 to 1; normalised has mean 0 and deviation 1 over the training images, as iTAML's
    code has it."""

    def check(self) -> None:
        super().check()
        if 10 % self.num_tasks:
            raise UserError(
                f"num_tasks is {self.num_tasks}, but ten digits split into 1, 2, 5 or 10 tasks."
            )

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens MNIST, or takes images of its form.

        Raises:
          UserError: for counts out of range or missing data.
        """
        digits, whole = self.digits(data)
        groups = np.arange(10).reshape(self.num_tasks, -1).tolist()
        transform = _transform(self.pixels)
        stream = split_by_class(self.kind, digits, groups, self, transform=transform)
        whole = whole and self.num_tasks == 5 and self.samples_per_task is None
        return replace(self.recorded(stream), published=whole)


class IncrementalMNIST(SplitOptions, OrderOptions, _MNIST, StreamSource, name="mnist-b5-5"):
    """Five digits, then the other five one at a time.

    Images reach the network as [28, 28, 1].
    """

    val: ClassVar[float] = 0.1
    samples_per_task: ClassVar[None] = None
    samples_per_class: Count | None = None
    """Training images of each digit; by default all but the validation images, one in ten of each
    digit."""
    base: Count = 5
    """Digits of the first task."""
    classes_per_task: Count = 1
    """Digits of each later task; the last has fewer where they do not divide."""
    pixels: Pixels = "unit"
    """Unit is 0 to 1; normalised has mean 0 and deviation 1 over the training images."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens MNIST, or takes images of its form.

        Raises:
          UserError: for counts out of range, an unknown order or missing data.
        """
        each, order = self.classes_per_task, self.class_order
        groups = class_groups(10, each, base=self.base, order=order, seed=self.class_seed)
        digits, _ = self.digits(data)
        return split_by_class(
            name_of("mnist", groups, each, self.base), digits, groups, self, renumber=True,
            transform=_transform(self.pixels),
        )  # fmt: skip


def _transform(pixels: Pixels) -> Transform:
    return transforms.pixels if pixels == "unit" else normalised(_MEAN, _DEVIATION)


def _tasks(
    name: str,
    data: ImageData,
    tables: np.ndarray,
    manifest: dict[str, np.ndarray],
    recorded: np.ndarray | None,
    samples_per_task: int,
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
        published=False,
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
