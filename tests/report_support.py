"""Runs that reports are made of: a small real one, and others made from its files."""

from __future__ import annotations

import copy
import json

import numpy as np

import cljax
from cljax import metrics, stats
from cljax.runner import artefacts
from cljax.runner.config import config_hash


def nullable(array):
    if np.ndim(array):
        return [nullable(row) for row in array]
    return None if np.isnan(array) else float(array)


def variant(source, folder, *, seeds=5, tasks=3, seed=0, rise=0.0, **changes):
    """A finished run in ``folder``: that of ``source`` with other accuracies and other names."""
    config = json.loads((source / "config.json").read_text())
    results = json.loads((source / "results.json").read_text())
    rng = np.random.default_rng(seed)
    matrix = 0.4 + rise + 0.4 * rng.random((seeds, tasks + 1, tasks))
    matrix[:, 1:][:, ~np.tri(tasks, dtype=bool)] = np.nan
    computed = metrics.compute(matrix, np.full(tasks, 100))
    spread = {name: stats.summary(v)._asdict() for name, v in computed.values.items()}
    entry = copy.deepcopy(next(iter(results["evaluations"].values())))
    entry |= {"accuracy_matrix": nullable(matrix), "test_counts": [100] * tasks, "metrics": spread}
    results |= {
        "seeds": list(range(seeds)), "metrics": spread, "evaluations": {"logits": entry},
        "accuracy_matrix": nullable(matrix[:, 1:]), "anytime": [[] for _ in range(seeds)],
        "diverged": [None] * seeds,
    }  # fmt: skip
    config["seeds"] = results["seeds"]
    if "stream" in changes:
        config["stream"] |= {"name": changes["stream"], "checksum": changes["stream"]}
        results["data"]["checksum"] = changes["stream"]
    results |= changes
    folder.mkdir(parents=True)
    return sealed(folder, config, results)


def sealed(folder, config, results):
    """Writes config and results into a run's folder, as a run of them would, and returns it."""
    own = config_hash(config)
    config["config_hash"] = results["config_hash"] = own
    artefacts.write_json(folder / "config.json", config)
    artefacts.write_json(folder / "results.json", results)
    artefacts.seal(folder, own)
    return folder


def changed(folder, results=None, config=None):
    """A run's folder with other fields in its results or its config, as if it had been run so."""
    own = [json.loads((folder / name).read_text()) for name in ("config.json", "results.json")]
    return sealed(folder, own[0] | (config or {}), own[1] | (results or {}))


def picture_stream():
    """Two tasks of two classes of 8x8 grey pictures."""
    rng = np.random.default_rng(0)
    y = np.arange(48) % 4
    x = np.clip(60 * y[:, None, None] + rng.integers(0, 60, (48, 8, 8)), 0, 255)
    x, task = x.astype(np.uint8)[..., None], y // 2
    return cljax.streams.from_arrays(
        (x, y, task), test=(x, y, task), val=0.1, name="pictures", licence="ours"
    )


def small_run(folder):
    method = cljax.LaMAML(alpha_init=0.05, alpha_lr=0.1, capacity=20, replay_size=4)
    return cljax.run(
        method, picture_stream(), seeds=2, net=cljax.nets.mlp(6), batch_size=4, out=folder
    )
