"""TinyImageNet in tasks of a few classes each, by La-MAML's protocol.

Each task has a head of its own, each seed its own order of the classes; a tenth of each class's
training images validates, the official validation images test. Images reach the network as
[64, 64, 3], less the mean of ImageNet and over its deviation.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), section 5.2, and its
released code (the paper validates on a part of the official validation images instead).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from cljax.data import ImageData, check_images
from cljax.data.tinyimagenet import SIZE
from cljax.data.tinyimagenet import tinyimagenet as images_of
from cljax.options import Count
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation, check_colour
from cljax.streams.classes import PER_SEED, ClassOrder, name_of
from cljax.streams.options import FilePath, IncrementOptions, ManifestOptions, StreamSource
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = ["TinyImageNet"]

_CLASSES = 200
_WHOLE = 100_000, 10_000  # training images and tests


class TinyImageNet(IncrementOptions, ManifestOptions, StreamSource, name="tinyimagenet-40x5"):
    """TinyImageNet in 40 tasks of 5 new classes."""

    base: ClassVar[None] = None
    samples_per_class: ClassVar[None] = None
    classes_per_task: Count = 5
    """Classes of each task."""
    classes: Count = _CLASSES
    class_order: ClassOrder = PER_SEED
    """Per-seed, in an order for each seed of a run, for many heads; natural, by name; seeded, in an
    order that --class-seed chooses; or a FILE.json of your own. Outputs are numbered in that
    order."""
    multi_head: bool = True
    augment: Literal["none", "crop-flip"] = "crop-flip"
    """Of training images; crop-flip is a crop of the image with a margin of 4 and a flip."""
    data_dir: FilePath | None = None
    """Folder with train and val, or with tiny-imagenet-200; else CLJAX_DATA_DIR, else
    ~/tensorflow_datasets."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens TinyImageNet, or takes images of its form.

        Raises:
          UserError: for counts out of range, an unknown order, or missing data.
        """
        images = images_of(self.data_dir) if data is None else data
        there = int(images.train_y.max()) + 1
        groups, order = self.tasks(there)
        check_images(images, there)
        check_colour(images, SIZE)
        transform = normalised(IMAGENET_MEAN, IMAGENET_STD, augment=augmentation(self.augment))
        stream = split_by_class(
            name_of("tinyimagenet", groups, self.classes_per_task, None), images, groups, self,
            renumber=True, order=order, transform=transform,
        )  # fmt: skip
        whole = (len(images.train_y), len(images.test_y)) == _WHOLE and self.classes == _CLASSES
        options = (
            self.class_order, self.samples_per_task, self.val, self.multi_head, self.augment,
        )  # fmt: skip
        as_published = options == (PER_SEED, None, 0.1, True, "crop-flip")
        return replace(self.recorded(stream), published=whole and as_published)
