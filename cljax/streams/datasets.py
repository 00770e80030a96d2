"""Any prepared data set of images and classes, in tasks of new classes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cljax.data import images
from cljax.errors import UserError, check_positive, given
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation
from cljax.streams.classes import (
    ClassOrder,
    check_options,
    class_groups,
)
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised, pixels

__all__ = ["dataset_classes"]


def dataset_classes(
    *,
    dataset: str | None = None,
    num_tasks: int = 5,
    classes: int | None = None,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_task: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    image_size: int | None = None,
    augment: Literal["none", "standard", "crop-flip"] = "none",
    stream_manifest: str | None = None,
    data_dir: str | None = None,
) -> Stream:
    """A data set of tensorflow-datasets, by its name, in tasks of new classes.

    Colour images reach the network less the mean of ImageNet and over its deviation, grey ones
    divided by 255.

    Args:
      dataset: its name, such as food101; prepared in --data-dir, by tensorflow-datasets itself or
        by `cljax data NAME --prepare`.
      num_tasks: T; where the classes do not divide, the first tasks have one more.
      classes: how many classes to use, the first ones of the order; by default all.
      class_order: natural, by number; seeded, in an order that --class-seed chooses; 1993, which
        is recorded for 10, 100 and 1000 classes; or a FILE.json of your own. Outputs are numbered
        in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      image_size: height and width that images are resized to; needed where they differ.
      augment: of training images; standard is a crop of the image with a margin of 4, a flip and
        a rotation of up to 10 degrees, crop-flip the same without the rotation.
      stream_manifest: .npz file of training and validation images of each seed and task, as every
        run leaves it in manifest/stream.npz.
      data_dir: folder with the prepared data set; else CLJAX_DATA_DIR, else
        ~/tensorflow_datasets.

    Raises:
      UserError: for a missing or unsuitable data set, or options out of range.
    """
    if dataset is None:
        raise UserError("No data set is named; give --dataset, such as food101.")
    augmented = augmentation(augment)
    check_positive(num_tasks=num_tasks, **given(classes=classes, image_size=image_size))
    check_options(
        class_seed=class_seed, samples_per_task=samples_per_task, val=val, multi_head=multi_head,
        stream_manifest=stream_manifest, data_dir=data_dir,
    )  # fmt: skip
    data = images(dataset, data_dir, size=image_size)
    there = int(data.train_y.max()) + 1
    count = there if classes is None else classes
    if num_tasks > count:
        raise UserError(f"num_tasks is {num_tasks}, but there are only {count} classes.")
    chosen = np.concatenate(
        class_groups(there, 1, classes=classes, order=class_order, seed=class_seed)
    )
    grey = data.train_x.shape[-1] == 1
    scale = ((0.0,), (1.0,)) if grey else (IMAGENET_MEAN, IMAGENET_STD)
    plain = grey and augmented is None
    return split_by_class(
        f"{dataset}-{num_tasks}", data, [g.tolist() for g in np.array_split(chosen, num_tasks)],
        samples_per_task=samples_per_task, multi_head=multi_head, hold_out=val, renumber=True,
        transform=pixels if plain else normalised(*scale, augment=augmented),
        stream_manifest=stream_manifest,
    )  # fmt: skip
