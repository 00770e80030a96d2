"""Streams of images in folders, one for each class, and ImageNet as one of them.

Training images are augmented from stored squares, not from files, so what the centre crop of
``cljax.data.class_folders`` cuts off a longer side is never seen. The folder is taken at its
word: nothing checks that it holds ImageNet, so there is no comparison with published numbers.

In ``imagenet100-AxB`` A is the number of tasks and B the classes of each, with iTAML's sizes and
augmentation; in ``imagenet100-bB-A`` a task of B classes comes first, then A equal ones of the
others, as in mnemonics training (Liu et al. 2020, arXiv:2002.10211, section 5.1 and released code):
224 pixels, of images stored at 256, which take 25 GB of memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from cljax.data import class_folders as images_of
from cljax.data import class_names
from cljax.errors import UserError, check_known, check_positive, check_share, given
from cljax.streams.augment import (
    compose,
    crop_flip_rotation,
    horizontal_flip,
    random_resized_crop,
    rotation,
)
from cljax.streams.base import Stream
from cljax.streams.classes import (
    ClassOrder,
    check_options,
    class_groups,
    name_of,
    order_1993,
)
from cljax.streams.named import with_defaults
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = [
    "class_folders", "imagenet", "imagenet100_10x10", "imagenet100_b50_5", "imagenet100_b50_10",
    "imagenet100_b50_25", "imagenet1k_10x100",
]  # fmt: skip

# iTAML's sizes at 112 pixels: training images resized to 120, tests to 115.
_TRAIN, _TEST = 120 / 112, 115 / 112
_USUAL = 256 / 224  # of either, elsewhere
Augment: TypeAlias = Literal["imagenet", "crop-flip", "standard", "none"]


def class_folders(
    *,
    path: str | None = None,
    num_tasks: int = 10,
    classes: int | None = None,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_task: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    image_size: int = 112,
    augment: Augment = "imagenet",
    test_share: float = 0.2,
    stream_manifest: str | None = None,
) -> Stream:
    """Images in folders, one for each class, in tasks of new classes.

    Args:
      path: ROOT with ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val), or with
        ROOT/CLASS/*.jpg; png, bmp, gif, webp, tif and pnm also.
      num_tasks: T; where the classes do not divide, the last task (or tasks) have fewer.
      classes: how many classes to use, the first ones of the order; by default all.
      class_order: natural, by name; seeded, in an order that --class-seed chooses; 1993, which
        is recorded for 10, 100 and 1000 classes; or a FILE.json of your own. Outputs are numbered
        in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      image_size: height and width that the network sees.
      augment: of training images. imagenet is a random box of the image resized (images stored a
        little larger, tests cut from the centre), a flip and a rotation of up to 10 degrees;
        crop-flip is the same without the rotation, of images stored at 8/7 of the size, as tests
        are resized; standard is a crop of the image with a margin of 4, flip and rotation.
      test_share: where no training images lie apart, the share of each class's images that test.
      stream_manifest: .npz file of training and validation images of each seed and task, as every
        run leaves it in manifest/stream.npz.

    Raises:
      UserError: for a missing or unsuitable folder, or options out of range.
    """
    if path is None:
        raise UserError(
            "No folder of images is named; give --path, which holds one for each class."
        )
    check_positive(num_tasks=num_tasks, image_size=image_size, **given(classes=classes))
    check_share(test_share=test_share)
    check_known("augmentation", augment, get_args(Augment))
    check_options(
        class_seed=class_seed, samples_per_task=samples_per_task, val=val, multi_head=multi_head,
        stream_manifest=stream_manifest, path=path,
    )  # fmt: skip
    names = class_names(path)
    count = len(names) if classes is None else classes
    if num_tasks > count:
        raise UserError(f"num_tasks is {num_tasks}, but there are only {count} classes.")
    groups = class_groups(len(names), 1, classes=classes, order=class_order, seed=class_seed)
    parts = np.array_split(np.concatenate(groups), num_tasks)  # the first ones are the larger
    return _stream(
        "class-folders", path, [part.tolist() for part in parts], names, image_size, augment,
        test_share, samples_per_task, val, multi_head, stream_manifest=stream_manifest,
    )  # fmt: skip


def imagenet(
    *,
    classes: int = 100,
    classes_per_task: int = 10,
    base: int | None = None,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_task: int | None = None,
    samples_per_class: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    image_size: int = 112,
    augment: Augment = "imagenet",
    data_dir: str | None = None,
) -> Stream:
    """ImageNet in tasks of new classes, from a folder with train/CLASS and val/CLASS.

    Args:
      classes: how many classes to use, the first ones of the order.
      classes_per_task: classes of each task; the last has fewer where they do not divide.
      base: classes of a first task that differs from the others; None: it has as many as they.
      class_order: natural, by name; seeded, in an order that --class-seed chooses; 1993, which
        is recorded for 10, 100 and 1000 classes and, of 1000, first chooses ImageNet-Subset where
        up to 100 are used; or a FILE.json of your own. Outputs are numbered in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      samples_per_class: of each class instead, for tasks that differ in size.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      image_size: height and width that the network sees.
      augment: of training images. imagenet is a random box of the image resized (images stored a
        little larger, tests cut from the centre), a flip and a rotation of up to 10 degrees;
        crop-flip is the same without the rotation, of images stored at 8/7 of the size, as tests
        are resized; standard is a crop of the image with a margin of 4, flip and rotation.
      data_dir: the folder of ImageNet, or of the chosen classes alone.

    Raises:
      UserError: for a missing or unsuitable folder, or options out of range.
    """
    if data_dir is None:
        raise UserError("No folder of ImageNet is named; give --data-dir with train and val in it.")
    check_positive(
        classes=classes, classes_per_task=classes_per_task, image_size=image_size,
        **given(base=base),
    )  # fmt: skip
    check_known("augmentation", augment, get_args(Augment))
    check_options(
        class_seed=class_seed, samples_per_task=samples_per_task,
        samples_per_class=samples_per_class, val=val, multi_head=multi_head, data_dir=data_dir,
    )  # fmt: skip
    names = class_names(data_dir)
    if class_order == "1993" and len(names) == 1000 and classes <= 100:
        names = [names[c] for c in np.sort(order_1993(1000)[:100])]  # ImageNet-Subset
    groups = class_groups(
        len(names), classes_per_task, base=base, classes=classes, order=class_order,
        seed=class_seed,
    )  # fmt: skip
    kind = "imagenet1k" if classes == 1000 else f"imagenet{classes}"
    return _stream(
        name_of(kind, groups, classes_per_task, base), data_dir, groups, names, image_size,
        augment, 0.2, samples_per_task, val, multi_head, samples_per_class,
    )  # fmt: skip


imagenet100_10x10 = with_defaults(
    imagenet, "imagenet100-10x10", "A hundred classes of ImageNet in 10 tasks of 10 new ones."
)
imagenet1k_10x100 = with_defaults(
    imagenet,
    "imagenet1k-10x100",
    "The thousand classes of ImageNet in 10 tasks of 100 new ones.",
    classes=1000,
    classes_per_task=100,
)
imagenet100_b50_5, imagenet100_b50_10, imagenet100_b50_25 = (
    with_defaults(
        imagenet,
        f"imagenet100-b50-{tasks}",
        f"ImageNet-Subset in a task of 50 classes, then {tasks} of {50 // tasks} new ones.",
        base=50,
        classes_per_task=50 // tasks,
        class_order="1993",
        val=0.0,
        image_size=224,
        augment="crop-flip",
    )
    for tasks in (5, 10, 25)
)


def _stream(
    name: str,
    path: str,
    groups: list[list[int]],
    names: list[str],
    size: int,
    augment: str,
    test_share: float,
    samples_per_task: int | None,
    val: float,
    multi_head: bool,
    samples_per_class: int | None = None,
    stream_manifest: str | None = None,
) -> Stream:
    stored, test_resize, augmented = size, size, None
    if augment == "imagenet":
        stored, test_resize = round(size * _TRAIN), round(size * _TEST)
        augmented = compose(random_resized_crop(size, stored), horizontal_flip(), rotation(10))
    elif augment == "crop-flip":
        stored = test_resize = round(size * _USUAL)
        augmented = compose(random_resized_crop(size, stored), horizontal_flip())
    elif augment == "standard":
        augmented = crop_flip_rotation()
    chosen = [names[c] for group in groups for c in group]
    number = {own: c for c, own in enumerate(sorted(chosen))}  # others are not even decoded
    data = images_of(
        path, size=stored, test_resize=test_resize, test_size=size, classes=chosen,
        test_share=test_share,
    )  # fmt: skip
    stream = split_by_class(
        name, data, [[number[names[c]] for c in group] for group in groups],
        samples_per_task=samples_per_task, samples_per_class=samples_per_class,
        multi_head=multi_head, hold_out=val, renumber=True,
        transform=normalised(IMAGENET_MEAN, IMAGENET_STD, crop=size, augment=augmented),
        stream_manifest=stream_manifest,
    )  # fmt: skip
    return replace(stream, manifest={"class_names": np.array(chosen)})
