"""A made-up stream for examples and first tries: small pictures that a network learns at once.

class c:   its own pattern of 4 x 4 grey pixels, and noise
domain:    both tasks have all four classes, in the second as negatives
class:     task t has the classes 2 t and 2 t + 1
task:      likewise, each task with outputs of its own
held-out:  likewise, a task to pretrain on and a new one, with classes 4 and 5 held out for
           methods that learn how to learn
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from cljax.data import ImageData, digest
from cljax.errors import check_known
from cljax.streams.arrays import from_arrays
from cljax.streams.base import Stream
from cljax.streams.transfer import TransferOptions, transfer
from cljax.types import Pretraining

__all__ = ["toy"]

Kind: TypeAlias = Literal["domain", "class", "task", "held-out"]
_KINDS = ("domain", "class", "task", "held-out")
_TRAIN, _TEST = 48, 16  # pictures of a class
_SEED = 0  # of the pictures, the same in every process


def toy(kind: Kind = "domain") -> Stream:
    """Two tasks of made-up pictures, 96 to 192 examples each.

    Args:
      kind: what changes between the tasks, see above.

    Example:
        >>> import cljax
        >>> stream = cljax.streams.toy("class")
        >>> stream.num_tasks, stream.num_classes, stream.train_x.shape
        (2, 4, (192, 4, 4, 1))

    Raises:
      UserError: for another kind.
    """
    check_known("kind", kind, _KINDS)
    if kind == "held-out":
        options = TransferOptions(steps=8)
        how = Pretraining(steps=20, lr=0.1, batch_size=10)
        groups = ((0, 1), (2, 3))
        return transfer("toy-held-out", _data(6), groups, options, held=(4, 5), held_share=1.0,
                        pretraining=how)  # fmt: skip
    data = _data(4)
    train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
    parts = [_twice(*part) if kind == "domain" else (*part, part[1] // 2) for part in (train, test)]
    return from_arrays(parts[0], test=parts[1], name=f"toy-{kind}", licence="none", scenario=kind)


def _twice(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures as they are, then as negatives."""
    task = np.repeat(np.arange(2, dtype=np.int32), len(y))
    return np.concatenate([x, 255 - x]), np.concatenate([y, y]), task


def _data(classes: int) -> ImageData:
    rng = np.random.default_rng(_SEED)
    patterns = rng.integers(0, 256, (classes, 4, 4, 1))

    def part(each: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.tile(np.arange(classes, dtype=np.int32), each)
        noise = rng.normal(0, 20, (len(y), 4, 4, 1))
        return np.clip(patterns[y] + noise, 0, 255).astype(np.uint8), y

    arrays = (*part(_TRAIN), *part(_TEST))
    return ImageData(*arrays, "made up", "none", digest(*arrays))
