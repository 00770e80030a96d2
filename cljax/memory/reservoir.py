"""Reservoir memory over any pytree: after N examples, each is present with equal probability.

    offer(z):  age += 1
               age <= M:  write slot age - 1
               else:      p ~ Uniform{0, .., age - 1};  write slot p if p < M       (textbook)

``rule="inclusive"`` draws p from {0, .., age}, as the reference code of La-MAML and MER does:
the acceptance is then M/(age+1), and after N > M offers the first M examples are present with
probability (M+1)/(N+1), later ones with M/(N+1), instead of M/N for all.

Source: Vitter, "Random Sampling with a Reservoir", ACM TOMS 1985, Algorithm R; Riemer et al.,
"Learning to Learn without Forgetting by Maximizing Transfer and Minimizing Interference", 2019.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from cljax import tree
from cljax.errors import check_flag, check_known, check_positive
from cljax.states import Contents, labelled
from cljax.types import Array, Examples, PyTree, Spec

__all__ = [
    "Reservoir",
    "Rule",
    "add",
    "capacity",
    "draw_slots",
    "fill",
    "init",
    "nbytes",
    "of_stream",
    "sample",
    "write",
]

Rule: TypeAlias = Literal["textbook", "inclusive"]


class Reservoir(NamedTuple):
    """``data`` with leading axis M (zeros where empty) and ``age`` [] int32, examples offered."""

    data: PyTree
    age: Array

    @property
    def contents(self) -> Contents | None:
        """The examples in it, where they have labels and tasks."""
        return labelled(self.data, jnp.arange(capacity(self)) < self.age)


def init(example: PyTree, capacity: int) -> Reservoir:
    """An empty reservoir for examples like ``example``: arrays or ShapeDtypeStructs of one.

    Raises:
      UserError: if ``capacity`` is below 1.
    """
    check_positive(capacity=capacity)
    empty = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), example)
    return Reservoir(empty, jnp.zeros((), jnp.int32))


def of_stream(spec: Spec) -> Examples:
    """One example of a stream, as shapes, with its label (or target) and task: what is stored."""
    label = jax.ShapeDtypeStruct((), jnp.int32)
    return Examples(spec.example, label if spec.target is None else spec.target, label)


def capacity(memory: Reservoir) -> int:
    """M, in examples."""
    return jax.tree.leaves(memory.data)[0].shape[0]


def nbytes(memory: Reservoir) -> int:
    """Bytes of the stored examples."""
    return tree.size(memory.data)


def fill(memory: Reservoir) -> Int[Array, ""]:
    """Number of occupied slots."""
    return jnp.minimum(memory.age, capacity(memory))


def draw_slots(
    memory: Reservoir, mask: Bool[Array, " B"], key: Array, rule: Rule = "textbook"
) -> Int[Array, " B"]:
    """The slot that each of B examples, offered in order, will be written to.

    M means 'not stored', which also holds for every example outside ``mask``: those are not
    offered at all.
    """
    check_known("rule", rule, ("textbook", "inclusive"))
    size = capacity(memory)
    age = memory.age + jnp.cumsum(mask, dtype=jnp.int32)  # counts the example itself
    bound = age if rule == "textbook" else age + 1
    position = jax.random.randint(key, mask.shape, 0, jnp.maximum(bound, 1))
    slot = jnp.where(age <= size, age - 1, jnp.minimum(position, size))
    return jnp.where(mask, slot, size)


def write(
    memory: Reservoir, examples: PyTree, slots: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Reservoir:
    """Writes examples ``[B, ...]`` to their ``slots`` in order; the last one into a slot stays."""
    size = capacity(memory)
    order = jnp.arange(slots.shape[0])
    # A scatter leaves the winner of a collision open, so drop all but the last.
    overwritten = jnp.any((slots[:, None] == slots[None]) & (order[:, None] < order[None]), axis=1)
    slots = jnp.where(overwritten, size, slots)
    data = jax.tree.map(
        lambda stored, new: stored.at[slots].set(new.astype(stored.dtype), mode="drop"),
        memory.data,
        examples,
    )
    return Reservoir(data, memory.age + jnp.sum(mask, dtype=jnp.int32))


def add(
    memory: Reservoir,
    examples: PyTree,
    key: Array,
    *,
    mask: Bool[Array, " B"] | None = None,
    rule: Rule = "textbook",
) -> Reservoir:
    """Offers B examples in order: ``draw_slots`` and ``write``.

    Args:
      examples: leaves [B, ...].
      mask: [B], False = not offered; None: all are.
      rule: "textbook", or "inclusive" as in the reference code.

    Example:
        >>> from cljax.memory import reservoir
        >>> memory = reservoir.init(jax.ShapeDtypeStruct((2,), "float32"), capacity=3)
        >>> memory = reservoir.add(memory, jnp.ones((5, 2)), jax.random.key(0))
        >>> int(memory.age), int(reservoir.fill(memory))
        (5, 3)
    """
    if mask is None:
        mask = jnp.ones(jax.tree.leaves(examples)[0].shape[0], bool)
    return write(memory, examples, draw_slots(memory, mask, key, rule), mask)


def sample(
    memory: Reservoir, num: int, key: Array, *, replace: bool = False
) -> tuple[PyTree, Bool[Array, " R"]]:
    """Draws ``min(num, fill)`` stored examples uniformly; the shape is always ``[num, ...]``.

    Args:
      num: R, a static size.
      replace: draw each example independently; the count stays capped at the fill.

    Returns:
      ``(examples, mask)``; rows outside the mask hold stored or zero data, always finite.

    Example:
        >>> from cljax.memory import reservoir
        >>> memory = reservoir.init(jax.ShapeDtypeStruct((2,), "float32"), capacity=3)
        >>> memory = reservoir.add(memory, jnp.ones((2, 2)), jax.random.key(0))
        >>> examples, mask = reservoir.sample(memory, 4, jax.random.key(1))
        >>> examples.shape, mask.tolist()
        ((4, 2), [True, True, False, False])
    """
    check_positive(num=num)
    check_flag(replace=replace)
    size, filled = capacity(memory), fill(memory)
    if replace:
        slots = jax.random.randint(key, (num,), 0, jnp.maximum(filled, 1))
    else:
        ranks = jnp.where(jnp.arange(size) < filled, jax.random.uniform(key, (size,)), 2.0)
        slots = jnp.argsort(ranks)[jnp.minimum(jnp.arange(num), size - 1)]
    mask = jnp.arange(num) < filled
    return jax.tree.map(lambda stored: stored[slots], memory.data), mask
