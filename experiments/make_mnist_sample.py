"""Makes ``cljax/data/mnist_sample.npz.xz``, the sample of MNIST that cljax ships.

As many training and test images of each digit, drawn by the stable generator and kept exact, in
the order of the whole data set. LZMA packs 12 000 images into 1.6 MB as they are, row by row;
pixel planes and predictors pack worse.

    python experiments/make_mnist_sample.py --data-dir ~/tensorflow_datasets
"""

from __future__ import annotations

import argparse
import io
import lzma
from pathlib import Path

import numpy as np

from cljax.data import images
from cljax.streams.orders import permutation

__all__ = ["choose", "main", "pack"]

TARGET = Path(__file__).parent.parent / "cljax" / "data" / "mnist_sample.npz.xz"


def choose(labels: np.ndarray, part: str, per_class: int) -> np.ndarray:
    """[10 * per_class] int32 rows, ascending: ``per_class`` of each digit."""
    rows = [
        np.flatnonzero(labels == digit)[
            permutation(int((labels == digit).sum()), "mnist-sample", part, digit, take=per_class)
        ]
        for digit in range(10)
    ]
    return np.sort(np.concatenate(rows)).astype(np.int32)


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An uncompressed ``.npz`` inside ``.xz``: read by NumPy and the standard library alone."""
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # pyright: ignore[reportArgumentType]
    return lzma.compress(archive.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", help="folder that holds mnist/VERSION")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--train-per-class", type=int, default=1000)
    parser.add_argument("--test-per-class", type=int, default=200)
    options = parser.parse_args()
    data = images("mnist", options.data_dir)
    train = choose(data.train_y, "train", options.train_per_class)
    test = choose(data.test_y, "test", options.test_per_class)
    packed = pack(
        {
            "train_x": data.train_x[train],
            "train_y": data.train_y[train].astype(np.uint8),
            "test_x": data.test_x[test],
            "test_y": data.test_y[test].astype(np.uint8),
            "train_rows": train,
            "test_rows": test,
        }
    )
    options.out.write_bytes(packed)
    print(f"{options.out}: {len(train)} + {len(test)} images, {len(packed)} bytes")


if __name__ == "__main__":
    main()
