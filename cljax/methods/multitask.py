"""Multi-task: a bound that still has the old tasks' examples while it learns a new one.

    task t > 0:   bm = the batch ++ R examples of tasks 0 to t - 1, drawn with replacement
                  theta = theta - lr * grad CE(theta; bm)
    task 0:       the batch alone

The loss is the mean over all examples of bm, each over the outputs of its own task where tasks
have heads; every example of an earlier task is as likely as any other. It is fine-tuning on a
stream arranged otherwise, and what a learned rule is taught to follow (``teacher``).

Symbols: theta ``params``, lr ``lr``, R ``old_size``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), the teacher of algorithm 1: 64 old and 64 new examples a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from cljax.method import Cost, Problem
from cljax.methods.finetune import Finetune
from cljax.options import Count, Rate
from cljax.streams.base import Stream, checksum, plan
from cljax.streams.orders import uniform
from cljax.types import Needs, StepPlan

__all__ = ["Multitask"]


class Multitask(Finetune):
    """Gradient descent on each batch together with examples of all earlier tasks: an oracle.

    Paper: Xiong et al. 2019 (arXiv:1910.04650), the teacher of algorithm 1. Pseudo-code and
    symbols: ``cljax.methods.multitask``.

    Example:
        >>> import cljax
        >>> method = cljax.Multitask(lr=0.5)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16", epochs=2)
        >>> float(run.metric("BTI")[0]) > -0.2
        True
    """

    penalty: ClassVar[None] = None
    clip_norm: ClassVar[None] = None

    lr: Rate = 0.1
    """Step size; an optax optimiser of your own brings its own."""
    old_size: Count | None = None
    """Examples of earlier tasks beside each batch; None: as many as the batch has."""

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True)

    def arrange(self, stream: Stream) -> Stream:
        return _widened(stream, self.old_size)

    def cost(self, problem: Problem) -> Cost:
        size = problem.spec.batch_size
        return Cost(1, size + (size if self.old_size is None else self.old_size))


def _widened(stream: Stream, old_size: int | None) -> Stream:
    """The stream whose updates also hold examples of earlier tasks."""

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        rows = plan(stream, seed, batch_size, epochs)
        subsets = stream.subsets(seed)
        past = np.concatenate(subsets)
        owner = np.repeat(np.arange(len(subsets), dtype=np.int32), [len(s) for s in subsets])
        before = np.cumsum([0, *(len(s) for s in subsets)])  # examples of earlier tasks
        old = batch_size if old_size is None else old_size
        # In task 0 there are none: the columns repeat the batch's first example, masked.
        index, task = (np.repeat(column[:, :1], old, axis=1) for column in (rows.index, rows.task))
        mask = np.repeat(rows.current[:, None] > 0, old, axis=1)
        for current in range(1, len(subsets)):
            steps = np.flatnonzero(rows.current == current)
            share = uniform(len(steps) * old, "multitask", seed, current).reshape(-1, old)
            place = (share * before[current]).astype(np.int64)
            index[steps], task[steps] = past[place], owner[place]
        wide = (index, task, mask)
        index, task, mask = (
            np.concatenate(pair, axis=1) for pair in zip(rows[:3], wide, strict=True)
        )
        return rows._replace(index=index, task=task, mask=mask)

    mark = checksum(stream.checksum, {}, "multitask", old_size)
    return replace(stream, planner=planner, checksum=mark)
