"""A small transfer stream: three classes to pretrain on, three new ones, four held out."""

from __future__ import annotations

import numpy as np

from cljax.data import ImageData
from cljax.streams.base import Stream
from cljax.streams.transfer import TransferOptions, transfer
from cljax.types import Pretraining


def images(classes=10, each=24, size=4):
    """Blobs of their class's own pixel pattern, as images."""
    rng = np.random.default_rng(0)
    means = rng.integers(40, 200, (classes, size, size, 1))
    y = np.tile(np.arange(classes), each)
    x = np.clip(means[y] + rng.normal(0, 25, (len(y), size, size, 1)), 0, 255).astype(np.uint8)
    half = len(y) // 4
    return ImageData(
        x[half:],
        y[half:].astype(np.int32),
        x[:half],
        y[:half].astype(np.int32),
        "blobs",
        "none",
        "b",
    )


def stream(
    groups=((0, 1, 2), (3, 4, 5)), held=(6, 7, 8, 9), share=1.0, steps=6, pretrain=20, lr=0.1,
    **options,
) -> Stream:  # fmt: skip
    how = Pretraining(steps=pretrain, lr=lr, batch_size=8)
    return transfer(
        "blobs",
        images(),
        groups,
        TransferOptions(steps=steps, **options),
        held=held,
        held_share=share,
        pretraining=how,
    )
