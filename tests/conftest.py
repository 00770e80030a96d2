"""Strictness for every test: rank promotion raises, and failures of the compiler surface."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

# Tests compile thousands of tiny programs and run each for microseconds. The older emitters of
# fusions, and one module a program, take a third of the time to compile; XLA ends the process at a
# flag that it does not know, as newer versions do not know the older emitters.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jaxlib").startswith("0.10."),
)
# Where each operation was traced is not needed, and takes a tenth of the time to lower.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Many tests run the same program again: workers and commands share what is compiled, while this
# session lasts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cljax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest
from xdist.scheduler import LoadScopeScheduling

# Commands that tests start import the copy of cljax that the tests do, wherever they run: beside
# a checkout there may be an installed one, which records another commit.
_cljax = util.find_spec("cljax")
assert _cljax is not None and _cljax.origin is not None
_paths = [str(Path(_cljax.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

if not hasattr(jax, "enable_x64"):  # before jax 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples every time, and none stored; a test that needs more of them says so.
hypothesis.settings.register_profile(
    "tests", max_examples=30, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Frees compiled programs once they hold about 2 GB; far more would exhaust the mappings."""
    yield
    if _num_mappings() > 4000:
        jax.clear_caches()


def _num_mappings() -> float:
    try:
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)
    except OSError:
        return float("inf")


class _ByFile(LoadScopeScheduling):
    """One worker runs a file, so that its fixtures and programs are made once.

    The contract, whose results are shared by the tests of a method, is split by its methods.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, case = nodeid.partition("::")
        return file + case.partition("[")[2] if "test_contract" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ByFile | None:
    """Slow tests are few and long, and are handed out one by one."""
    return _ByFile(config, log) if config.option.markexpr == "not slow" else None
