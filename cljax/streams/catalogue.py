"""The built-in streams by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cljax.errors import check_known
from cljax.options import Options, flat
from cljax.streams import transfers
from cljax.streams.cifar import CIFAR100, SplitCIFAR10
from cljax.streams.datasets import DatasetClasses
from cljax.streams.folders import ClassFolders, ImageNet
from cljax.streams.mnist import (
    IncrementalMNIST,
    MNISTManyPermutations,
    MNISTPermutations,
    MNISTRotations,
    SplitMNIST,
)
from cljax.streams.options import StreamSource
from cljax.streams.svhn import SplitSVHN
from cljax.streams.taskfree import Blurry, Gaussian, IBlurry, TaskFree
from cljax.streams.tinyimagenet import TinyImageNet

__all__ = ["STREAMS", "Entry", "entry_of", "find", "make"]

# As in mnemonics training (Liu et al. 2020): half of the classes first.
_CIFAR_HALF = CIFAR100(
    base=50, class_order="1993", val=0.0, augment="crop-flip", pixels="mnemonics"
)
_IMAGENET_HALF = ImageNet(base=50, class_order="1993", val=0.0, image_size=224, augment="crop-flip")
_WITH_TASKS: Mapping[str, StreamSource] = {
    "mnist-rotations": MNISTRotations(),
    "mnist-permutations": MNISTPermutations(),
    "mnist-many-permutations": MNISTManyPermutations(),
    "split-mnist": SplitMNIST(),
    "mnist-b5-5": IncrementalMNIST(),
    "split-cifar10": SplitCIFAR10(),
    "cifar100-10x10": CIFAR100(),
    "cifar100-5x20": CIFAR100(classes_per_task=20),
    "cifar100-20x5": CIFAR100(classes_per_task=5),
    "cifar100-2x50": CIFAR100(classes_per_task=50),
    "cifar100-b50-5": _CIFAR_HALF,
    "cifar100-b50-10": _CIFAR_HALF.replace(classes_per_task=5),
    "cifar100-b50-25": _CIFAR_HALF.replace(classes_per_task=2),
    "tinyimagenet-40x5": TinyImageNet(),
    "split-svhn": SplitSVHN(),
    "class-folders": ClassFolders(),
    "dataset-classes": DatasetClasses(),
    "imagenet100-10x10": ImageNet(),
    "imagenet1k-10x100": ImageNet(classes=1000, classes_per_task=100),
    "imagenet100-b50-5": _IMAGENET_HALF,
    "imagenet100-b50-10": _IMAGENET_HALF.replace(classes_per_task=5),
    "imagenet100-b50-25": _IMAGENET_HALF.replace(classes_per_task=2),
    "fashion-5-5": transfers.Fashion5_5(),
    "fashion-4-3-3": transfers.Fashion4_3_3(),
    "fashion-5-mnist-5": transfers.Fashion5_MNIST5(),
    "cifar100-10-5": transfers.CIFAR100_10_5(),
    "cifar10-5-5": transfers.CIFAR10_5_5(),
    "cifar10-5-cifar100-5": transfers.CIFAR10_5_CIFAR100_5(),
    "cifar10-5-tinyimagenet-5": transfers.CIFAR10_5_TinyImageNet_5(),
    "cifar10-10-10-10": transfers.CIFAR10_10_10_10(),
}
_SHARED = (TaskFree, Blurry, Gaussian)  # of tasks that may share their classes
_WITHOUT = {
    "mnist-rotations": _SHARED,
    "mnist-permutations": _SHARED,
    "split-mnist": (*_SHARED, IBlurry),
    "cifar100-10x10": (*_SHARED, IBlurry),
}

STREAMS: Mapping[str, StreamSource] = MappingProxyType(
    {
        **_WITH_TASKS,
        **{
            f"{name}-{kind.kind}": kind(stream=_WITH_TASKS[name])
            for name, kinds in _WITHOUT.items()
            for kind in kinds
        },
    }
)
# Other streams with tasks, without them: no list shows these, but a run records their names.
_UNLISTED: Mapping[str, StreamSource] = {
    f"{name}-{kind.kind}": kind(stream=made)
    for name, made in _WITH_TASKS.items()
    for kind in (*_SHARED, IBlurry)
    if kind not in _WITHOUT.get(name, ())
}


class Entry(NamedTuple):
    """A stream as the command line names it: a name, and the options that differ from its own."""

    name: str
    options: Mapping[str, Any]


def make(name: str, **options: Any) -> StreamSource:
    """A stream by its name on the command line, with other options than its defaults.

    Raises:
      UserError: for an unknown name or option, or a value that is none.
    """
    made = find(name)
    if made is None:
        check_known("stream", name, STREAMS)
    assert made is not None
    return made.replace(**options)


def find(name: Any) -> StreamSource | None:
    """The built-in stream of a name, listed or not, or None."""
    return (STREAMS.get(name) or _UNLISTED.get(name)) if isinstance(name, str) else None


def entry_of(source: StreamSource) -> Entry | None:
    """The entry that a stream differs from in the fewest options; None: it is not a built-in one.

    So ``CIFAR100(classes_per_task=5, val=0.0)`` is cifar100-20x5 with another ``val``.
    """
    return _nearest(source, STREAMS) or _nearest(source, _UNLISTED)


def _nearest(source: StreamSource, streams: Mapping[str, StreamSource]) -> Entry | None:
    values, entries = flat(source), []
    for name, listed in streams.items():
        if _classes(listed) == _classes(source):
            defaults = flat(listed)
            changed = {n: value for n, value in values.items() if value != defaults[n]}
            entries.append(Entry(name, changed))
    return min(entries, key=lambda entry: len(entry.options), default=None)


def _classes(source: StreamSource) -> tuple[type, ...]:
    """The class of a stream, and of one that it is made of."""
    held = (value for value in source.options.values() if isinstance(value, Options))
    return type(source), *map(type, held)
