"""TinyImageNet in tasks of a few classes each, by La-MAML's protocol.

Each task has a head of its own, each seed its own order of the classes; a tenth of each class's
training images validates, the official validation images test. Images reach the network as
[64, 64, 3], less the mean of ImageNet and over its deviation.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), section 5.2, and its
released code (the paper validates on a part of the official validation images instead).
"""

from __future__ import annotations

from typing import Literal, get_args

from cljax.data import ImageData, check_images
from cljax.data.tinyimagenet import SIZE
from cljax.data.tinyimagenet import tinyimagenet as images_of
from cljax.errors import check_known, check_positive
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation, check_colour
from cljax.streams.classes import (
    PER_SEED,
    ClassOrder,
    check_options,
    class_groups,
    name_of,
    seed_orders,
)
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = ["tinyimagenet_40x5"]

_CLASSES = 200
_WHOLE = 100_000, 10_000  # training images and tests
Augment = Literal["none", "crop-flip"]


def tinyimagenet_40x5(
    data: ImageData | None = None,
    *,
    classes_per_task: int = 5,
    classes: int = _CLASSES,
    class_order: ClassOrder = PER_SEED,
    class_seed: int = 0,
    samples_per_task: int | None = None,
    val: float = 0.1,
    multi_head: bool = True,
    augment: Augment = "crop-flip",
    stream_manifest: str | None = None,
    data_dir: str | None = None,
) -> Stream:
    """TinyImageNet in 40 tasks of 5 new classes.

    Args:
      data: images to use instead of those found in a folder.
      classes_per_task: classes of each task.
      classes: how many classes to use, the first ones of the order: fewer for small runs.
      class_order: per-seed, in an order for each seed of a run, for many heads; natural, by name;
        seeded, in an order that --class-seed chooses; or a FILE.json of your own. Outputs are
        numbered in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      augment: of training images; crop-flip is a crop of the image with a margin of 4 and a flip.
      stream_manifest: .npz file of training and validation images of each seed and task, as every
        run leaves it in manifest/stream.npz.
      data_dir: folder with train and val, or with tiny-imagenet-200; else CLJAX_DATA_DIR, else
        ~/tensorflow_datasets.

    Raises:
      UserError: for counts out of range, an unknown order or augmentation, or missing data.
    """
    check_known("augmentation", augment, get_args(Augment))
    check_positive(classes=classes, classes_per_task=classes_per_task)
    check_options(
        class_seed=class_seed, samples_per_task=samples_per_task, val=val, multi_head=multi_head,
        stream_manifest=stream_manifest, data_dir=data_dir,
    )  # fmt: skip
    data = images_of(data_dir) if data is None else data
    there = int(data.train_y.max()) + 1
    order = None
    if class_order == PER_SEED:
        groups, order = seed_orders(there, classes_per_task, classes=classes, multi_head=multi_head)
    else:
        groups = class_groups(
            there, classes_per_task, classes=classes, order=class_order, seed=class_seed
        )
    check_images(data, there)
    check_colour(data, SIZE)
    whole = (len(data.train_y), len(data.test_y)) == _WHOLE and classes == _CLASSES
    options = (class_order, samples_per_task, val, multi_head, augment)
    return split_by_class(
        name_of("tinyimagenet", groups, classes_per_task, None), data, groups,
        samples_per_task=samples_per_task, multi_head=multi_head, hold_out=val, renumber=True,
        order=order,
        transform=normalised(IMAGENET_MEAN, IMAGENET_STD, augment=augmentation(augment)),
        published=whole and options == (PER_SEED, None, 0.1, True, "crop-flip"),
        stream_manifest=stream_manifest,
    )  # fmt: skip
