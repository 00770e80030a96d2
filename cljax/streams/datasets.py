"""Any prepared data set of images and classes, in tasks of new classes."""

from __future__ import annotations

from typing import Literal

from cljax.data import images
from cljax.errors import UserError
from cljax.options import Count
from cljax.streams.base import Stream
from cljax.streams.cifar import augmentation
from cljax.streams.options import DataOptions, ManifestOptions, PartOptions, StreamSource
from cljax.streams.split import split_by_class
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised, pixels

__all__ = ["DatasetClasses"]


class DatasetClasses(PartOptions, ManifestOptions, DataOptions, StreamSource):
    """A data set of tensorflow-datasets, by its name, in tasks of new classes.

    Colour images reach the network less the mean of ImageNet and over its deviation, grey ones
    divided by 255. A subclass that fixes ``dataset`` is a stream by its own name:

        class SplitKMNIST(DatasetClasses, name="split-kmnist"):
            "KMNIST in order, two classes to a task."
            dataset: ClassVar[str] = "kmnist"
    """

    num_tasks: Count = 5
    dataset: str | None = None
    """Its name, such as food101; prepared in --data-dir, by tensorflow-datasets itself or by
    `cljax data NAME --prepare`."""
    image_size: Count | None = None
    """Height and width that images are resized to; needed where they differ."""
    augment: Literal["none", "standard", "crop-flip"] = "none"
    """Of training images; standard is a crop of the image with a margin of 4, a flip and a rotation
    of up to 10 degrees, crop-flip the same without the rotation."""

    @property
    def title(self) -> str:
        """The stream's name: that of a subclass, else the data set's and T."""
        named = type(self) is not DatasetClasses
        return self.kind if named else f"{self.dataset}-{self.num_tasks}"

    def build(self) -> Stream:
        """Opens the data set.

        Raises:
          UserError: for a missing or unsuitable data set, or options out of range.
        """
        if self.dataset is None:
            raise UserError("No data set is named; give --dataset, such as food101.")
        data = images(self.dataset, self.data_dir, size=self.image_size)
        groups = self.tasks(int(data.train_y.max()) + 1)
        augmented = augmentation(self.augment)
        grey = data.train_x.shape[-1] == 1
        scale = ((0.0,), (1.0,)) if grey else (IMAGENET_MEAN, IMAGENET_STD)
        plain = grey and augmented is None
        stream = split_by_class(
            self.title, data, groups, self, renumber=True,
            transform=pixels if plain else normalised(*scale, augment=augmented),
        )  # fmt: skip
        return self.recorded(stream)
