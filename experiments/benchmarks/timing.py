"""Steps and whole processes of the command, timed; and what the machine can do at best."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CORES = len(os.sched_getaffinity(0))


class Timed(NamedTuple):
    """Seconds of a step; ``cpu`` is all threads' time, less disturbed by others on the machine."""

    median: float
    best: float
    cpu: float


def timed(step: Callable[[], Any], repeats: int, warm_up: int = 2) -> Timed:
    """Times a step after some that are not counted."""
    taken, spent = [], []
    for _ in range(warm_up + repeats):
        start, cpu = time.perf_counter(), time.process_time()
        step()
        taken.append(time.perf_counter() - start)
        spent.append(time.process_time() - cpu)
    taken, spent = taken[warm_up:], spent[warm_up:]
    return Timed(statistics.median(taken), min(taken), statistics.median(spent))


def in_pytorch(python: str, what: str, **specification: Any) -> dict[str, Any]:
    """The times of ``pytorch_side.py``, run by a Python that has PyTorch."""
    script = str(Path(__file__).with_name("pytorch_side.py"))
    command = [python, "-W", "ignore", script, what, json.dumps(specification)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


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
    options = options if cache is not None else [*options, "--no-compile-cache"]
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
