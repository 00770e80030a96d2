"""Random keys by named purpose, derived by counters.

Changing what one purpose consumes shifts no other, seed s gives every method the same data and
initial weights, and a resumed run continues with the keys of an unbroken one.
"""

from __future__ import annotations

import zlib

import jax

from cljax.types import Array

__all__ = ["derived", "purpose"]


def derived(key: Array, name: str) -> Array:
    """The key of a named purpose that belongs to another key."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def purpose(seed: int, name: str, *counters: int) -> Array:
    """The key of a seed's purpose ("init", "update", ...), folded with counters.

    The counter-based generator is named, not JAX's default, so that a change of the default
    changes no run.
    """
    key = derived(jax.random.key(seed, impl="threefry2x32"), name)
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
