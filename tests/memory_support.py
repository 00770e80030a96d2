"""Memories of a user's own, as their scripts write them, and a small stream's examples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import support

import cljax
from cljax.memory import Contents, Memory, example_of, reservoir
from cljax.types import Examples


class Fading(Memory):
    """An example overwrites one at random, so that old ones fade away; some are passed over."""

    share: cljax.options.Share = cljax.options.positional(default=1.0)
    """Of the examples that are stored once the memory is filled."""

    def init(self, spec, capacity):
        return reservoir.init(example_of(spec), capacity)

    def draw(self, memory, examples, mask, key):
        return jax.random.uniform(key, (*mask.shape, 2))

    def offer(self, memory, examples, mask, drawn):
        size, age = reservoir.capacity(memory), memory.age + jnp.cumsum(mask, dtype=jnp.int32)
        place = jnp.where(drawn[:, 0] < self.share, (drawn[:, 1] * size).astype(jnp.int32), size)
        slots = jnp.where(age <= size, age - 1, place)
        return reservoir.write(memory, examples, jnp.where(mask, slots, size), mask)


class Latest(NamedTuple):
    """A state of a kind of its own: one example, and whether there is any."""

    example: Examples  # leaves [1, ...]
    any: jax.Array  # [1] bool

    @property
    def contents(self):
        return Contents(*self.example, self.any)


class LastOne(Memory):
    """The last example alone, with neither draws nor a sample of its own."""

    def init(self, spec, capacity):
        zeros = jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), example_of(spec))
        return Latest(zeros, jnp.zeros(1, bool))

    def offer(self, memory, examples, mask, drawn):
        last = jnp.max(jnp.where(mask, jnp.arange(len(mask)), -1))
        some, row = last >= 0, jnp.maximum(last, 0)
        kept = jax.tree.map(lambda a, b: jnp.where(some, a[row][None], b), examples, memory.example)
        return Latest(kept, memory.any | some)


_TABLE = np.random.default_rng(0).integers(0, 1000, (1000, 2)).astype(np.int32)


def offered(ids):
    """Examples that say their number: x of it alone, labels and tasks of the small problem."""
    ids = np.asarray(ids, int)
    x = np.repeat(ids[:, None], support.NUM_INPUTS, axis=1).astype(support.spec().example.dtype)
    y, task = _TABLE[ids].T
    return Examples(x, y % support.NUM_CLASSES, task % support.NUM_TASKS)
