"""``History``: what runs leave, from their records and last carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cljax.engine.lanes import Divergence, Record, Setup
from cljax.engine.programs import Carry, arriving
from cljax.streams.base import Stream
from cljax.types import PyTree, StepPlan

__all__ = ["History", "history_of"]


class History(NamedTuple):
    """What runs leave. S runs, T tasks, U updates (of their own, where they go on from others)."""

    seeds: tuple[int, ...]
    states: tuple[PyTree, ...]  # final state of each run
    evaluations: Mapping[str, np.ndarray]  # name -> accuracy matrices [S, T+1, T], NaN: not asked
    test_counts: np.ndarray  # [T]
    losses: np.ndarray  # [S, U], mean loss each update reported
    online_correct: np.ndarray | None  # [S, U], right among the new examples of each update
    batch_sizes: np.ndarray  # [U], examples of each update
    # by evaluation, per run: (step, [T] accuracies)
    anytime: Mapping[str, tuple[tuple[tuple[int, np.ndarray], ...], ...]]
    phase_losses: Mapping[str, tuple[tuple[np.ndarray, ...], ...]]  # name -> per run, per task
    diverged: tuple[Divergence | None, ...]  # per run: where something was first not finite
    time: Mapping[str, float]  # seconds; train_s and eval_s are summed over threads
    # per run: row of the matrix -> histogram of learned rates, see ``cljax.runner.snapshots``
    rates: tuple[Mapping[int, np.ndarray], ...] = ()
    online_sizes: np.ndarray | None = None  # [U], new examples of each update
    # per run: row of the matrix -> [C, C] int, tests by class and by the headline's prediction
    confusion: tuple[Mapping[int, np.ndarray], ...] = ()


def history_of(
    setup: Setup,
    seeds: Sequence[int],
    finals: Mapping[int, Carry],
    rows: StepPlan,
    counts: np.ndarray,
    spent: Mapping[str, float],
) -> History:
    """The history of the runs in ``finals``, in the order of their numbers.

    Args:
      seeds: of all runs.
      finals: by number, the carry at the end of a run.
      rows: a plan of the tasks; all seeds' have the same masks.
      counts: [T], test images of each task.
      spent: seconds.
    """
    numbers = sorted(finals)
    carries = [finals[number] for number in numbers]
    records = [setup.records[number] for number in numbers]
    begun = setup.begins_at
    names, tasks = [e.name for e in setup.evaluations], range(setup.stream.num_tasks)
    phases = dict.fromkeys(item.program for item in setup.items if item.program != "task")
    online, sizes = None, None
    if setup.online:
        online = np.stack([np.asarray(carry.online_correct)[begun:] for carry in carries])
        sizes = _new_examples(rows, setup.stream).sum(axis=1)[begun:]
    return History(
        seeds=tuple(seeds[number] for number in numbers),
        states=tuple(carry.state for carry in carries),
        evaluations={name: np.stack([r.matrices[name] for r in records]) for name in names},
        test_counts=counts,
        losses=np.stack([np.asarray(carry.losses)[begun:] for carry in carries]),
        online_correct=online,
        batch_sizes=np.where(rows.epoch < 0, 0, rows.mask.sum(axis=1))[begun:],  # not validation
        anytime={name: tuple(_curve(record, name) for record in records) for name in names},
        phase_losses={
            name: tuple(
                tuple(r.phase_losses[name, t] for t in tasks if (name, t) in r.phase_losses)
                for r in records
            )
            for name in phases
        },
        diverged=tuple(record.divergence for record in records),
        time=dict(spent),
        rates=tuple(dict(sorted(record.rates.items())) for record in records),
        online_sizes=sizes,
        confusion=tuple(dict(sorted(record.confusion.items())) for record in records),
    )


def _new_examples(rows: StepPlan, stream: Stream) -> np.ndarray:
    """[U, B] bool, the examples of a plan that online accuracy counts."""
    return arriving(
        rows.mask, rows.index, rows.task, rows.current, rows.first_pass,
        boundaries=stream.boundaries,
    )  # fmt: skip


def _curve(record: Record, name: str) -> tuple[tuple[int, np.ndarray], ...]:
    """(step, [T] accuracies) of an evaluation, in order."""
    return tuple((step, row) for (of, step), row in sorted(record.anytime.items()) if of == name)
