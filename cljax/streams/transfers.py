"""The transfer streams of "Learning to Remember from a Multi-Task Teacher", and small ones.

In ``DATA-a-b`` or ``DATA-a-OTHER-b`` a is the classes of the first task, from DATA, and b, ... are
those of the new tasks. Held examples are the first halves of the new tasks' classes, or classes of
their own. Which classes a new task has is chosen by ``draw`` where there are more than it needs;
the first task is the same for every draw.

Small ones, of images pooled by 2 x 2: ``fashion-5-5``, ``cifar100-10-5``, ``fashion-5-mnist-5`` and
``fashion-4-3-3``, for the paper's experiments 1, 2, 4 and 5 (experiment 3 differs in the method
alone). At the published size: ``cifar10-5-5``, ``cifar10-5-cifar100-5``,
``cifar10-5-tinyimagenet-5`` and ``cifar10-10-10-10``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cljax.data import ImageData, check_images, class_names
from cljax.data import class_folders as images_of
from cljax.errors import UserError
from cljax.options import Count, Natural
from cljax.streams.base import Stream
from cljax.streams.options import DataOptions, FilePath, StreamSource
from cljax.streams.orders import permutation
from cljax.streams.transfer import TransferOptions, joined, pooled, transfer
from cljax.types import Pretraining

__all__ = [
    "CIFAR100_10_5", "CIFAR10_10_10_10", "CIFAR10_5_5", "CIFAR10_5_CIFAR100_5",
    "CIFAR10_5_TinyImageNet_5", "Fashion4_3_3", "Fashion5_5", "Fashion5_MNIST5",
]  # fmt: skip

_EVEN, _ODD = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
_SIZE = 64  # of Tiny-ImageNet's images


class _Small(TransferOptions, DataOptions, StreamSource):
    """Of small images and a network that learns the first task in a minute."""

    pool: Count = 2
    pretrain_steps: Count = 3000
    """Updates of 128 examples on the first task, before any method begins."""

    @property
    def pretraining(self) -> Pretraining:
        """200 epochs with drops at half and three quarters at full size (unstated in the paper)."""
        steps = self.pretrain_steps
        if steps < 10_000:
            # At 0.1 one seed in twelve ends at chance (mlp:32,8 on five classes of clothes), here
            # none.
            return Pretraining(steps, lr=0.03)
        return Pretraining(steps, weight_decay=1e-4, milestones=(0.5, 0.75))


class _Large(_Small):
    """Of images at the published size."""

    pool: Count = 1
    pretrain_steps: Count = 39000


class _Halves(_Small):
    """Classes of one data set; the first halves of the new tasks' classes are held."""

    source: ClassVar[str]  # name of the data set
    groups: ClassVar[tuple[Sequence[int], ...]]  # classes of the first task, then of each new one

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens the data set, or takes images of its form.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        images = self.images(self.source, data)
        check_images(images, 10)
        held = [c for group in self.groups[1:] for c in group]
        return transfer(
            self.kind, images, self.groups, self, held=held, held_share=0.5,
            pretraining=self.pretraining,
        )  # fmt: skip


class _OfFashion(DataOptions):
    data_dir: FilePath | None = None
    """Folder with the prepared data sets; else CLJAX_DATA_DIR, else ~/tensorflow_datasets. For
    Fashion-MNIST also fashion_mnist_15k.npz there or one above."""


class Fashion5_5(_OfFashion, _Halves, name="fashion-5-5"):
    """Fashion-MNIST: classes 0, 2, 4, 6 and 8, then the other five."""

    source = "fashion_mnist"
    groups = (_EVEN, _ODD)


class Fashion4_3_3(_OfFashion, _Halves, name="fashion-4-3-3"):
    """Fashion-MNIST: classes 0, 2, 4 and 6, then 1, 3 and 5, then 7, 8 and 9."""

    source = "fashion_mnist"
    groups = ((0, 2, 4, 6), (1, 3, 5), (7, 8, 9))
    steps: Count = 200


class CIFAR10_5_5(_Large, _Halves, name="cifar10-5-5"):
    """CIFAR-10: classes 0 to 4, then 5 to 9."""

    source = "cifar10"
    groups = (range(5), range(5, 10))


class CIFAR100_10_5(_Small, name="cifar100-10-5"):
    """CIFAR-100: ten of the classes 0 to 49, the other forty held; then five of 50 to 99."""

    pool: Count = 4
    draw: Natural = 0
    """Which five classes the new task has, 0 to 9; no two draws share one."""

    def build(self, data: ImageData | None = None) -> Stream:
        """Opens CIFAR-100, or takes images of its form.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        (new,) = _chosen("cifar100", range(50, 100), (5,), self.draw)
        images = self.images("cifar100", data)
        check_images(images, 100)
        order = permutation(50, "transfer", "cifar100", "first").tolist()
        return transfer(
            self.kind, images, (sorted(order[:10]), new), self, held=sorted(order[10:]),
            pretraining=self.pretraining,
        )  # fmt: skip


class Fashion5_MNIST5(_OfFashion, _Small, name="fashion-5-mnist-5"):
    """Fashion-MNIST classes 0, 2, 4, 6 and 8, the first halves of the others held; then digits."""

    draw: Natural = 0
    """Which five digits the new task has, 0 or 1 for the others."""

    def build(self, data: ImageData | None = None, digits: ImageData | None = None) -> Stream:
        """Opens Fashion-MNIST and MNIST, or takes images of their form.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        (new,) = _chosen("mnist", range(10, 20), (5,), self.draw)
        clothes, digits = self.images("fashion_mnist", data), self.images("mnist", digits)
        for part in (clothes, digits):
            check_images(part, 10)
        return transfer(
            self.kind, joined(clothes, digits, 10), (_EVEN, new), self, held=_ODD, held_share=0.5,
            pretraining=self.pretraining,
        )  # fmt: skip


class _CIFARs(_Large):
    """Of CIFAR-10 and, from class 10 on, CIFAR-100, of which 0 to 49 are held."""

    draw: Natural = 0
    """Which classes the new tasks have, from 0 on; no two draws share one."""

    def both(self, data: ImageData | None, hundred: ImageData | None) -> ImageData:
        """The two data sets as one."""
        ten, hundred = self.images("cifar10", data), self.images("cifar100", hundred)
        check_images(ten, 10)
        check_images(hundred, 100)
        return joined(ten, hundred, 10)


class CIFAR10_5_CIFAR100_5(_CIFARs, name="cifar10-5-cifar100-5"):
    """CIFAR-10 classes 0 to 4, then five of CIFAR-100's 50 to 99; its 0 to 49 are held."""

    sizes: ClassVar[tuple[int, ...]] = (5, 5)  # classes of the first task and of each new one

    def build(self, data: ImageData | None = None, hundred: ImageData | None = None) -> Stream:
        """Opens CIFAR-10 and CIFAR-100, or takes images of their form.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        first, *later = self.sizes
        new = _chosen("cifar100", range(60, 110), later, self.draw)
        return transfer(
            self.kind, self.both(data, hundred), (range(first), *new), self, held=range(10, 60),
            pretraining=self.pretraining,
        )  # fmt: skip


class CIFAR10_10_10_10(CIFAR10_5_CIFAR100_5, name="cifar10-10-10-10"):
    """CIFAR-10, then twice ten of CIFAR-100's classes 50 to 99; its 0 to 49 are held."""

    sizes: ClassVar[tuple[int, ...]] = (10, 10, 10)
    steps: Count = 300


class CIFAR10_5_TinyImageNet_5(_CIFARs, name="cifar10-5-tinyimagenet-5"):
    """CIFAR-10 classes 0 to 4, then five of Tiny-ImageNet; CIFAR-100's classes 0 to 49 are held."""

    path: FilePath | None = None
    """Folder of Tiny-ImageNet, whose val (or test) has a folder for each class, as train has; its
    images of 64 x 64 are first pooled to 32 x 32."""
    draw: Natural = 0
    """Which five classes the new task has, 0 to 39; no two draws share one."""

    def build(self, data: ImageData | None = None, hundred: ImageData | None = None) -> Stream:
        """Opens the three data sets, or takes images of the form of CIFAR-10 and CIFAR-100.

        Raises:
          UserError: for options that do not fit the data, or data that is missing.
        """
        if self.path is None:
            raise UserError("No folder of Tiny-ImageNet is named; give --path, with train and val.")
        names = class_names(self.path)
        (new,) = _chosen("tinyimagenet", range(len(names)), (5,), self.draw)
        tiny = pooled(images_of(self.path, size=_SIZE, classes=[names[c] for c in new]), 2)
        return transfer(
            self.kind, joined(self.both(data, hundred), tiny, 110), (range(5), range(110, 115)),
            self, held=range(10, 60), pretraining=self.pretraining,
        )  # fmt: skip


def _chosen(purpose: str, among: range, sizes: Sequence[int], draw: int) -> list[list[int]]:
    """The classes of the new tasks: part ``draw`` of a fixed permutation cut in equal parts."""
    count = len(among) // sum(sizes)
    if draw >= count:
        raise UserError(
            f"draw is {draw}, but {len(among)} classes in parts of {sum(sizes)} make the draws 0 "
            f"to {count - 1}."
        )
    order = permutation(len(among), "transfer", purpose, "new").tolist()
    rest = [among[i] for i in order[draw * sum(sizes) :]]
    groups = []
    for size in sizes:
        groups.append(sorted(rest[:size]))
        rest = rest[size:]
    return groups
