"""How exemplars are chosen among a task's examples: policies for any method that keeps them.

    random:   m examples of each new class, uniformly, without replacement
    first:    the m of lowest row, as the code released with iTAML does
    herding:  for j in 0..m-1:  take the i that minimises |mu - (f_i + sum of f taken) / (j + 1)|

f are the normalised features of one class and mu is their mean; exemplars are best first, so that
a smaller budget keeps a prefix.

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR 2017 (arXiv:1611.07725), algorithm 4,
herding; Rajasegaran et al., "iTAML", CVPR 2020 (arXiv:2003.11652), section 4.1, random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as AnyArray
from jaxtyping import Bool, Float

from cljax.errors import UserError
from cljax.memory import exemplars as store
from cljax.memory.exemplars import Budget, Exemplars
from cljax.memory.policy import ExemplarPolicy
from cljax.nets.cosine import unit
from cljax.types import (
    Array,
    Batch,
    Info,
    Model,
    Phase,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = [
    "SELECTIONS", "First", "Herding", "Random", "Selection", "class_steps", "features_of", "herd",
]  # fmt: skip

Selection: TypeAlias = Literal["random", "first", "herding"]
_WIDTH = 256  # chosen examples a step
_ROUNDS = 1000
_BLOCK = 256  # images a forward pass: bounds its activations


class Random(ExemplarPolicy):
    """m examples of each class, uniformly among those of its task."""

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        return (_chosen(spec, budget, _arrival),)


class First(ExemplarPolicy):
    """The m examples of each class that come first in the data set."""

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        return (_chosen(spec, budget, np.sort),)


class Herding(ExemplarPolicy):
    """The m examples of each class whose running mean of features follows the class's mean."""

    repeats: bool = False
    """The rule of the code released with mnemonics, in which an example may win again."""

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        return (_herded(model, spec, budget, self.repeats),)


SELECTIONS: Mapping[str, ExemplarPolicy] = MappingProxyType(
    {policy.name: policy for policy in (Random(), First(), Herding())}
)


def herd(
    features: Float[AnyArray, "N D"],
    mask: Bool[AnyArray, " N"],
    num: int,
    *,
    repeats: bool = False,
) -> Array:
    """Rows whose running means stay nearest to the mean of all valid rows, in order.

    Args:
      features: with ``repeats`` of length 1 each.
      num: how many, a static size.
      repeats: the rule of the code released with mnemonics (arXiv:2002.10211): a row may win
        again, which takes no place but counts in the running mean; at most 1000 rounds.

    Returns:
      Row indices [num], -1 where no more were found.
    """
    valid = jnp.where(mask[:, None], features, 0.0)
    mean = jnp.sum(valid, axis=0) / jnp.maximum(jnp.sum(mask), 1)
    if repeats:
        return _herd_with_repeats(valid, mask, mean, num)

    def take(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Array]:
        total, free = carry
        gaps = mean[None] - (valid + total[None]) / (j + 1)
        row = jnp.argmin(jnp.where(free, jnp.linalg.norm(gaps, axis=1), jnp.inf))
        return (total + valid[row], free.at[row].set(False)), jnp.where(free[row], row, -1)

    return jax.lax.scan(take, (jnp.zeros_like(mean), mask), jnp.arange(num))[1]


def _herd_with_repeats(valid: Array, mask: Array, mean: Array, num: int) -> Array:
    """argmax <w, f>, then w + mean - f: the same rule for features of length 1, but for repeats."""

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, rows, count, rounds = carry
        return (count < jnp.minimum(num, jnp.sum(mask))) & (rounds < _ROUNDS)

    def take(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        w, rows, count, rounds = carry
        row = jnp.argmax(jnp.where(mask, valid @ w, -jnp.inf))
        new = ~jnp.any(rows == row)
        rows = jnp.where(new, rows.at[count].set(row.astype(rows.dtype)), rows)
        return w + mean - valid[row], rows, count + new, rounds + 1

    zero = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, take, (mean, jnp.full(num, -1), zero, zero))[1]


def _rows_by_class(
    spec: Spec, budget: Budget, task: int, rows: StepPlan
) -> tuple[int, list[np.ndarray]]:
    """Position of a task's first class, and the rows of each of its classes as they arrive."""
    if spec.train_y is None:
        raise UserError("This stream does not say its labels, which exemplars are chosen by.")
    own = rows.mask & (rows.epoch == 0)[:, None] & (rows.index >= 0) & (rows.task == task)
    index = rows.index[own]
    labels = spec.train_y[index]
    classes = budget.classes[budget.task == task]
    begin = int(budget.seen[task]) - len(classes)
    return begin, [index[labels == c] for c in classes]


def _arrival(rows: np.ndarray) -> np.ndarray:
    return rows  # the first epoch's order is uniform


def _chosen(spec: Spec, budget: Budget, order: Callable[[np.ndarray], np.ndarray]) -> Phase:
    """Policies that choose on the host: a step stores so many of the rows chosen."""

    def plan(task: int, rows: StepPlan) -> StepPlan:
        share = int(budget.shares[task])
        _, result = _rows_by_class(spec, budget, task, rows)
        index = np.zeros((len(result), share), np.int32)
        mask = np.zeros(index.shape, bool)
        for k, own in enumerate(result):
            taken = order(own)[:share]
            index[k, : len(taken)], mask[k, : len(taken)] = taken, True
        return _flat_plan(index.reshape(1, -1), mask.reshape(1, -1), task, _WIDTH)

    def update(state: PyTree, batch: Batch, draws: tuple[()]) -> tuple[PyTree, Info]:
        task = batch.clock.task
        seen, shares = (jnp.asarray(a, jnp.int32) for a in (budget.seen, budget.shares))
        begin = jnp.where(task > 0, seen[task - 1], 0) * shares[task]
        width = batch.y.shape[0]
        slots = begin + batch.clock.step * width + jnp.arange(width)
        return _kept(state, batch, slots, budget), Info(jnp.zeros(()))

    return Phase("exemplars", plan, lambda state, batch, key: (), update, stored=True)


def _herded(model: Model, spec: Spec, budget: Budget, repeats: bool) -> Phase:
    """A step a class, with all its examples."""

    def plan(task: int, rows: StepPlan) -> StepPlan:
        return class_steps(spec, budget, task, rows)

    def update(state: PyTree, batch: Batch, draws: tuple[()]) -> tuple[PyTree, Info]:
        task = batch.clock.task
        seen = jnp.asarray(budget.seen, jnp.int32)
        position = jnp.where(task > 0, seen[task - 1], 0) + batch.clock.step
        variables = Variables(state.params, state.model_state)
        features = unit(features_of(model, spec, variables, batch))
        most = int(budget.shares.max())
        taken = herd(features, batch.mask, most, repeats=repeats)
        picked = batch._replace(
            x=jax.tree.map(lambda a: a[taken], batch.x), y=batch.y[taken], task=batch.task[taken],
            index=batch.index[taken], mask=batch.mask[taken] & (taken >= 0),
        )  # fmt: skip
        slots = store.slots_of(budget, position, task)
        return _kept(state, picked, slots, budget), Info(jnp.zeros(()))

    return Phase("exemplars", plan, lambda state, batch, key: (), update, stored=True)


def class_steps(spec: Spec, budget: Budget, task: int, rows: StepPlan) -> StepPlan:
    """A step for each of a task's new classes, with all its examples that the plan has."""
    _, result = _rows_by_class(spec, budget, task, rows)
    assert spec.train_y is not None
    width = int(np.bincount(spec.train_y).max())  # of any task, so that one program serves all
    index = np.zeros((len(result), width), np.int32)
    mask = np.zeros(index.shape, bool)
    for k, own in enumerate(result):
        index[k, : len(own)], mask[k, : len(own)] = own, True
    return _flat_plan(index, mask, task, width)


def features_of(model: Model, spec: Spec, variables: Variables, batch: Batch) -> Array:
    """Features ``[B, D]`` of stored examples, in evaluation mode, a block at a time."""

    def one(x_task: tuple[PyTree, Array]) -> Array:
        x, task = jax.tree.map(lambda a: a[None], x_task)
        return model.apply(variables, spec.show(x, task), False)[0].features[0]

    return jax.lax.map(one, (batch.x, batch.task), batch_size=_BLOCK)


def _kept(state: PyTree, batch: Batch, slots: Array, budget: Budget) -> PyTree:
    """The state with a batch's valid rows in these slots; a phase's first step makes room."""
    task = batch.clock.task
    kept = jax.lax.cond(
        batch.clock.step == 0,
        lambda old: store.compacted(old, budget, task),
        lambda old: old,
        state.exemplars,
    )
    slots = jnp.where(batch.mask, slots, budget.capacity)
    put = lambda old, new: old.at[slots].set(new.astype(old.dtype), mode="drop")
    new = Exemplars(batch.x, batch.y, batch.task, batch.index, batch.mask)._asdict()
    if "chosen" in kept._fields:  # policies that learn them keep the choice
        new["chosen"] = batch.x
    old = {name: getattr(kept, name) for name in new}
    return state._replace(exemplars=kept._replace(**jax.tree.map(put, old, new)))


def _flat_plan(index: np.ndarray, mask: np.ndarray, task: int, width: int) -> StepPlan:
    """Steps of ``width`` rows from [n, N] rows, each line padded to whole steps."""
    padding = -index.shape[1] % width
    pad = lambda a: np.pad(a, ((0, 0), (0, padding))).reshape(-1, width)
    index, mask = pad(index), pad(mask)
    num = len(index)
    last = np.zeros(num, bool)
    last[-1] = True
    tasks = np.full(index.shape, task, np.int32)
    current = np.full(num, task, np.int32)
    epoch = np.zeros(num, np.int32)
    return StepPlan(index, tasks, mask, current, epoch, np.zeros(num, bool), last)
