"""Exemplars: a few stored examples of every class seen, within a budget, replayed beside new data.

    budget:   after task t each of the n_t classes seen has  m_t  slots:  m, or  floor(M / n_t),
              with  M = floor(bytes / those of an example)  where a number of bytes is given
    slots:    class k (in order of arrival) owns slots  k m_t .. (k + 1) m_t - 1,  best first
    task t:   learns from its own examples and the exemplars of earlier tasks, shuffled together
    after it: older classes keep their first m_t exemplars, a policy fills in the new ones

How many exemplars there are is known beforehand, so plans name them: a row ``-2 - slot`` of a
plan stands for an exemplar, and ``recall`` puts it in the row's place. Exemplars are kept as the
stream stores its examples, so they are augmented anew at every use.

Symbols: M ``total``, m ``per_class``, m_t ``shares``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as AnyArray
from jaxtyping import Int

from cljax import tree
from cljax.errors import UserError, check_positive
from cljax.states import Contents
from cljax.streams.base import Stream, batches, checksum
from cljax.streams.orders import permutation
from cljax.types import Array, PyTree, Spec, StepPlan

__all__ = [
    "Budget", "Exemplars", "budget_of", "compacted", "counts", "epochs_of", "init", "recall",
    "replayed", "rows_of", "slots_of", "stored",
]  # fmt: skip

_FIRST_ROW = -2  # a plan's row for slot 0; -1 is no row


class Exemplars(NamedTuple):
    """M slots; those with ``mask`` False hold zeros or leftovers."""

    x: PyTree  # [M, ...], as the stream stores its examples
    y: Array  # [M] int32
    task: Array  # [M] int32
    index: Array  # [M] int32, row of the stream's training arrays, -1 if there is none
    mask: Array  # [M] bool

    @property
    def contents(self) -> Contents:
        """The exemplars themselves."""
        return Contents(self.x, self.y, self.task, self.mask)


class Budget(NamedTuple):
    """Who owns which slots after each task; host arrays, the same for every seed."""

    classes: np.ndarray  # [n] int32, labels in order of arrival
    task: np.ndarray  # [n] int32, the task that brings each of them
    seen: np.ndarray  # [T] classes seen once task t has ended
    shares: np.ndarray  # [T] slots of each of them
    capacity: int  # slots in all


def budget_of(
    class_mask: np.ndarray,
    *,
    total: int | None = None,
    per_class: int | None = None,
    total_bytes: int | None = None,
    example: PyTree = None,
) -> Budget:
    """The slots of each class after each task, within a total or so many a class.

    Args:
      class_mask: [T, C] bool; no class may belong to two tasks.
      total: exemplars of all classes together. per_class: of each class. total_bytes: of all
        classes together, in bytes of ``example``. Give one of them.
      example: one as the stream stores it, see ``stored``; needed for total_bytes.

    Raises:
      UserError: for a budget below one exemplar a class, or tasks that share classes.
    """
    if sum(count is not None for count in (total, per_class, total_bytes)) != 1:
        raise UserError(
            "A budget of exemplars is a total, a number per class or a total of bytes; give one of "
            "them."
        )
    if np.any(class_mask.sum(axis=0) > 1):
        raise UserError(
            "Exemplars by class need a stream in which no class belongs to two tasks, such as "
            "split-mnist; for others a reservoir serves (cljax er, lamaml)."
        )
    task, classes = (part.astype(np.int32) for part in np.nonzero(class_mask))
    seen = np.cumsum(class_mask.sum(axis=1))
    if per_class is not None:
        check_positive(per_class=per_class)
        shares = np.full(len(seen), per_class)
    elif total_bytes is not None:
        check_positive(total_bytes=total_bytes)
        each = tree.size(example)
        shares = total_bytes // each // seen
        if shares[-1] < 1:
            raise UserError(
                f"The budget of exemplars is {total_bytes} bytes, but it must be at least "
                f"{each * seen[-1]}, one of {each} bytes of each class of the stream."
            )
    else:
        assert total is not None
        check_positive(total=total)
        shares = total // seen
        if shares[-1] < 1:
            raise UserError(
                f"The budget of exemplars is {total}, but it must be at least {seen[-1]}, one of "
                "each class of the stream."
            )
    return Budget(classes, task, seen, shares, int((shares * seen).max()))


def stored(spec: Spec) -> PyTree:
    """``jax.ShapeDtypeStruct`` of one example as the stream stores it."""
    return spec.example if spec.stored is None else spec.stored


def init(example: PyTree, capacity: int) -> Exemplars:
    """``capacity`` empty slots for examples like ``example``, arrays or ShapeDtypeStructs."""
    check_positive(capacity=capacity)
    x = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), example)
    none = jnp.zeros(capacity, jnp.int32)
    return Exemplars(x, none, none, none - 1, jnp.zeros(capacity, bool))


def recall(
    exemplars: Exemplars, x: PyTree, y: Int[AnyArray, " B"], index: Int[AnyArray, " B"]
) -> tuple[PyTree, Int[AnyArray, " B"]]:
    """Stored examples and labels with the exemplars that a plan's rows name in their places.

    Exemplars kept as floats make floats of all the examples beside them.
    """
    slot, ours = _FIRST_ROW - index, index <= _FIRST_ROW

    def put(old: Array, kept: Array) -> Array:
        where = ours.reshape(-1, *(1 for _ in old.shape[1:]))
        return jnp.where(where, kept.at[slot].get(mode="clip"), old)

    return jax.tree.map(put, x, exemplars.x), put(y, exemplars.y)


def compacted(exemplars: Any, budget: Budget, task: Int[AnyArray, ""]) -> Any:
    """The slots once ``task`` has ended: older classes' first m_t, the new classes' empty.

    ``exemplars`` may have more fields than ``Exemplars``, as learned ones have.
    """
    shares, seen = (jnp.asarray(a, jnp.int32) for a in (budget.shares, budget.seen))
    share, before = shares[task], jnp.maximum(task - 1, 0)
    slot = jnp.arange(budget.capacity)
    owner, place = slot // share, slot % share
    older = (owner < seen[before]) & (task > 0)
    source = jnp.where(older, owner * shares[before] + place, 0)
    # Learned ones also keep what they were chosen as.
    names = [name for name in (*Exemplars._fields, "chosen") if name in exemplars._fields]
    slots = {name: getattr(exemplars, name) for name in names}
    moved = exemplars._replace(**jax.tree.map(lambda a: a[source], slots))
    return moved._replace(
        index=jnp.where(older, moved.index, -1),
        mask=moved.mask & older & (place < shares[before]),
    )


def slots_of(budget: Budget, position: Int[AnyArray, ""], task: Int[AnyArray, ""]) -> Array:
    """[m_0] slots of the class at ``position``, once ``task`` has ended, best first.

    m_0 is the largest share; places beyond m_t are ``capacity``, where ``mode="drop"`` writes
    nothing.
    """
    share = jnp.asarray(budget.shares, jnp.int32)[task]
    place = jnp.arange(int(budget.shares.max()))
    return jnp.where(place < share, position * share + place, budget.capacity)


def rows_of(budget: Budget, task: int) -> tuple[np.ndarray, np.ndarray]:
    """A plan's rows for all slots once ``task`` has ended, and the task of each; on the host."""
    share, seen = int(budget.shares[task]), int(budget.seen[task])
    slots = np.arange(seen * share, dtype=np.int32)
    return _FIRST_ROW - slots, budget.task[slots // share]


def epochs_of(
    rows: np.ndarray, owner: np.ndarray, batch_size: int, task: int, epochs: int, *name: int | str
) -> StepPlan:
    """A phase's steps: passes over rows, of these tasks, each in an order that ``name`` chooses.

    That order is of places and the same for all seeds: what lies at a place is the seed's, if rows
    stand as they arrive or name slots of exemplars.
    """
    parts = []
    for epoch in range(epochs):
        order = permutation(len(rows), *name, task, epoch)
        parts.append(
            batches(rows[order], owner[order], batch_size, current=task, epoch=epoch,
                    last=epoch == epochs - 1)
        )  # fmt: skip
    return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def counts(stream: Stream, budget: Budget, seed: int) -> np.ndarray:
    """[n] training examples of each class of the budget, for a seed."""
    subsets = stream.subsets(seed)
    labels = [np.asarray(stream.train_y)[rows] for rows in subsets]
    result = [np.sum(labels[t] == c) for c, t in zip(budget.classes, budget.task, strict=True)]
    return np.array(result, int)


def replayed(stream: Stream, budget: Budget | None, *, first_epochs: int | None = None) -> Stream:
    """The stream with each task's updates drawn from its examples and the exemplars together.

    Args:
      budget: of exemplars; None replays all past examples instead.
      first_epochs: epochs of the first task; None: as many as of the others.

    Raises:
      UserError: for a stream that has a plan of its own.
    """
    if stream.planner is not None:
        raise UserError(f"The stream {stream.name} has a plan of its own; start from its tasks.")
    if first_epochs is not None:
        check_positive(first_epochs=first_epochs)

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        held = None if budget is None else counts(stream, budget, seed)
        subsets, parts = stream.subsets(seed), []
        for task, own in enumerate(subsets):
            rows = [own]
            tasks = [np.full(len(own), task, np.int32)]
            if budget is None:
                rows += subsets[:task]
                tasks += [np.full(len(past), i, np.int32) for i, past in enumerate(subsets[:task])]
            elif task:
                assert held is not None
                share = int(budget.shares[task - 1])
                slots, owner = rows_of(budget, task - 1)
                filled = np.arange(share)[None] < held[: budget.seen[task - 1], None]
                rows.append(slots[filled.ravel()])
                tasks.append(owner[filled.ravel()])
            union, owner = np.concatenate(rows), np.concatenate(tasks)
            passes = first_epochs if task == 0 and first_epochs is not None else epochs
            for epoch in range(passes):
                order = permutation(len(union), "replayed", seed, task, epoch)
                last = epoch == passes - 1
                parts.append(
                    batches(union[order], owner[order], batch_size, current=task, epoch=epoch,
                            last=last)
                )  # fmt: skip
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    named = ("replayed", first_epochs, None if budget is None else budget.shares.tolist())
    return replace(stream, planner=planner, checksum=checksum(stream.checksum, {}, *named))
