"""Strictness for every test: rank promotion raises, and failures of the compiler surface."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path

# Tests compile thousands of tiny programs and run each for microseconds.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Many tests run the same program again: workers and commands share what is compiled, while this
# session lasts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cljax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

# Commands that tests start import the copy of cljax that the tests do, wherever they run: beside
# a checkout there may be an installed one, which records another commit.
_cljax = util.find_spec("cljax")
assert _cljax is not None and _cljax.origin is not None
_paths = [str(Path(_cljax.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Frees compiled programs after each file: thousands of them exhaust a process's mappings."""
    yield
    jax.clear_caches()
