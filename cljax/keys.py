"""Random keys by named purpose, derived by counters.

Changing what one purpose consumes shifts no other, seed s gives every method the same data and
initial weights, and a resumed run continues with the keys of an unbroken one.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from cljax.errors import UserError, in_words
from cljax.types import Array

__all__ = ["check_seed", "check_seeds", "derived", "flat", "is_list", "purpose"]

_SEEDS = 2**32  # a generator's key takes the lower 32 bits alone


def derived(key: Array, name: str) -> Array:
    """The key of a named purpose that belongs to another key."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def flat(
    draw: Callable[..., Array], key: Array, shape: Sequence[int], *args: Any, **options: Any
) -> Array:
    """``draw(key, shape, ...)``, the same bits, drawn as a vector.

    A CPU's compiler takes five times as long for random bits of three or four axes.

    Args:
      draw: such as ``jax.random.normal``; other arguments must not have axes of their own.
    """
    return draw(key, (math.prod(shape),), *args, **options).reshape(shape)


def check_seed(seed: Any) -> int:
    """A seed as a Python number.

    Raises:
      UserError: unless it is a whole number from 0 to 2**32 - 1.
    """
    try:
        number = -1 if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < _SEEDS:
        raise UserError(
            f"The seed {in_words(seed)} must be a whole number from 0 to {_SEEDS - 1}, such as 0."
        )
    return number


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds, listed, as Python numbers.

    Raises:
      UserError: for none, for one that is there twice, or for one out of range.
    """
    chosen = tuple(map(check_seed, seeds)) if is_list(seeds) else ()
    if not chosen:
        raise UserError(
            f"seeds is {in_words(seeds)}, but it must be a list of seeds, such as [0, 1, 2]."
        )
    if len(set(chosen)) < len(chosen):
        raise UserError(f"seeds are {list(chosen)}, but they must be distinct.")
    return chosen


def is_list(values: Any) -> bool:
    """Whether values come in an order, and every time that they are asked for."""
    if isinstance(values, (str, bytes, Mapping, Set, Iterator)):
        return False
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1


def purpose(seed: int, name: str, *counters: int) -> Array:
    """The key of a seed's purpose ("init", "update", ...), folded with counters.

    The counter-based generator is named, not JAX's default, so that a change of the default
    changes no run.

    Raises:
      UserError: for a seed below 0 or above 2**32 - 1.
    """
    if not isinstance(seed, Tracer):
        seed = check_seed(seed)
    key = derived(jax.random.key(seed, impl="threefry2x32"), name)
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
