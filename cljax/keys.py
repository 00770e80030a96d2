"""Random keys by named purpose, derived by counters.

Changing what one purpose consumes shifts no other, seed s gives every method the same data and
initial weights, and a resumed run continues with the keys of an unbroken one.
"""

from __future__ import annotations

import zlib

import jax

from cljax.types import Array

__all__ = ["purpose"]


def purpose(seed: int, name: str, *counters: int) -> Array:
    """The key of a seed's purpose ("init", "update", ...), folded with counters.

    The counter-based generator is named, not JAX's default, so that a change of the default
    changes no run.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
