"""Whole processes of the installed command, timed; and what the machine can do at best."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds; ``train_s`` and ``eval_s`` are summed over threads."""

    wall_s: float
    compile_s: float
    train_s: float
    eval_s: float
    peak_mb: float
    cost: dict[str, Any]  # the run's, see results.json


def run(method: str, stream: str, options: list[str], cache: str | None = None) -> Timing:
    """``cljax run`` from start to results written, in an empty folder, one process.

    Args:
      cache: folder of the persistent compilation cache; None: everything is compiled.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cljax", "run", method, stream, *options]
        command += ["--out", f"{folder}/run"]
        start = time.perf_counter()
        with open(f"{folder}/errors", "w+") as errors:
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=errors
            )
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            errors.seek(0)
            if status:
                sys.exit(errors.read())
        peak = used.ru_maxrss / 1024
        results = json.loads(Path(folder, "run", "results.json").read_text())
    spent = results["time"]
    return Timing(
        wall, spent["compile_s"], spent["train_s"], spent["eval_s"], peak, results["cost"]
    )


def gemm_peak(cores: int, size: int = 2048, seconds: float = 2.0) -> float:
    """Float32 FLOP/s of the best of many products, numpy's BLAS on all cores."""
    import numpy as np

    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
