"""CIFAR-100 in tasks of a few classes each.

In ``cifar100-AxB`` A is the number of tasks and B the classes of each. Papers differ in what a
name leaves open: class order, augmentation, validation images, one head or many. These are
options, and recipes set them. The defaults are those of iTAML (Rajasegaran et al. 2020, released
configurations) but for the validation images, which it does not hold out (``val=0``).

Images reach the network as [32, 32, 3], less the mean of CIFAR-100 and over its deviation.
"""

from __future__ import annotations

from typing import Literal

from cljax.data import ImageData, check_images, images_or_sample
from cljax.errors import UserError, check_known
from cljax.streams.augment import crop_flip_rotation
from cljax.streams.base import Augmentation, Stream
from cljax.streams.named import with_defaults
from cljax.streams.split import ClassOrder, class_groups, split_by_class
from cljax.streams.transforms import normalised

__all__ = ["CIFAR100_MEAN", "CIFAR100_STD", "augmentation", "check_colour", "cifar100",
           "cifar100_2x50", "cifar100_5x20", "cifar100_10x10", "cifar100_20x5"]  # fmt: skip

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# Options of published protocols: class order, share of validation images, many heads, augmentation.
_PUBLISHED = (("natural", 0.0, False, "standard"),)  # iTAML


def cifar100(
    data: ImageData | None = None,
    *,
    classes_per_task: int = 10,
    classes: int = 100,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_task: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    augment: Literal["none", "standard"] = "standard",
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """CIFAR-100 in tasks of new classes.

    Args:
      data: images to use instead of those found by name.
      classes_per_task: classes of each task; the last has fewer where they do not divide.
      classes: how many classes to use, the first ones of the order: fewer for small runs.
      class_order: natural, by number, or seeded, in an order that --class-seed chooses; outputs
        are numbered in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      augment: of training images; standard is a crop of the image with a margin of 4, a flip and
        a rotation of up to 10 degrees.
      data_dir: folder with the prepared CIFAR-100; else CLJAX_DATA_DIR, else
        ~/tensorflow_datasets.
      sample: refused, for cljax ships no sample of CIFAR-100.

    Raises:
      UserError: for counts out of range, an unknown order or augmentation, or missing data.
    """
    augmented = augmentation(augment)
    groups = class_groups(
        100, classes_per_task, classes=classes, order=class_order, seed=class_seed
    )
    data = images_or_sample("cifar100", data_dir, sample) if data is None else data
    check_images(data, 100)
    check_colour(data)
    whole = data.source.startswith("tfds:cifar100/") and classes == 100 and samples_per_task is None
    return split_by_class(
        f"cifar100-{len(groups)}x{classes_per_task}", data, groups,
        samples_per_task=samples_per_task, multi_head=multi_head, hold_out=val, renumber=True,
        transform=normalised(CIFAR100_MEAN, CIFAR100_STD, augment=augmented),
        published=whole and (class_order, val, multi_head, augment) in _PUBLISHED,
    )  # fmt: skip


def augmentation(name: Literal["none", "standard"]) -> Augmentation | None:
    """The augmentation that an option names, for images whose size it keeps."""
    check_known("augmentation", name, ("none", "standard"))
    return crop_flip_rotation() if name == "standard" else None


def check_colour(data: ImageData) -> None:
    """Raises UserError unless images are [H, W, 3]."""
    for x in (data.train_x, data.test_x):
        if x.ndim != 4 or x.shape[-1] != 3:
            raise UserError(
                f"Images of {data.source} have shape {list(x.shape[1:])}, but this stream needs "
                "[height, width, 3]."
            )


cifar100_10x10, cifar100_5x20, cifar100_20x5, cifar100_2x50 = (
    with_defaults(
        cifar100,
        f"cifar100-{100 // each}x{each}",
        f"CIFAR-100 in {100 // each} tasks of {each} new classes.",
        classes_per_task=each,
    )
    for each in (10, 20, 5, 50)
)
