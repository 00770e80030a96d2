"""CIFAR-100 in tasks of a few classes each.

In ``cifar100-AxB`` A is the number of tasks and B the classes of each; in ``cifar100-bB-A`` a
task of B classes comes first, then A equal ones of the others. Papers differ in what a name leaves
open: class order, augmentation, validation images, one head or many. These are options, and
recipes set them. The defaults of the former are those of iTAML (Rajasegaran et al. 2020, released
configurations) but for the validation images, which it does not hold out (``val=0``); those of the
latter are mnemonics training's (Liu et al. 2020, arXiv:2002.10211, section 5.1 and released code).
La-MAML's ``cifar100-20x5`` (Gupta et al. 2020, arXiv:2007.13904) has an order for each seed, many
heads, a tenth of each class's images for validation and its own augmentation.

Images reach the network as [32, 32, 3], less the mean of CIFAR-100 and over its deviation: of all
pixels, or the mean of each image's own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from cljax.data import ImageData, check_images, images_or_sample
from cljax.errors import UserError, check_known, check_positive
from cljax.streams.augment import crop_flip, crop_flip_brightness, crop_flip_rotation
from cljax.streams.base import Augmentation, Stream
from cljax.streams.classes import (
    PER_SEED,
    ClassOrder,
    check_options,
    class_groups,
    name_of,
    seed_orders,
)
from cljax.streams.named import with_defaults
from cljax.streams.split import split_by_class
from cljax.streams.transforms import normalised

__all__ = [
    "CIFAR100_MEAN", "CIFAR100_MNEMONICS", "CIFAR100_STD", "Augment", "augmentation",
    "check_colour", "cifar100", "cifar100_2x50", "cifar100_5x20", "cifar100_10x10",
    "cifar100_20x5", "cifar100_b50_5", "cifar100_b50_10", "cifar100_b50_25",
]  # fmt: skip

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR100_MNEMONICS = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)  # mean, deviation
Augment: TypeAlias = Literal["none", "standard", "crop-flip", "crop-flip-brightness"]
# Options of published protocols: first task, class order, share of validation images, many heads,
# augmentation, whose mean and deviation.
_PUBLISHED = (
    (None, "natural", 0.0, False, "standard", "itaml"),
    (50, "1993", 0.0, False, "crop-flip", "mnemonics"),
    (None, PER_SEED, 0.1, True, "crop-flip-brightness", "itaml"),  # La-MAML's
)
_SIZE = 32  # height and width


def cifar100(
    data: ImageData | None = None,
    *,
    classes_per_task: int = 10,
    base: int | None = None,
    classes: int = 100,
    class_order: ClassOrder = "natural",
    class_seed: int = 0,
    samples_per_task: int | None = None,
    samples_per_class: int | None = None,
    val: float = 0.1,
    multi_head: bool = False,
    augment: Augment = "standard",
    pixels: Literal["itaml", "mnemonics"] = "itaml",
    stream_manifest: str | None = None,
    data_dir: str | None = None,
    sample: bool = False,
) -> Stream:
    """CIFAR-100 in tasks of new classes.

    Args:
      data: images to use instead of those found by name.
      classes_per_task: classes of each task; the last has fewer where they do not divide.
      base: classes of a first task that differs from the others; None: it has as many as they.
      classes: how many classes to use, the first ones of the order: fewer for small runs.
      class_order: natural, by number; seeded, in an order that --class-seed chooses; per-seed, in
        an order for each seed of a run, for many heads; 1993, the shuffle of LUCIR's and
        mnemonics' code; or a FILE.json of your own. Outputs are numbered in that order.
      class_seed: of the seeded order, which all seeds of a run share.
      samples_per_task: training images of each task; by default all but the validation images.
      samples_per_class: of each class instead, for tasks that differ in size.
      val: share of each class's training images, drawn anew for each seed, that validates.
      multi_head: tell losses and predictions the task, so that each competes over its own
        classes (task-incremental) instead of all of them (class-incremental).
      augment: of training images; standard is a crop of the image with a margin of 4, a flip and
        a rotation of up to 10 degrees, crop-flip the same without the rotation,
        crop-flip-brightness with a factor of 1 ± 63/255 instead, as La-MAML's code has it.
      pixels: whose mean and deviation scale the images: itaml's, of all pixels, or mnemonics',
        with the smaller deviations (.2009, .1984, .2023).
      stream_manifest: .npz file of training and validation images of each seed and task, as every
        run leaves it in manifest/stream.npz.
      data_dir: folder with the prepared CIFAR-100; else CLJAX_DATA_DIR, else
        ~/tensorflow_datasets.
      sample: refused, for cljax ships no sample of CIFAR-100.

    Raises:
      UserError: for counts out of range, an unknown order or augmentation, or missing data.
    """
    augmented = augmentation(augment)
    check_known("pixels", pixels, ("itaml", "mnemonics"))
    check_positive(classes=classes, classes_per_task=classes_per_task)
    check_options(
        class_seed=class_seed, samples_per_task=samples_per_task,
        samples_per_class=samples_per_class, val=val, multi_head=multi_head, sample=sample,
        stream_manifest=stream_manifest, data_dir=data_dir,
    )  # fmt: skip
    scale = CIFAR100_MNEMONICS if pixels == "mnemonics" else (CIFAR100_MEAN, CIFAR100_STD)
    order = None
    if class_order == PER_SEED:
        groups, order = seed_orders(
            100, classes_per_task, base=base, classes=classes, multi_head=multi_head
        )
    else:
        groups = class_groups(
            100, classes_per_task, base=base, classes=classes, order=class_order, seed=class_seed
        )
    data = images_or_sample("cifar100", data_dir, sample) if data is None else data
    check_images(data, 100)
    check_colour(data, _SIZE)
    whole = data.source.startswith("tfds:cifar100/") and classes == 100
    whole = whole and samples_per_task is None and samples_per_class is None
    options = (base, class_order, val, multi_head, augment, pixels)
    return split_by_class(
        name_of("cifar100", groups, classes_per_task, base), data, groups,
        samples_per_task=samples_per_task, samples_per_class=samples_per_class,
        multi_head=multi_head, hold_out=val, renumber=True, order=order,
        transform=normalised(*scale, augment=augmented),
        published=whole and options in _PUBLISHED, stream_manifest=stream_manifest,
    )  # fmt: skip


def augmentation(name: Augment) -> Augmentation | None:
    """The augmentation that an option names, for images whose size it keeps."""
    check_known("augmentation", name, get_args(Augment))
    made = {
        "standard": crop_flip_rotation,
        "crop-flip": crop_flip,
        "crop-flip-brightness": crop_flip_brightness,
    }
    return None if name == "none" else made[name]()


def check_colour(data: ImageData, size: int | None = None) -> None:
    """Raises UserError unless images are [H, W, 3], and of ``size`` pixels each way if given."""
    for x in (data.train_x, data.test_x):
        if size is not None and x.shape[1:] != (size, size, 3):
            raise UserError(
                f"Images of {data.source} have shape {list(x.shape[1:])}, but this stream needs "
                f"[{size}, {size}, 3]."
            )
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
cifar100_b50_5, cifar100_b50_10, cifar100_b50_25 = (
    with_defaults(
        cifar100,
        f"cifar100-b50-{tasks}",
        f"CIFAR-100 in a task of 50 classes, then {tasks} of {50 // tasks} new ones.",
        base=50,
        classes_per_task=50 // tasks,
        class_order="1993",
        val=0.0,
        augment="crop-flip",
        pixels="mnemonics",
    )
    for tasks in (5, 10, 25)
)
