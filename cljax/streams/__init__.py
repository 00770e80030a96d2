"""Streams: plans of which examples arrive when, over one copy of the images.

``STREAMS`` is the catalogue of built-in ones, by their names on the command line: frozen
dataclasses, whose fields are the flags and whose ``build()`` opens the data. ``from_arrays`` makes
a stream of your own examples, ``encoded`` one of a frozen network's features, ``transfer`` one of a
task to start from and new ones of a few updates, ``toy`` a made-up one for first tries;
``task_free``, ``blurry``, ``i_blurry`` and ``gaussian`` take the boundaries from any, and
``in_order`` its shuffling.
"""

from __future__ import annotations

from cljax.streams.arrays import from_arrays, in_order
from cljax.streams.augment import (
    compose,
    crop_flip,
    crop_flip_rotation,
    horizontal_flip,
    random_crop,
    random_resized_crop,
    rotation,
)
from cljax.streams.base import (
    Augmentation,
    Stream,
    Transform,
    batches,
    on_validation,
    plan,
    rows_used,
)
from cljax.streams.catalogue import STREAMS, make
from cljax.streams.cifar import CIFAR100, SplitCIFAR10
from cljax.streams.datasets import DatasetClasses
from cljax.streams.encoded import encoded
from cljax.streams.folders import ClassFolders, ImageNet
from cljax.streams.manifests import (
    load_class_order,
    load_split,
    save_class_order,
    save_split,
    with_split,
)
from cljax.streams.mnist import (
    IncrementalMNIST,
    MNISTManyPermutations,
    MNISTPermutations,
    MNISTRotations,
    SplitMNIST,
)
from cljax.streams.objective import with_objective
from cljax.streams.options import SplitOptions, StreamSource
from cljax.streams.split import split_by_class
from cljax.streams.svhn import SplitSVHN
from cljax.streams.taskfree import (
    Blurry,
    Gaussian,
    IBlurry,
    TaskFree,
    blurry,
    gaussian,
    i_blurry,
    task_free,
)
from cljax.streams.tinyimagenet import TinyImageNet
from cljax.streams.toy import toy
from cljax.streams.transfer import TransferOptions, joined, pooled, transfer
from cljax.streams.transforms import normalised

__all__ = [
    "Augmentation", "Blurry", "CIFAR100", "ClassFolders", "DatasetClasses", "Gaussian", "IBlurry",
    "ImageNet", "IncrementalMNIST", "MNISTManyPermutations", "MNISTPermutations", "MNISTRotations",
    "STREAMS", "SplitCIFAR10", "SplitMNIST", "SplitOptions", "SplitSVHN", "Stream", "StreamSource",
    "TaskFree", "TinyImageNet", "TransferOptions", "Transform", "batches", "blurry", "compose",
    "crop_flip", "crop_flip_rotation", "encoded", "from_arrays", "gaussian", "horizontal_flip",
    "i_blurry", "in_order", "joined", "load_class_order", "load_split", "make", "normalised",
    "on_validation", "plan", "pooled", "random_crop", "random_resized_crop", "rotation",
    "rows_used", "save_class_order", "save_split", "split_by_class", "task_free", "toy", "transfer",
    "with_objective", "with_split",
]  # fmt: skip
