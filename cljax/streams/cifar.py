"""CIFAR-100, or CIFAR-10, in tasks of a few classes each.

In ``cifar100-AxB`` A is the number of tasks and B the classes of each; in ``cifar100-bB-A`` a
task of B classes comes first, then A equal ones of the others. Papers differ in what a name leaves
open: class order, augmentation, validation images, one head or many. These are options, and
recipes set them. The defaults of the former are those of iTAML (Rajasegaran et al. 2020, released
configurations) but for the validation images, which it does not hold out (``val=0``); those of the
latter are mnemonics training's (Liu et al. 2020, arXiv:2002.10211, section 5.1 and released code).
La-MAML's ``cifar100-20x5`` (Gupta et al. 2020, arXiv:2007.13904) has an order for each seed, many
heads, a tenth of each class's images for validation and its own augmentation.

``split-cifar10`` is CIFAR-10 in five tasks of two classes, as in dark experience replay (Buzzega et
al. 2020, arXiv:2004.07211) but for the validation images. Where the prepared data say that they
were made of JPEG files, which are close to the published images and not equal to them, its name
says so, ``split-cifar10[jpeg]``, and no published number stands beside a run.

Images reach the network as [32, 32, 3], less the mean of the data set and over its deviation: of
all pixels, or (of CIFAR-100) the mean of each image's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, TypeAlias

from cljax.data import ImageData, check_images, from_jpeg
from cljax.errors import UserError
from cljax.options import Count
from cljax.streams.augment import crop_flip, crop_flip_brightness, crop_flip_rotation
from cljax.streams.base import Augmentation, Stream
from cljax.streams.classes import PER_SEED, ClassOrder, class_groups, name_of, tasks_in_words
from cljax.streams.options import (
    IncrementOptions,
    ManifestOptions,
    SampleOptions,
    SplitOptions,
    StreamSource,
)
from cljax.streams.split import split_by_class
from cljax.streams.transforms import normalised

__all__ = [
    "CIFAR100", "CIFAR100_MEAN", "CIFAR100_MNEMONICS", "CIFAR100_STD", "CIFAR10_MEAN",
    "CIFAR10_STD", "Augment", "SplitCIFAR10", "augmentation", "check_colour",
]  # fmt: skip

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
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


class CIFAR100(IncrementOptions, ManifestOptions, SampleOptions, StreamSource, name="cifar100"):
    """CIFAR-100 in tasks of new classes."""

    sample: bool = False
    """Refused, for cljax ships no sample of CIFAR-100."""
    class_order: ClassOrder = "natural"
    """Natural, by number; seeded, in an order that --class-seed chooses; per-seed, in an order for
    each seed of a run, for many heads; 1993, the shuffle of LUCIR's and mnemonics' code; or a
    FILE.json of your own. Outputs are numbered in that order."""
    augment: Augment = "standard"
    """Of training images; standard is a crop of the image with a margin of 4, a flip and a rotation
    of up to 10 degrees, crop-flip the same without the rotation, crop-flip-brightness with a factor
    of 1 ± 63/255 instead, as La-MAML's code has it."""
    pixels: Literal["itaml", "mnemonics"] = "itaml"
    """Whose mean and deviation scale the images: itaml's, of all pixels, or mnemonics', with the
    smaller deviations (.2009, .1984, .2023)."""

    @property
    def summary(self) -> str:
        cut = tasks_in_words(self.classes, self.classes_per_task, self.base)
        return f"CIFAR-100 {cut}."

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens CIFAR-100, or takes images of its form.

        Raises:
          UserError: for counts out of range, an unknown order, or missing data.
        """
        groups, order = self.tasks(100)
        images = self.images("cifar100", data)
        check_images(images, 100)
        check_colour(images, _SIZE)
        own = self.pixels == "mnemonics"
        scale = CIFAR100_MNEMONICS if own else (CIFAR100_MEAN, CIFAR100_STD)
        stream = split_by_class(
            name_of("cifar100", groups, self.classes_per_task, self.base), images, groups, self,
            renumber=True, order=order,
            transform=normalised(*scale, augment=augmentation(self.augment)),
        )  # fmt: skip
        whole = images.source.startswith("tfds:cifar100/") and self.classes == 100
        whole = whole and self.samples_per_task is None and self.samples_per_class is None
        options = (
            self.base, self.class_order, self.val, self.multi_head, self.augment, self.pixels,
        )  # fmt: skip
        return replace(self.recorded(stream), published=whole and options in _PUBLISHED)


class SplitCIFAR10(SplitOptions, SampleOptions, StreamSource, name="split-cifar10"):
    """CIFAR-10 in tasks of two new classes: 0 and 1, then 2 and 3, ..."""

    samples_per_class: ClassVar[None] = None
    sample: bool = False
    """Refused, for cljax ships no sample of CIFAR-10."""
    classes_per_task: Count = 2
    """Classes of each task; the last has fewer where they do not divide."""
    augment: Augment = "crop-flip"
    """Of training images; crop-flip is a crop of the image with a margin of 4 and a flip, standard
    the same with a rotation of up to 10 degrees, crop-flip-brightness with a factor of
    1 ± 63/255."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens CIFAR-10, or takes images of its form.

        Raises:
          UserError: for counts out of range, or missing data.
        """
        groups = class_groups(10, self.classes_per_task)
        images = self.images("cifar10", data)
        if data is None and from_jpeg("cifar10", self.data_dir):
            images = images._replace(mark="jpeg")
        check_images(images, 10)
        check_colour(images, _SIZE)
        augmented = augmentation(self.augment)
        stream = split_by_class(
            self.kind, images, groups, self, renumber=True,
            transform=normalised(CIFAR10_MEAN, CIFAR10_STD, augment=augmented),
        )  # fmt: skip
        whole = images.source.startswith("tfds:cifar10/") and self.samples_per_task is None
        options = (images.mark, self.classes_per_task, self.val, self.multi_head, self.augment)
        return replace(stream, published=whole and options == ("", 2, 0.0, False, "crop-flip"))


def augmentation(name: Augment) -> Augmentation | None:
    """The augmentation that an option names, for images whose size it keeps."""
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
