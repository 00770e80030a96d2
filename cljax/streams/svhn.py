"""SVHN: the digits of house numbers, in tasks of a few digits each."""

from __future__ import annotations

from typing import Literal

from cljax.data import ImageData, check_images, images_or_sample
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation, check_colour
from cljax.streams.classes import check_options
from cljax.streams.split import class_groups, split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = ["svhn"]


def svhn(
    data: ImageData | None = None,
    *,
    classes_per_task: int = 2,
    samples_per_task: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    augment: Literal["none", "standard"] = "standard",
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """The ten digits of SVHN in order, two to a task: 0 and 1, then 2 and 3, ...

    As in iTAML (Rajasegaran et al. 2020, released configuration) but for the validation images,
    which it does not hold out (``val=0``): images [32, 32, 3] less the mean of ImageNet and over
    its deviation, flipped in training although they are digits. Classes are of unequal size, in
    the tests too, and the split "extra" is not used.

    Args:
      data: images to use instead of those found by name.
      classes_per_task: digits of each task; the last has fewer where they do not divide.
      samples_per_task: training images of each task; by default all but the validation images.
      val: share of each digit's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own digits
        (task-incremental) instead of all ten (class-incremental).
      augment: of training images; standard is a crop of the image with a margin of 4, a flip and
        a rotation of up to 10 degrees.
      data_dir: folder with the prepared svhn_cropped; else CLJAX_DATA_DIR, else
        ~/tensorflow_datasets.
      sample: refused, for cljax ships no sample of SVHN.

    Raises:
      UserError: for counts out of range, an unknown augmentation, or missing data.
    """
    augmented = augmentation(augment)
    check_options(
        samples_per_task=samples_per_task, val=val, multi_head=multi_head, sample=sample,
        data_dir=data_dir,
    )  # fmt: skip
    groups = class_groups(10, classes_per_task)
    data = images_or_sample("svhn_cropped", data_dir, sample) if data is None else data
    check_images(data, 10)
    check_colour(data)
    whole = data.source.startswith("tfds:svhn_cropped/") and samples_per_task is None
    return split_by_class(
        "split-svhn", data, groups,
        samples_per_task=samples_per_task, multi_head=multi_head, hold_out=val, renumber=True,
        transform=normalised(IMAGENET_MEAN, IMAGENET_STD, augment=augmented),
        published=whole and (val, multi_head, augment) == (0.0, False, "standard"),
    )  # fmt: skip
