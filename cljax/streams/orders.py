"""Orders and choices that stay the same for ever.

NumPy promises the raw stream of a bit generator, not what its ``Generator`` makes of it, so
orders are the ranks of raw Philox numbers. The generator's key is a hash of named counters:
changing what one purpose consumes shifts no other.
"""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np

__all__ = ["permutation", "raw", "uniform"]


def raw(n: int, *counters: int | str) -> np.ndarray:
    """``[n]`` uniform uint64, a pure function of the counters: purpose, seed, task, ..."""
    named = [c if isinstance(c, str) else operator.index(c) for c in counters]
    key = hashlib.sha256(json.dumps(named).encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(n)


def uniform(n: int, *counters: int | str) -> np.ndarray:
    """``[n]`` float64 uniform in [0, 1), multiples of 2**-53."""
    return (raw(n, *counters) >> np.uint64(11)) * 2.0**-53


def permutation(n: int, *counters: int | str, take: int | None = None) -> np.ndarray:
    """A uniform permutation of ``0 .. n - 1``, or its first ``take`` entries; int32.

    Example:
      ``permutation(60000, "mnist-rotations", "subset", seed, task, take=1000)``
    """
    ranks = raw(n, *counters)
    if take is None or take >= n:
        return np.argsort(ranks, kind="stable").astype(np.int32)
    if take == 0:
        return np.zeros(0, np.int32)
    least = np.argpartition(ranks, take - 1)[:take]
    return least[np.lexsort((least, ranks[least]))].astype(np.int32)
