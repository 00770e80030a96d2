"""Micro-batches: a mini-batch's examples, one task at a time, in shapes that a compiler can fix.

A task's examples come first in its micro-batch, whose width is the smallest of a few that holds
them, so that tasks with few examples cost little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from cljax.types import Array, Batch

__all__ = ["by_task", "over_tasks", "part"]

_SHARES = (16, 4, 1)  # widths are a 16th or a quarter of the batch, or all of it
Carry = TypeVar("Carry")


def by_task(
    batch: Batch, num_tasks: int
) -> tuple[Array, Callable[[Array, Callable[[Batch, Carry], Carry], Carry], Carry]]:
    """Examples of each task [T], and ``visit(task, train, at)``.

    ``visit`` is ``train(micro, at)`` where the mini-batch holds the task, else ``at`` unchanged.
    What is not in ``at`` is not copied when the width is chosen.
    """
    task, size = jnp.where(batch.mask, batch.task, num_tasks), batch.y.shape[0]
    counts = jnp.sum(task[:, None] == jnp.arange(num_tasks)[None], axis=0)
    order = jnp.pad(jnp.argsort(task, stable=True), (0, size))
    widths = sorted({-(-size // share) for share in _SHARES})

    def visit(task: Array, train: Callable[[Batch, Carry], Carry], at: Carry) -> Carry:
        def cut(width: int, at: Carry) -> Carry:
            before = jnp.sum(jnp.where(jnp.arange(num_tasks) < task, counts, 0))
            rows = jax.lax.dynamic_slice_in_dim(order, before, width)
            return train(_rows(batch, rows, jnp.arange(width) < counts[task]), at)

        which = jnp.sum(counts[task] > jnp.array([0, *widths[:-1]]))  # 0: the task is absent
        branches = [functools.partial(cut, width) for width in widths]
        return jax.lax.switch(which, [lambda same: same, *branches], at)

    return counts, visit


def over_tasks(
    batch: Batch,
    num_tasks: int,
    train: Callable[[Array, Batch, Carry], Carry],
    carry: Carry,
) -> tuple[Carry, Array]:
    """``train(task, micro, carry)`` for each task up to the current one that the batch holds.

    Returns:
      The last carry, and how many tasks there were, [].
    """
    counts, visit = by_task(batch, num_tasks)

    def one(task: Array, carry: Carry) -> Carry:
        return visit(task, functools.partial(train, task), carry)

    return jax.lax.fori_loop(0, batch.clock.task + 1, one, carry), jnp.sum(counts > 0)


def part(micro: Batch, number: Array | int, parts: int) -> Batch:
    """One of the disjoint parts of a micro-batch's valid rows, by position, as even as can be."""
    size, count = micro.y.shape[0], jnp.sum(micro.mask)
    start, stop = number * count // parts, (number + 1) * count // parts
    rows = start + jnp.arange(-(-size // parts))
    return _rows(micro, jnp.minimum(rows, size - 1), rows < stop)


def _rows(batch: Batch, rows: Array, mask: Array) -> Batch:
    x, y, task, index = jax.tree.map(lambda a: a[rows], (batch.x, batch.y, batch.task, batch.index))
    return Batch(x, y, task, mask, index, batch.clock)
