"""Streams: plans of which examples arrive when, over one copy of the images.

``STREAMS`` holds the built-in names of the command line; the keyword arguments of their factories
are their flags. ``from_arrays`` makes a stream of your own examples; ``task_free`` and ``blurry``
take the boundaries from any stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from cljax.streams.arrays import from_arrays
from cljax.streams.base import Stream, Transform, batches, on_validation, plan, rows_used
from cljax.streams.mnist import mnist_many_permutations, mnist_permutations, mnist_rotations
from cljax.streams.split import split_by_class, split_mnist
from cljax.streams.taskfree import blurry, task_free

__all__ = [
    "STREAMS", "Stream", "Transform", "batches", "blurry", "from_arrays",
    "mnist_many_permutations", "mnist_permutations", "mnist_rotations", "on_validation", "plan",
    "rows_used", "split_by_class", "split_mnist", "task_free",
]  # fmt: skip

STREAMS: Mapping[str, Callable[..., Stream]] = MappingProxyType(
    {
        "mnist-rotations": mnist_rotations,
        "mnist-permutations": mnist_permutations,
        "mnist-many-permutations": mnist_many_permutations,
        "split-mnist": split_mnist,
    }
)
