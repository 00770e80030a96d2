"""Made-up digits in the form of MNIST, and where the real ones are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cljax.data import ImageData, digest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def digits(num_train: int = 600, num_test: int = 60, seed: int = 0) -> ImageData:
    rng = np.random.default_rng(seed)
    arrays = (
        rng.integers(0, 256, (num_train, 28, 28, 1), dtype=np.uint8),
        (np.arange(num_train) % 10).astype(np.int32),
        rng.integers(0, 256, (num_test, 28, 28, 1), dtype=np.uint8),
        (np.arange(num_test) % 10).astype(np.int32),
    )
    return ImageData(*arrays, "made up", "none", digest(*arrays))


def real_data_dir() -> str:
    """The folder with the whole MNIST, or skips the test."""
    folder = Path(os.environ.get("CLJAX_DATA_DIR") or SHARED / "tfds")
    if not any(folder.glob("mnist/*/dataset_info.json")):
        pytest.skip(f"no MNIST in {folder}; set CLJAX_DATA_DIR")
    return str(folder)


def reference_manifest() -> Path:
    """The recorded reference streams, or skips the test."""
    folder = Path(os.environ.get("CLJAX_DATA_DIR") or SHARED / "tfds")
    path = folder.parent / "reference_streams.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path
