"""Streams without boundaries, made from any stream of tasks.

Both are only other plans over the same examples: batches run across the edges between tasks,
nothing marks where one ends, and ``Clock.task`` stays 0. An example still carries its own task,
which chooses how it is seen. Tests are those of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from cljax.errors import UserError, check_known, check_positive
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation
from cljax.types import StepPlan

__all__ = ["blurry", "task_free"]

Arrival = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # seed, epoch -> rows, tasks


def task_free(stream: Stream, *, order: Literal["sequential", "shuffled"] = "sequential") -> Stream:
    """The same examples as one long stream that says nothing of tasks.

    Args:
      stream: with the default plan.
      order: ``sequential`` keeps task after task; ``shuffled`` mixes all of them.

    Raises:
      UserError: for an unknown order, or if the stream has a plan of its own.
    """
    check_known("order", order, ("sequential", "shuffled"))

    def arrival(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        parts = stream.subsets(seed)
        if order == "shuffled":
            return _joined([_tagged(parts)], "task-free", seed, epoch, shuffle_first=True)
        own = [(rows, np.full(len(rows), t, np.int32)) for t, rows in enumerate(parts)]
        return _joined(own, "task-free", seed, epoch, shuffle_first=False)

    suffix = "task-free" if order == "sequential" else "task-free-shuffled"
    return _without_boundaries(stream, arrival, suffix)


def blurry(stream: Stream, fraction: float = 0.1) -> Stream:
    """Blurs the edges: a share of each task's examples arrives during the other tasks.

    The blurry-M setting of Bang et al., "Rainbow Memory", 2021, with M = 100 * ``fraction``: the
    examples that leave a task are dealt out evenly to all others, then each stretch is shuffled.
    Every example arrives once an epoch.

    Args:
      stream: with the default plan.
      fraction: share of each task's examples that leaves it, in [0, 1].

    Raises:
      UserError: if ``fraction`` is out of range, or the stream has a plan of its own.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"fraction is {fraction}, but it must be a share from 0 to 1.")

    def arrival(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows, tasks = _tagged(stream.subsets(seed))
        stretch = tasks.copy()
        for task in range(stream.num_tasks if stream.num_tasks > 1 else 0):
            own = np.flatnonzero(tasks == task)
            num = round(fraction * len(own))
            leaving = permutation(len(own), "blurry", "leave", seed, task, take=num)
            hops = 1 + np.arange(len(leaving)) % (stream.num_tasks - 1)
            stretch[own[leaving]] = (task + hops) % stream.num_tasks
        parts = [(rows[stretch == t], tasks[stretch == t]) for t in range(stream.num_tasks)]
        return _joined(parts, "blurry", seed, epoch, shuffle_first=True)

    return _without_boundaries(stream, arrival, f"blurry{100 * fraction:g}")


def _tagged(parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    tasks = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows in parts])
    return np.concatenate(parts), tasks


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray]],
    purpose: str,
    seed: int,
    epoch: int,
    *,
    shuffle_first: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches one after the other, each shuffled (in the first epoch only if asked for)."""
    if epoch or shuffle_first:
        orders = [
            permutation(len(rows), purpose, "order", seed, i, epoch)
            for i, (rows, _) in enumerate(parts)
        ]
        parts = [
            (rows[order], tasks[order]) for (rows, tasks), order in zip(parts, orders, strict=True)
        ]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([t for _, t in parts])


def _without_boundaries(stream: Stream, arrival: Arrival, suffix: str) -> Stream:
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        check_positive(batch_size=batch_size, epochs=epochs)
        parts = [batches(*arrival(seed, e), batch_size, epoch=e) for e in range(epochs)]
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    return replace(
        stream,
        name=f"{stream.name}-{suffix}",
        planner=planner,
        boundaries=False,
        checksum=checksum(stream.checksum, {}, suffix),
        published=False,
    )
