"""Strictness for every test: rank promotion raises, and failures of the compiler surface."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Tests compile thousands of tiny programs and run each for microseconds.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Frees compiled programs after each file: thousands of them exhaust a process's mappings."""
    yield
    jax.clear_caches()
