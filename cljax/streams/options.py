"""What a built-in stream is before its data is opened: a frozen dataclass of options.

    class Moons(SplitOptions, DataOptions, StreamSource):
        "Phases of the moon, two to a task."
        phases: Count = 8
        "How many of them."
        def build(self, data=None): return split_by_class(..., options=self)

The groups below are options that several streams have. A stream without one of a group's options
hides it, as in ``samples_per_class: ClassVar[None] = None``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeAlias

import numpy as np

from cljax.data import ImageData, images_or_sample
from cljax.errors import UserError, check_path
from cljax.options import Check, Count, Natural, Options, StaticShare
from cljax.streams.base import Stream
from cljax.streams.classes import PER_SEED, ClassOrder, class_groups, seed_orders
from cljax.streams.manifests import with_split

__all__ = [
    "DataOptions", "FilePath", "IncrementOptions", "ManifestOptions", "OrderOptions",
    "PartOptions", "SampleOptions", "SplitOptions", "StreamSource",
]  # fmt: skip

FilePath: TypeAlias = Annotated[str, Check(check_path)]


class StreamSource(Options):
    """The options that a stream is built from, and how; see the module."""

    def build(self, *data: ImageData) -> Stream:
        """Opens the data and makes the stream.

        Args:
          data: images to use instead of those found by name, for streams that take some.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        raise NotImplementedError


class DataOptions(Options):
    """Of streams of prepared data sets."""

    sample: ClassVar[bool] = False
    data_dir: FilePath | None = None
    """Folder with the prepared data sets; else CLJAX_DATA_DIR, else ~/tensorflow_datasets."""

    def images(self, name: str, data: ImageData | None = None) -> ImageData:
        """The images of a data set, or those that are given instead."""
        return images_or_sample(name, self.data_dir, self.sample) if data is None else data


class SampleOptions(DataOptions):
    """Of streams of data sets of which cljax ships a sample."""

    sample: bool = False
    """Use the sample that cljax ships."""


class ManifestOptions(Options):
    """Of streams whose tasks may learn from recorded examples."""

    stream_manifest: FilePath | None = None
    """.npz file of training and validation images of each seed and task, as every run leaves it in
    manifest/stream.npz."""

    def recorded(self, stream: Stream) -> Stream:
        """The stream with the recorded rows, if there are any."""
        return stream if self.stream_manifest is None else with_split(stream, self.stream_manifest)


class SplitOptions(Options):
    """Of streams whose tasks bring classes of their own; see ``split_by_class``."""

    samples_per_task: Count | None = None
    """Training images of each task; by default all but the validation images."""
    samples_per_class: Count | None = None
    """Of each class instead, for tasks that differ in size."""
    val: StaticShare = 0.1
    """Share of each class's training images, drawn anew for each seed, that validates."""
    multi_head: bool = False
    """Tell losses and predictions the task, so that each competes over its own classes
    (task-incremental) instead of all of them (class-incremental)."""

    def check(self) -> None:
        super().check()
        if self.val == 1:
            raise UserError(f"val is {self.val}, but it must be a share from 0 to below 1.")
        if self.samples_per_task is not None and self.samples_per_class is not None:
            raise UserError(
                f"samples_per_task is {self.samples_per_task} and samples_per_class is "
                f"{self.samples_per_class}, but only one of them can be given."
            )


class OrderOptions(Options):
    """Of streams that may bring their classes in several orders."""

    class_order: ClassOrder = "natural"
    """Natural, by number or by name; seeded, in an order that --class-seed chooses; 1993, which is
    recorded for 10, 100 and 1000 classes; or a FILE.json of your own. Outputs are numbered in that
    order."""
    class_seed: Natural = 0
    """Of the seeded order, which all seeds of a run share."""


class IncrementOptions(SplitOptions, OrderOptions):
    """Of streams whose tasks bring so many classes each, but perhaps for the first one."""

    classes_per_task: Count = 10
    """Classes of each task; the last has fewer where they do not divide."""
    base: Count | None = None
    """Classes of a first task that differs from the others; None: it has as many as they."""
    classes: Count = 100
    """How many classes to use, the first ones of the order: fewer for small runs."""

    def tasks(self, num_classes: int) -> tuple[list[list[int]], Callable[[int], np.ndarray] | None]:
        """The classes of each task, or their places in the order of each seed, and that order.

        Args:
          num_classes: of the data set.

        Raises:
          UserError: for counts out of range, or an unknown order.
        """
        each, base, classes = self.classes_per_task, self.base, self.classes
        if self.class_order == PER_SEED:
            return seed_orders(
                num_classes, each, base=base, classes=classes, multi_head=self.multi_head
            )
        order, seed = self.class_order, self.class_seed
        groups = class_groups(num_classes, each, base=base, classes=classes, order=order, seed=seed)
        return groups, None


class PartOptions(SplitOptions, OrderOptions):
    """Of streams that cut their classes, however many there are, into so many tasks."""

    samples_per_class: ClassVar[None] = None
    num_tasks: Count = 10
    """T; where the classes do not divide, the first tasks have one more."""
    classes: Count | None = None
    """How many classes to use, the first ones of the order; by default all."""

    def tasks(self, num_classes: int) -> list[list[int]]:
        """The classes of each task.

        Raises:
          UserError: for more tasks, or classes, than there are classes, or an unknown order.
        """
        count = num_classes if self.classes is None else self.classes
        if self.num_tasks > count:
            raise UserError(f"num_tasks is {self.num_tasks}, but there are only {count} classes.")
        order, seed = self.class_order, self.class_seed
        groups = class_groups(num_classes, 1, classes=self.classes, order=order, seed=seed)
        parts = np.array_split(np.concatenate(groups), self.num_tasks)
        return [part.tolist() for part in parts]
