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
from typing import Literal, TypeAlias

import numpy as np

from cljax.data import class_folders as images_of
from cljax.data import class_names
from cljax.errors import UserError
from cljax.options import Count, StaticShare
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
    class_groups,
    name_of,
    order_1993,
    tasks_in_words,
)
from cljax.streams.options import (
    FilePath,
    IncrementOptions,
    ManifestOptions,
    PartOptions,
    SplitOptions,
    StreamSource,
)
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

__all__ = ["ClassFolders", "FolderOptions", "ImageNet"]

# iTAML's sizes at 112 pixels: training images resized to 120, tests to 115.
_TRAIN, _TEST = 120 / 112, 115 / 112
_USUAL = 256 / 224  # of either, elsewhere
Augment: TypeAlias = Literal["imagenet", "crop-flip", "standard", "none"]


class FolderOptions(SplitOptions):
    """Of streams of images in folders."""

    image_size: Count = 112
    """Height and width that the network sees."""
    augment: Augment = "imagenet"
    """Of training images. imagenet is a random box of the image resized (images stored a little
    larger, tests cut from the centre), a flip and a rotation of up to 10 degrees; crop-flip is the
    same without the rotation, of images stored at 8/7 of the size, as tests are resized; standard
    is a crop of the image with a margin of 4, flip and rotation."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Sides of stored training images, and what a test's shorter side becomes before a cut."""
        size = self.image_size
        if self.augment == "imagenet":
            return round(size * _TRAIN), round(size * _TEST)
        usual = round(size * _USUAL) if self.augment == "crop-flip" else size
        return usual, usual

    def stream(
        self, name: str, path: str, groups: list[list[int]], names: list[str], test_share: float
    ) -> Stream:
        """Opens the folders of the classes that tasks have, and makes the stream.

        Args:
          groups: of each task, places in ``names``.
        """
        size = self.image_size
        (stored, test_resize), augmented = self.sizes, None
        if self.augment == "imagenet":
            augmented = compose(random_resized_crop(size, stored), horizontal_flip(), rotation(10))
        elif self.augment == "crop-flip":
            augmented = compose(random_resized_crop(size, stored), horizontal_flip())
        elif self.augment == "standard":
            augmented = crop_flip_rotation()
        chosen = [names[c] for group in groups for c in group]
        number = {own: c for c, own in enumerate(sorted(chosen))}  # others are not even decoded
        data = images_of(
            path, size=stored, test_resize=test_resize, test_size=size, classes=chosen,
            test_share=test_share,
        )  # fmt: skip
        stream = split_by_class(
            name, data, [[number[names[c]] for c in group] for group in groups], self,
            renumber=True,
            transform=normalised(IMAGENET_MEAN, IMAGENET_STD, crop=size, augment=augmented),
        )  # fmt: skip
        return replace(stream, manifest={"class_names": np.array(chosen)})


class ClassFolders(PartOptions, FolderOptions, ManifestOptions, StreamSource):
    """Images in folders, one for each class, in tasks of new classes."""

    path: FilePath | None = None
    """ROOT with ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val), or with
    ROOT/CLASS/*.jpg; png, bmp, gif, webp, tif and pnm also."""
    test_share: StaticShare = 0.2
    """Where no training images lie apart, the share of each class's images that test."""

    def build(self) -> Stream:
        """Opens the folders.

        Raises:
          UserError: for a missing or unsuitable folder, or options out of range.
        """
        if self.path is None:
            raise UserError(
                "No folder of images is named; give --path, which holds one for each class."
            )
        names = class_names(self.path)
        groups = self.tasks(len(names))
        return self.recorded(self.stream(self.kind, self.path, groups, names, self.test_share))


class ImageNet(IncrementOptions, FolderOptions, StreamSource, name="imagenet"):
    """ImageNet in tasks of new classes, from a folder with train/CLASS and val/CLASS."""

    class_order: ClassOrder = "natural"
    """Natural, by name; seeded, in an order that --class-seed chooses; 1993, which is recorded for
    10, 100 and 1000 classes and, of 1000, first chooses ImageNet-Subset where up to 100 are used;
    or a FILE.json of your own. Outputs are numbered in that order."""
    data_dir: FilePath | None = None
    """The folder of ImageNet, or of the chosen classes alone."""

    @property
    def summary(self) -> str:
        cut = tasks_in_words(self.classes, self.classes_per_task, self.base)
        return f"{self.classes} classes of ImageNet {cut}."

    def build(self) -> Stream:
        """Opens the folder.

        Raises:
          UserError: for a missing or unsuitable folder, or options out of range.
        """
        if self.data_dir is None:
            raise UserError(
                "No folder of ImageNet is named; give --data-dir with train and val in it."
            )
        names = class_names(self.data_dir)
        if self.class_order == "1993" and len(names) == 1000 and self.classes <= 100:
            names = [names[c] for c in np.sort(order_1993(1000)[:100])]  # ImageNet-Subset
        each, base = self.classes_per_task, self.base
        groups = class_groups(
            len(names), each, base=base, classes=self.classes, order=self.class_order,
            seed=self.class_seed,
        )  # fmt: skip
        kind = "imagenet1k" if self.classes == 1000 else f"imagenet{self.classes}"
        name = name_of(kind, groups, each, base)
        return self.stream(name, self.data_dir, groups, names, test_share=0.2)
