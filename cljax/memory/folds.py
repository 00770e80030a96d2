"""Whose turn it is: which exemplars an outer step learns, which it trains on, which judge it.

    new:  every exemplar of the task's classes; step i of the inner loop has the next few of each
    old:  fold s mod F of every older class, judged by the exemplars of the other folds

Places of a class are dealt into folds in an order that the task and the class choose. What stays
real is in no fold, and judges all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.memory.bilevel import Judged
from cljax.memory.exemplars import Budget, epochs_of, recall, rows_of
from cljax.streams.orders import permutation
from cljax.types import Array, Batch, Info, Phase, PyTree, Spec, StepPlan

__all__ = [
    "FoldSchedule",
    "Geometry",
    "Turn",
    "geometry_of",
    "new_phases",
    "old_phase",
]


class Turn(NamedTuple):
    """Whose turn it is."""

    slots: Array  # [T, W] int32, of the inner steps
    mask: Array  # [T, W] bool
    active: Array  # [M] bool, slots that this step moves
    learned: Array  # [M] bool, slots that the phase moves
    judges: Array  # [B] int32, slots of the validation batch, where exemplars judge


class Geometry(NamedTuple):
    """Which places each class's exemplars have in the folds; host arrays."""

    place: np.ndarray  # [T, n, m] the places of the class at a position, shuffled
    fold: np.ndarray  # [T, n, m] the fold of a place, -1 for none


def geometry_of(budget: Budget, folds: int) -> Geometry:
    """Where the exemplars of every task lie, and in which of ``folds`` parts each is."""
    place = np.zeros((len(budget.shares), len(budget.classes), budget.shares.max()), np.int32)
    fold = np.full(place.shape, -1, np.int32)
    for task, count in enumerate(budget.shares):
        for k in range(int(budget.seen[task])):
            order = permutation(int(count), "mnemonics", task, k)
            place[task, k, :count] = order
            fold[task, k, order] = np.arange(count) % folds
    return Geometry(place, fold)


class FoldSchedule(NamedTuple):
    """How exemplars take turns, and what a turn does.

    ``learn(state, batch, draws, turn, judged) -> (state, info)``; ``judged.x`` None: the turn's
    judges.
    """

    budget: Budget
    geometry: Geometry
    learn: Callable[..., tuple[PyTree, Info]]
    steps: int  # inner steps for new exemplars; old ones go once through a fold
    images: int  # exemplars of each class in an inner step
    epochs: int
    folds: int
    union: bool  # new exemplars are judged by old ones too
    everyone: bool  # all outputs seen compete, and inner steps hold all classes seen


def new_phases(spec: Spec, schedule: FoldSchedule) -> list[Phase]:
    """One phase for the first task and one for the others, where those need fewer classes."""
    budget = schedule.budget
    sizes = budget.seen if schedule.everyone else np.diff(budget.seen, prepend=0)
    turns = schedule.steps * schedule.images

    def phase(name: str, serves: Callable[[int], bool], width: int) -> Phase:
        def plan(task: int, rows: StepPlan) -> StepPlan | None:
            if not serves(task):
                return None
            own = rows.index[rows.mask & (rows.epoch == 0)[:, None] & (rows.index >= 0)]
            owner = np.full(len(own), task, np.int32)
            if schedule.union and task:
                count = int(budget.seen[task - 1] * budget.shares[task])
                others, of = rows_of(budget, task)
                own, owner = np.append(own, others[:count]), np.append(owner, of[:count])
            size = rows.index.shape[1]
            return epochs_of(own, owner, size, task, schedule.epochs, "mnemonics", "new")

        def update(state: PyTree, batch: Batch, draws: PyTree) -> tuple[PyTree, Info]:
            task, capacity = batch.clock.task, budget.capacity
            seen, shares = _tables(budget)
            first = jnp.where(task > 0, seen[task - 1], 0)
            position = jnp.arange(width) + (0 if schedule.everyone else first)
            place = (batch.clock.step * turns + jnp.arange(turns)) % shares[task]
            place = place.reshape(schedule.steps, 1, schedule.images)
            slots = position[None, :, None] * shares[task] + place
            there = jnp.broadcast_to((position < seen[task])[None, :, None], slots.shape)
            flat = lambda a: a.reshape(schedule.steps, -1)
            slots, there = flat(jnp.minimum(slots, capacity - 1)), flat(there)
            owner, _ = _owners(capacity, shares[task])
            learned = (owner >= first) & (owner < seen[task])
            turn = Turn(slots, there, learned, learned, slots[0])
            owned = _outputs(spec, task, not schedule.everyone, old=False)
            kept = state.exemplars.mask.at[-2 - batch.index].get(mode="clip")
            mask = batch.mask & ((batch.index >= 0) | kept)
            judged = Judged(batch.x, batch.y, mask, owned)
            return schedule.learn(state, batch, draws, turn, judged)

        recalled = None
        if schedule.union:
            recalled = lambda state, x, y, index: recall(state.exemplars, x, y, index)
        return Phase(name, plan, _draw, update, augment=True, recall=recalled)

    if len(sizes) == 1 or sizes[0] <= sizes[1:].max():
        return [phase("mnemonics", lambda task: True, int(sizes.max()))]
    return [
        phase("mnemonics-first", lambda task: task == 0, int(sizes[0])),
        phase("mnemonics", lambda task: task > 0, int(sizes[1:].max())),
    ]


def old_phase(spec: Spec, schedule: FoldSchedule) -> Phase:
    """Folds take turns: step s moves fold s modulo their number, judged by the others."""
    budget, geometry, folds = schedule.budget, schedule.geometry, schedule.folds
    width = int(budget.seen[-2])
    most = -(-int(budget.shares[1:].max()) // folds)  # exemplars of a class in a fold
    count = -(-most // schedule.images)  # inner steps, once through a fold
    turns = count * schedule.images

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task == 0:
            return None
        share, seen = int(budget.shares[task]), int(budget.seen[task - 1])
        fold = geometry.fold[task, :seen, :share].reshape(-1)
        others, owner = (a[: seen * share] for a in rows_of(budget, task))
        size = rows.index.shape[1]
        judges = [
            epochs_of(
                others[fold != f], owner[fold != f], size, task, schedule.epochs, "mnemonics", f
            )
            for f in range(folds)
        ]
        parts = []
        for epoch in range(schedule.epochs):
            own = [np.flatnonzero(steps.epoch == epoch) for steps in judges]
            each = min(map(len, own))  # folds may differ by one exemplar a class
            for b in range(each):
                parts += [
                    jax.tree.map(lambda a, at=at[b]: a[at : at + 1], steps)
                    for steps, at in zip(judges, own, strict=True)
                ]
        mixed = StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return mixed._replace(last=np.arange(len(parts)) == len(parts) - 1)

    def update(state: PyTree, batch: Batch, draws: PyTree) -> tuple[PyTree, Info]:
        task, step, capacity = batch.clock.task, batch.clock.step, budget.capacity
        seen, shares = _tables(budget)
        f, past = step % folds, seen[task - 1]
        members = (shares[task] - f + folds - 1) // folds
        position = jnp.arange(width)
        i = (step // folds * turns + jnp.arange(turns)) % members
        place = jnp.asarray(geometry.place)[task][position][:, f + folds * i]  # [W, turns]
        slots = position[:, None] * shares[task] + place
        arranged = lambda a: (
            a.reshape(width, count, schedule.images).swapaxes(0, 1).reshape(count, -1)
        )
        there = jnp.broadcast_to((position < past)[:, None], slots.shape)
        slots = arranged(jnp.minimum(slots, capacity - 1))
        owner, at = _owners(capacity, shares[task])
        of_slot = jnp.asarray(geometry.fold)[task].at[owner, at].get(mode="fill", fill_value=-1)
        olds = owner < past
        judges = jnp.clip(-2 - batch.index, 0, capacity - 1)
        turn = Turn(slots, arranged(there), olds & (of_slot == f), olds & (of_slot >= 0), judges)
        kept = state.exemplars
        owned = _outputs(spec, task, not schedule.everyone, old=True)
        mask = batch.mask & kept.mask[judges]
        return schedule.learn(state, batch, draws, turn, Judged(None, kept.y[judges], mask, owned))

    return Phase("adjust", plan, _draw, update, stored=True)


def _tables(budget: Budget) -> tuple[Array, Array]:
    """Classes seen, and slots of each; [T] each."""
    return jnp.asarray(budget.seen, jnp.int32), jnp.asarray(budget.shares, jnp.int32)


def _owners(capacity: int, share: Array) -> tuple[Array, Array]:
    """Position of the class that owns each slot, and the slot's place among its own."""
    slot = jnp.arange(capacity)
    return slot // share, slot % share


def _outputs(spec: Spec, task: Array, own: bool, *, old: bool) -> Array:
    """[C] bool, the outputs that compete."""
    tasks = jnp.arange(spec.num_tasks)
    among = (tasks < task if old else tasks == task) if own else tasks <= task
    return jnp.any(spec.class_mask & among[:, None], axis=0)


def _draw(state: PyTree, batch: Batch, key: Array) -> Array:
    """Fresh initial weights come from the step's key; nothing else is random."""
    return key
