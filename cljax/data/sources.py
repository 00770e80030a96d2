"""The data sets cljax reads, as a table, and the arrays it makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cljax.errors import UserError

__all__ = [
    "SOURCES",
    "ImageData",
    "Source",
    "check_images",
    "digest",
    "licences",
    "mark_of",
    "marked",
]


class Source(NamedTuple):
    """A data set of tensorflow-datasets, and what of its examples is read."""

    name: str  # in tensorflow-datasets
    num_classes: int
    licence: str
    citation: str
    image: str = "image"
    label: str = "label"
    archive: str = ""  # file that holds a part of it, see ``cljax.data.archive``
    mark: str = ""  # of that part, in the names of streams
    test: str = "test"  # the split that tests
    size: int | None = None  # height and width that images are resized to; None: as they are


class ImageData(NamedTuple):
    """A data set as arrays, examples in the order in which tensorflow-datasets gives them."""

    train_x: np.ndarray  # [N, H, W, channels] uint8
    train_y: np.ndarray  # [N] int32, in [0, C)
    test_x: np.ndarray  # [M, H, W, channels] uint8
    test_y: np.ndarray  # [M] int32
    source: str  # such as "tfds:mnist/3.0.1"
    licence: str
    checksum: str  # ``digest`` of the four arrays
    sample: bool = False  # the small sample that cljax ships, not the whole data set
    mark: str = ""  # of another part of it, such as "15k"

    @property
    def fixed(self) -> bool:
        """Whether no array can be written any more, so that the checksum goes on being theirs."""
        return not any(array.flags.writeable for array in self[:4])

    def frozen(self) -> ImageData:
        """These images, whose arrays can no longer be written."""
        for array in self[:4]:
            array.flags.writeable = False
        return self


_SOURCES = (
    Source(
        "mnist",
        10,
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document "
        "recognition, Proceedings of the IEEE, 1998",
    ),
    Source(
        "cifar100",  # its "label" is the fine one of 100
        100,
        "no licence stated by its author, Alex Krizhevsky; cite the report",
        "A. Krizhevsky: Learning multiple layers of features from tiny images, 2009",
    ),
    Source(
        "cifar10",
        10,
        "no licence stated by its author, Alex Krizhevsky; cite the report",
        "A. Krizhevsky: Learning multiple layers of features from tiny images, 2009",
    ),
    Source(
        "fashion_mnist",
        10,
        "MIT, Zalando SE",
        "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking "
        "machine learning algorithms, 2017",
        archive="fashion_mnist_15k.npz",
        mark="15k",
    ),
    Source(
        "svhn_cropped",  # its split "extra" is not read
        10,
        "not stated; see the publisher's page, http://ufldl.stanford.edu/housenumbers",
        "Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng: Reading digits in natural "
        "images with unsupervised feature learning, 2011",
    ),
)

SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _SOURCES})


def licences() -> dict[str, str]:
    """The licence of every data set that cljax reads, by name."""
    return {name: source.licence for name, source in SOURCES.items()}


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over dtypes, shapes and contents of arrays, in hexadecimal."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def mark_of(data: ImageData) -> str:
    """Says which part of a data set this is: sample, 15k, ...; "" for the whole."""
    return "sample" if data.sample else data.mark


def marked(name: str, data: ImageData) -> str:
    """A stream's name, with the mark of its images if they have one."""
    return f"{name}[{mark_of(data)}]" if mark_of(data) else name


def check_images(data: ImageData, num_classes: int) -> None:
    """Raises UserError unless images are uint8, one label each, labels in ``[0, num_classes)``."""
    for part, x, y in (
        ("train", data.train_x, data.train_y),
        ("test", data.test_x, data.test_y),
    ):
        if x.dtype != np.uint8:
            raise UserError(
                f"{part}_x of {data.source} holds {x.dtype} values, but images are uint8 from 0 to "
                "255 (a stream divides by 255 itself)."
            )
        if y.shape != x.shape[:1] or not len(y):
            raise UserError(
                f"{part}_y of {data.source} has shape {list(y.shape)} for {len(x)} images, but "
                "there must be one label for each image, and at least one image."
            )
        if not np.issubdtype(y.dtype, np.integer):
            raise UserError(
                f"{part}_y of {data.source} holds {y.dtype} values, but labels are integers."
            )
        if y.min() < 0 or y.max() >= num_classes:
            wrong = int(y.min() if y.min() < 0 else y.max())
            raise UserError(
                f"{part}_y of {data.source} holds the label {wrong}, but its {num_classes} classes "
                f"are 0 to {num_classes - 1}."
            )
