"""Exemplars as parameters: what policies that learn their pixels share.

    begin:    e = the exemplars as they are stored,  v = 0
    step(g):  v = mu v + g / a^2,    e = clip(e - beta v)      for the slots that are active
    end:      the exemplars = round(e)

e is in the stream's stored units (grey levels 0 to 255). The papers step in normalised pixels
n = a e + b, by beta dL/dn; that is beta (dL/de) / a^2 in e. The slopes a^2 are those of the
stream's transform, J^T J 1, exact where each value that the network sees depends on one stored
value. Clipping is the projection onto the range of the stored type; floats are not clipped.

Symbols: e ``pixels``, v ``velocity``, beta ``lr``, mu ``momentum``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.memory import exemplars as store
from cljax.memory.exemplars import Budget
from cljax.states import Contents
from cljax.types import Array, Batch, PyTree, Spec

__all__ = ["Learned", "Rounding", "begin", "change", "empty", "finish", "moved", "shown"]

Rounding: TypeAlias = Literal["nearest", "truncate", "none"]


class Learned(NamedTuple):
    """``Exemplars``, and what their optimisation keeps between its steps."""

    x: PyTree  # [M, ...], as the stream stores its examples, or floats in its units
    y: Array  # [M] int32
    task: Array  # [M] int32
    index: Array  # [M] int32, row of the stream's training arrays that it began as
    mask: Array  # [M] bool
    chosen: Array  # [M, ...], the examples as they were chosen, for comparison
    pixels: Array  # [M, ...] float, while a phase learns them
    velocity: Array  # [M, ...] float
    anchors: PyTree  # what a policy computes once and looks at in the steps that follow

    @property
    def contents(self) -> Contents:
        """The exemplars, and the examples that they began as."""
        return Contents(self.x, self.y, self.task, self.mask, self.chosen)


def empty(spec: Spec, budget: Budget, *, rounding: Rounding, anchors: PyTree = ()) -> Learned:
    """``budget.capacity`` empty slots.

    Raises:
      UserError: for examples that are not one array.
    """
    example: Any = store.stored(spec)
    if not isinstance(example, jax.ShapeDtypeStruct):
        raise UserError("Exemplars that are learned must be single arrays, such as images.")
    plain = store.init(example, budget.capacity)
    floats = jnp.zeros(plain.x.shape, jnp.result_type(float))
    slots = plain._replace(x=floats) if rounding == "none" else plain
    return Learned(*slots, plain.x, floats, floats, anchors)


def shown(spec: Spec, pixels: Array, task: Array) -> Array:
    """What the network sees of learned exemplars [..., pixels], differentiable."""
    lead = task.shape
    flat = spec.show(pixels.reshape(-1, *pixels.shape[len(lead) :]), task.reshape(-1))
    return flat.reshape(*lead, *flat.shape[1:])


def begin(learned: Learned, batch: Batch) -> Learned:
    """The exemplars ready to be learned, at a phase's first step; later as they are."""

    def start(learned: Learned) -> Learned:
        pixels = learned.x.astype(learned.pixels.dtype)
        return learned._replace(pixels=pixels, velocity=jnp.zeros_like(pixels))

    return jax.lax.cond(batch.clock.step == 0, start, lambda same: same, learned)


def moved(
    learned: Learned,
    grads: Array,
    active: Array,
    spec: Spec,
    *,
    lr: Array | float,
    momentum: Array | float,
    normalise: bool = False,
) -> Learned:
    """One step on the pixels of the ``active`` [M] slots, by ``grads`` [M, ...] of the loss.

    Args:
      normalise: make each exemplar's gradient, in what the network sees, of mean square 1.
    """
    slopes = _slopes(spec, learned)
    active = active & learned.mask
    where = active.reshape(-1, *(1,) * (grads.ndim - 1))
    if normalise:
        axes = tuple(range(1, grads.ndim))
        square = jnp.mean(jnp.square(grads) / slopes, axis=axes, keepdims=True)
        grads = grads / jnp.sqrt(jnp.where(square > 0, square, 1.0))
    velocity = jnp.where(where, momentum * learned.velocity + grads / slopes, learned.velocity)
    pixels = jnp.where(where, _clipped(learned, learned.pixels - lr * velocity), learned.pixels)
    return learned._replace(pixels=pixels, velocity=velocity)


def finish(learned: Learned, batch: Batch, active: Array, rounding: Rounding) -> Learned:
    """At a phase's last step, ``active`` [M] exemplars become what was learned."""

    def end(learned: Learned) -> Learned:
        values = learned.pixels
        if rounding == "nearest" and jnp.issubdtype(learned.x.dtype, jnp.integer):
            values = jnp.round(_clipped(learned, values))
        elif rounding == "truncate" and jnp.issubdtype(learned.x.dtype, jnp.integer):
            values = jnp.trunc(values)
        where = (active & learned.mask).reshape(-1, *(1,) * (values.ndim - 1))
        return learned._replace(x=jnp.where(where, values.astype(learned.x.dtype), learned.x))

    return jax.lax.cond(batch.clock.last, end, lambda same: same, learned)


def change(learned: Learned) -> tuple[Array, Array]:
    """Mean absolute change since they were chosen, in stored units, [M], and which slots count."""
    floats = lambda a: a.astype(learned.pixels.dtype)
    gap = jnp.abs(floats(learned.x) - floats(learned.chosen))
    return jnp.mean(gap, axis=tuple(range(1, gap.ndim))), learned.mask


def _clipped(learned: Learned, values: Array) -> Array:
    if not jnp.issubdtype(learned.chosen.dtype, jnp.integer):
        return values
    limits = jnp.iinfo(learned.chosen.dtype)
    return jnp.clip(values, limits.min, limits.max)


def _slopes(spec: Spec, learned: Learned) -> Array:
    """a^2 [M, ...]; 1 where the network does not look."""
    show = lambda pixels: shown(spec, pixels, learned.task)
    ones = jnp.ones_like(learned.pixels)
    _, pull = jax.vjp(show, learned.pixels)
    (squares,) = pull(jax.jvp(show, (learned.pixels,), (ones,))[1])
    return jnp.where(squares > 0, squares, 1.0)
