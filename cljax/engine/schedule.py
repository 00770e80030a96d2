"""The schedule that every run of a method on a stream walks.

for each task:  phases before it, its updates (cut where it is tested), phases after it, a row
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from cljax.streams.base import Stream
from cljax.types import Learner, StepPlan

__all__ = ["Item", "schedule"]


class Item(NamedTuple):
    """A stretch of one program's plan, and what is evaluated when it ends."""

    program: str  # "task", or a phase's name
    task: int
    start: int
    stop: int
    row: int | None = None  # of the matrices
    anytime: bool = False


def schedule(
    learner: Learner, stream: Stream, rows: StepPlan, eval_every: int
) -> tuple[list[Item], Callable[[StepPlan], Mapping[tuple[str, int], StepPlan]]]:
    """The stretches that every lane walks, and how a seed's plan makes its phases' plans."""
    num_steps, num_tasks = len(rows.current), stream.num_tasks
    ends = [int(i) + 1 for i in np.flatnonzero(rows.last)]
    if len(ends) != num_tasks:  # task-free: a row each T-th of the stream
        ends = [round(num_steps * (t + 1) / num_tasks) for t in range(num_tasks)]
    starts = [0, *ends[:-1]]

    def phase_plans(rows: StepPlan) -> dict[tuple[str, int], StepPlan]:
        made: dict[tuple[str, int], StepPlan] = {}
        for phase in learner.phases:
            own = {}
            for task in range(num_tasks):
                part = jax.tree.map(lambda a, t=task: a[starts[t] : ends[t]], rows)
                steps = phase.plan(task, part)
                if steps is not None:
                    own[phase.name, task] = steps
            # One length for all tasks, so that one program serves them; items keep the true one.
            longest = max((len(steps.current) for steps in own.values()), default=0)
            made |= {slot: _padded(steps, longest) for slot, steps in own.items()}
        return made

    def phases(task: int, before: bool) -> Iterator[Item]:
        part = jax.tree.map(lambda a: a[starts[task] : ends[task]], rows)
        for phase in learner.phases:
            steps = phase.plan(task, part) if phase.before == before else None
            if steps is not None:
                yield Item(phase.name, task, 0, len(steps.current))

    items: list[Item] = []
    for task, (start, end) in enumerate(zip(starts, ends, strict=True)):
        items += phases(task, before=True)
        first = (start // eval_every + 1) * eval_every if eval_every else end
        stops = [*range(first, end, eval_every), end] if eval_every else [end]
        for begin_at, stop in zip([start, *stops[:-1]], stops, strict=True):
            anytime = bool(eval_every) and stop > begin_at and stop % eval_every == 0
            items.append(Item("task", task, begin_at, stop, anytime=anytime))
        items += phases(task, before=False)
        items[-1] = items[-1]._replace(row=task + 1)
    return items, phase_plans


def _padded(steps: StepPlan, length: int) -> StepPlan:
    return jax.tree.map(
        lambda a: np.pad(a, [(0, length - len(a))] + [(0, 0)] * (a.ndim - 1)), steps
    )
