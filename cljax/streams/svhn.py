"""SVHN: the digits of house numbers, in tasks of a few digits each."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from cljax.data import ImageData, check_images
from cljax.options import Count
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation, check_colour
from cljax.streams.classes import class_groups
from cljax.streams.options import SampleOptions, SplitOptions, StreamSource
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = ["SplitSVHN"]


class SplitSVHN(SplitOptions, SampleOptions, StreamSource):
    """The ten digits of SVHN in order, two to a task: 0 and 1, then 2 and 3, ...

    As in iTAML (Rajasegaran et al. 2020, released configuration) but for the validation images,
    which it does not hold out (``val=0``): images [32, 32, 3] less the mean of ImageNet and over
    its deviation, flipped in training although they are digits. Classes are of unequal size, in
    the tests too, and the split "extra" is not used.
    """

    samples_per_class: ClassVar[None] = None
    sample: bool = False
    """Refused, for cljax ships no sample of SVHN."""
    classes_per_task: Count = 2
    """Digits of each task; the last has fewer where they do not divide."""
    augment: Literal["none", "standard"] = "standard"
    """Of training images; standard is a crop of the image with a margin of 4, a flip and a rotation
    of up to 10 degrees."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens SVHN (svhn_cropped), or takes images of its form.

        Raises:
          UserError: for counts out of range, or missing data.
        """
        groups = class_groups(10, self.classes_per_task)
        images = self.images("svhn_cropped", data)
        check_images(images, 10)
        check_colour(images)
        augmented = augmentation(self.augment)
        stream = split_by_class(
            self.kind, images, groups, self, renumber=True,
            transform=normalised(IMAGENET_MEAN, IMAGENET_STD, augment=augmented),
        )  # fmt: skip
        whole = images.source.startswith("tfds:svhn_cropped/") and self.samples_per_task is None
        options = (self.val, self.multi_head, self.augment)
        return replace(stream, published=whole and options == (0.0, False, "standard"))
