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

import numpy as np

from cljax.errors import check_positive, given
from cljax.methods import finetune as _finetune
from cljax.optimizers import Optimizer
from cljax.streams.base import Stream, checksum, plan
from cljax.streams.orders import uniform
from cljax.types import Array, Learner, Method, Model, Spec, StepPlan

__all__ = ["Draws", "State", "draw", "multitask"]

Draws, State, draw = _finetune.Draws, _finetune.State, _finetune.draw


def multitask(
    *,
    lr: Array | float = 0.1,
    old_size: int | None = None,
    optimizer: Optimizer = "sgd",
) -> Method:
    """Gradient descent on each batch together with examples of all earlier tasks: an oracle.

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      old_size: examples of earlier tasks beside each batch; None: as many as the batch has.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an unknown optimiser.
    """
    options = dict(locals())
    check_positive(**given(old_size=old_size))
    method = _finetune.finetune(lr=lr, optimizer=optimizer)

    def bind(model: Model, spec: Spec) -> Learner:
        old = spec.batch_size if old_size is None else old_size
        return method.bind(model, spec)._replace(examples_per_update=spec.batch_size + old)

    def arrange(stream: Stream) -> Stream:
        return _widened(stream, old_size)

    return method._replace(
        name="multitask",
        bind=bind,
        needs=method.needs._replace(boundaries=True, task_ids_train=True),
        options=options,
        arrange=arrange,
        make=multitask,
    )


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
