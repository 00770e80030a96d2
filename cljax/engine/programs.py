"""Programs: what a run computes, as pure functions over one state pytree.

    carry = (state, losses, online_correct, health)
    segment(carry, plan, data, key, start, stop):  for i in start..stop:  carry = step(carry, i)

A segment has traced bounds and is run again and again: any length gives the same bits, so its
length is free to follow the clock. ``whole`` is the same step in one ``lax.scan``, for use under
a user's own ``vmap`` or ``grad``. Phases are segments with plans of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.method import Method
from cljax.streams.base import Stream, Transform, targets_on_device
from cljax.types import Array, Batch, Clock, Info, Learner, Phase, PyTree, Recall, StepPlan

__all__ = [
    "AUGMENT", "Carry", "Hyper", "Step", "TrainData", "arriving", "batch_of", "begin",
    "check_leaves", "device_plan", "leaf_names", "make_segment", "make_step", "make_update",
    "online_correct", "train_data", "whole",
]  # fmt: skip

Step = Callable[[PyTree, "Row", "TrainData", Array, Array], tuple[PyTree, Info, Array]]


class Hyper(NamedTuple):
    """What differs between the lanes of a program."""

    method: Method  # its leaves are arrays, [] or [L]
    class_order: Any = None  # [labels] or [L, labels] int32, where each seed has its own order


class TrainData(NamedTuple):
    """Training images once, and the tables of the stream's transform."""

    x: Array  # [N, ...]
    y: Array  # [N] int32, or targets
    tables: PyTree


# Purposes of keys beside the draws' own.
AUGMENT, _SELECT = zlib.crc32(b"augment"), zlib.crc32(b"select")
Row = StepPlan  # a row of a plan: the same fields without the leading axis


class Carry(NamedTuple):
    """What a segment passes on: the state, what each update of the plan reported, and health."""

    state: PyTree
    losses: Any  # [S] float32
    online_correct: Any  # [S] int32, new examples classified right before learning from them
    bad: Any  # [] int32, the first update whose loss was not finite; -1: none
    sound: Any  # [N] bool, whether each leaf of ``leaf_names`` is finite at the segment's end


def train_data(stream: Stream) -> TrainData:
    """Puts a stream's training images on the device."""
    x, tables = jax.device_put((stream.train_x, stream.transform.tables))
    return TrainData(x, targets_on_device(stream.train_y), tables)


def device_plan(plan: Any) -> Any:
    """Puts a plan, or a pytree of plans, on the device: without a program, unlike jnp.asarray."""
    return jax.device_put(plan)


def leaf_names(state: PyTree) -> list[str]:
    """Names of the leaves that ``Carry.sound`` speaks of: those of floating type."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _sound(state: PyTree) -> Array:
    floating = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floating], bool)


def batch_of(
    state: PyTree,
    row: Row,
    data: TrainData,
    transform: Transform,
    step: Array,
    *,
    recall: Recall | None = None,
    key: Array | None = None,
    stored: bool = False,
) -> Batch:
    """The batch that a row of a plan describes.

    Args:
      state: what ``recall`` reads.
      key: augments the examples, if the stream does; None leaves them as they are.
      stored: leave examples as the stream stores them.
    """
    x, y = data.x[row.index], data.y[row.index]
    if recall is not None:
        x, y = recall(state, x, y, row.index)
    if not stored:
        augment = transform.augment
        if key is not None and augment is not None:
            x = augment.apply(x, augment.draw(key, row.index.shape[0]))
        x = transform.apply(data.tables, x, row.task)
    clock = Clock(row.current, row.epoch, step, row.first_pass, row.last)
    return Batch(x, y, row.task, row.mask, row.index, clock)


def begin(state: PyTree, num_steps: int) -> Carry:
    """The carry at the beginning of a plan of ``num_steps`` updates, for one lane."""
    losses, correct = jnp.zeros(num_steps, jnp.float32), jnp.zeros(num_steps, jnp.int32)
    return Carry(state, losses, correct, jnp.asarray(-1, jnp.int32), _sound(state))


def make_step(
    source: Learner | Phase, transform: Transform, online: Callable[[PyTree, Batch], Array] | None
) -> Step:
    """``(state, row, data, key, i) -> (state, info, online_correct)``: one update of a plan."""
    stored, augmented, select = False, True, None
    if isinstance(source, Phase):
        stored, augmented, select = source.stored, source.augment, source.select

    def step(
        state: PyTree, row: Row, data: TrainData, key: Array, i: Array
    ) -> tuple[PyTree, Info, Array]:
        key = jax.random.fold_in(key, i)
        own = jax.random.fold_in(key, AUGMENT) if augmented else None
        if select is not None:
            row = select(state, row, jax.random.fold_in(key, _SELECT))
        batch = batch_of(
            state, row, data, transform, i, recall=source.recall, key=own, stored=stored
        )
        correct = jnp.zeros((), jnp.int32) if online is None else online(state, batch)
        draws = source.draw(state, batch, key)
        state, info = source.update(state, batch, draws)
        return state, info, correct

    return step


def arriving(
    mask: Any, index: Any, task: Any, current: Any, first_pass: Any, *, boundaries: bool
) -> Any:
    """[..., B] bool, the examples of updates that come for the first time, not again.

    Later passes, remembered examples and those of earlier tasks come again. Host arrays or traced.

    Args:
      mask, index, task: [..., B]. current, first_pass: [...], of a ``StepPlan`` or a ``Batch``.
      boundaries: whether the stream says which task is being learned.
    """
    new = mask & (index >= 0) & first_pass[..., None]
    return new & (task == current[..., None]) if boundaries else new


def online_correct(learner: Learner, stream: Stream) -> Callable[[PyTree, Batch], Array]:
    """Counts a batch's new examples that the state classifies right before learning from them.

    The outputs that compete are those of the losses: the example's own task's in multi-head
    streams, else all.
    """
    names = [name for name in learner.predictors if name != "features"]
    predictor = learner.predictors["logits" if "logits" in names else names[0]]
    owner = jnp.asarray(stream.class_mask)

    def count(state: PyTree, batch: Batch) -> Array:
        scores = predictor.scores(predictor.prepare(state), batch)
        allowed = owner[batch.task] if stream.multi_head else jnp.any(owner, axis=0)[None]
        guess = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
        _, y, task, mask, index, clock = batch
        new = arriving(
            mask, index, task, clock.task, clock.first_pass, boundaries=stream.boundaries
        )
        return jnp.sum((guess == y) & new, dtype=jnp.int32)

    return count


def whole(
    learner: Learner, transform: Transform
) -> Callable[[PyTree, StepPlan, TrainData, Array], tuple[PyTree, Array]]:
    """A whole plan as one ``lax.scan``: ``(state, plan, data, key) -> (state, losses [S])``.

    A pure function of its arguments and of everything the learner closes over, so it goes under
    ``vmap`` over keys and hyper-parameters, and ``grad`` through a run.
    """
    step = make_step(learner, transform, None)

    def run(state: PyTree, plan: StepPlan, data: TrainData, key: Array) -> tuple[PyTree, Array]:
        def body(state: PyTree, i_row: tuple[Array, Row]) -> tuple[PyTree, Array]:
            i, row = i_row
            state, info, _ = step(state, row, data, key, i)
            return state, info.loss

        return jax.lax.scan(body, state, (jnp.arange(plan.current.shape[0]), plan))

    return run


def make_update(step: Step) -> Callable[..., Carry]:
    """``(carry, plan, data, key, i) -> carry``: update i of a plan, and what it reports."""

    def update(carry: Carry, plan: StepPlan, data: TrainData, key: Array, i: Array) -> Carry:
        row = jax.tree.map(lambda a: a[i], plan)
        state, info, correct = step(carry.state, row, data, key, i)
        loss = info.loss.astype(jnp.float32)
        bad = jnp.where((carry.bad < 0) & ~jnp.isfinite(loss), i, carry.bad)
        return Carry(
            state,
            carry.losses.at[i].set(loss),
            carry.online_correct.at[i].set(correct),
            bad,
            carry.sound,
        )

    return update


def make_segment(step: Step) -> Callable[..., Carry]:
    """``(carry, plan, data, key, start, stop) -> carry``: updates start to stop - 1 of a plan."""
    update = make_update(step)

    def segment(
        carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Array, stop: Array
    ) -> Carry:
        return jax.lax.fori_loop(start, stop, lambda i, c: update(c, plan, data, key, i), carry)

    return segment


def check_leaves(carry: Carry) -> Carry:
    """The carry at a segment's end, which says of each leaf whether it is finite."""
    return carry._replace(sound=_sound(carry.state))
