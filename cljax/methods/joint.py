"""Joint and IID training: bounds that see what a continual learner may not.

    joint:  task t's updates are drawn from the examples of all tasks up to t
    iid:    there is one long task; each update takes examples of all tasks, or the same number
            of examples of each of a few tasks drawn at random

Both are fine-tuning on a stream arranged otherwise. Measures of what is learned of a task and lost
again say nothing of them and are absent: iid never ends a task, and joint goes on learning them.

Source: the upper bounds of the field; iid with ``tasks_per_batch=4`` is the sampler of the code
released with La-MAML (Gupta et al. 2020, arXiv:2007.13904): 32 examples of 4 tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from cljax import metrics
from cljax.errors import UserError
from cljax.methods.finetune import Finetune
from cljax.options import Count, Rate
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation, uniform
from cljax.types import Needs, StepPlan

__all__ = ["IID", "Joint"]

_GOES_ON = "joint goes on learning the examples of earlier tasks, so none of them is left behind."
_AT_ONCE = "iid learns all tasks at once, so there is no moment after one of them."
# Measures without meaning, and why.
_OF_JOINT: Mapping[str, str] = dict.fromkeys(("LA", "BTI", "forgetting", "F"), _GOES_ON)
_OF_IID: Mapping[str, str] = dict.fromkeys(
    (*metrics.AFTER_EACH, "average_anytime_accuracy"), _AT_ONCE
)


class Joint(Finetune):
    """Joint training: while task t is learned, the examples of all tasks up to t are at hand.

    Paper: the upper bound of the field, as in Gupta et al. 2020 (arXiv:2007.13904). Pseudo-code and
    symbols: ``cljax.methods.joint``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.Joint(lr=0.3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.7
        True
    """

    penalty: ClassVar[None] = None
    unmeasured: ClassVar[Mapping[str, str]] = _OF_JOINT

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True)

    def arrange(self, stream: Stream) -> Stream:
        return _cumulative(stream)


class IID(Finetune, name="iid"):
    """Independent, identically distributed examples of all tasks: multi-task training.

    Paper: the sampler of Gupta et al. 2020 (arXiv:2007.13904). Pseudo-code and symbols:
    ``cljax.methods.joint``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.IID(lr=0.3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.7
        True
    """

    penalty: ClassVar[None] = None
    unmeasured: ClassVar[Mapping[str, str]] = _OF_IID
    optimizer_at_border: ClassVar[Literal["keep"]] = "keep"

    lr: Rate = 0.03
    """Step size; an optax optimiser of your own brings its own."""
    tasks_per_batch: Count | None = None
    """How many tasks share an update equally, drawn anew for each, as in the code of La-MAML (4);
    None draws examples of all tasks alike."""
    updates: Count | None = None
    """In an epoch; None is one pass over the examples."""

    def arrange(self, stream: Stream) -> Stream:
        return _mixed(stream, self.tasks_per_batch, self.updates)


def _cumulative(stream: Stream) -> Stream:
    """Task t's updates hold the examples of tasks 0 to t, shuffled in every epoch."""

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        parts: list[StepPlan] = []
        rows, tasks = np.zeros(0, np.int32), np.zeros(0, np.int32)
        for task, own in enumerate(_subsets(stream, seed)):
            rows = np.concatenate([rows, own])
            tasks = np.append(tasks, np.full(len(own), task, np.int32))
            for epoch in range(epochs):
                order = permutation(len(rows), "joint", seed, task, epoch)
                part = batches(
                    rows[order], tasks[order], batch_size,
                    current=task, epoch=epoch, last=epoch == epochs - 1,
                )  # fmt: skip
                parts.append(part)
        return _concatenated(parts)

    return _rearranged(stream, planner, "joint")


def _mixed(stream: Stream, tasks_per_batch: int | None, updates: int | None) -> Stream:
    """One long task over the examples of all."""

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        subsets = _subsets(stream, seed)
        rows = np.concatenate(subsets)
        tasks = np.repeat(np.arange(len(subsets), dtype=np.int32), [len(s) for s in subsets])
        num = updates or -(-len(rows) // batch_size)
        parts: list[StepPlan] = []
        for epoch in range(epochs):
            if tasks_per_batch is None:
                passes = -(-num * batch_size // len(rows))
                order = np.concatenate(
                    [permutation(len(rows), "iid", seed, epoch, p) for p in range(passes)]
                )[: num * batch_size]
                chosen = rows[order], tasks[order]
            else:
                chosen = _balanced(subsets, tasks_per_batch, batch_size, num, seed, epoch)
            parts.append(batches(*chosen, batch_size, epoch=epoch))
        return _concatenated(parts)

    return replace(_rearranged(stream, planner, "iid"), boundaries=False)


def _balanced(
    subsets: tuple[np.ndarray, ...],
    tasks_per_batch: int,
    batch_size: int,
    num: int,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and tasks of ``num`` updates with equal numbers of examples of distinct tasks."""
    if batch_size % tasks_per_batch or tasks_per_batch > len(subsets):
        raise UserError(
            f"tasks_per_batch is {tasks_per_batch}, but it must divide the batch of {batch_size} "
            f"examples and be at most the stream's {len(subsets)} tasks."
        )
    each = batch_size // tasks_per_batch
    sizes = np.array([len(subset) for subset in subsets])
    if each > sizes.min():
        raise UserError(
            f"An update takes {each} examples of a task, but one has only {sizes.min()}; choose "
            "a smaller batch_size."
        )
    count = num * len(subsets)
    ranks = uniform(count, "iid", "tasks", seed, epoch).reshape(num, -1)
    tasks = np.argsort(ranks, axis=1, kind="stable")[:, :tasks_per_batch].astype(np.int32)
    longest = int(sizes.max())
    padded = np.stack([np.pad(s, (0, longest - len(s)), mode="edge") for s in subsets])
    rows = np.zeros((num, tasks_per_batch, each), np.int32)
    for i in range(num):  # distinct examples of each chosen task
        ranks = uniform(tasks_per_batch * longest, "iid", "rows", seed, epoch, i)
        ranks = ranks.reshape(tasks_per_batch, longest)
        ranks[np.arange(longest)[None] >= sizes[tasks[i]][:, None]] = 2.0
        order = np.argpartition(ranks, each - 1, axis=1)[:, :each]
        rows[i] = np.take_along_axis(padded[tasks[i]], order, axis=1)
    return rows.reshape(-1), np.repeat(tasks, each, axis=1).reshape(-1)


def _subsets(stream: Stream, seed: int) -> tuple[np.ndarray, ...]:
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")
    return stream.subsets(seed)


def _rearranged(stream: Stream, planner: Any, name: str) -> Stream:
    return replace(stream, planner=planner, checksum=checksum(stream.checksum, {}, name))


def _concatenated(parts: list[StepPlan]) -> StepPlan:
    return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))
