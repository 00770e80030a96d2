"""Plans of small sweeps."""

from __future__ import annotations

import numpy as np
import support

from cljax import sweep

SMALL = {"net": "mlp:5", "batch_size": 4}
RATES = sweep.grid(lr=[0.1, 0.3])


def valid(seed):
    """Other validation rows, and another number of them, for each seed and task."""
    rng = np.random.default_rng(seed)
    return tuple(36 + rng.permutation(20)[: 9 + (task + seed) % 4] for task in range(3))


def planned(settings, what="online", stream=None, **options):
    """A plan on images that each seed validates on rows of its own."""
    stream = support.stream(valid=valid) if stream is None else stream
    return sweep.plan(what, stream, settings, **{"seeds": 2, **SMALL, **options})
