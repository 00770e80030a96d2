"""The contract of a memory: which examples of a stream are stored, and which are replayed.

    class Mine(Memory):
        def init(self, spec, capacity): ...                  # the empty memory
        def offer(self, memory, examples, mask, drawn): ...  # the memory after B more examples

``draw`` makes the random choices of an offer as data (by default none), and ``sample`` draws what
is replayed (by default uniformly from what is stored). All are pure functions of the memory's
options and of what they are given. What they pass on is a pytree of any kind whose property
``contents`` says which examples are in it (``cljax.states.Remembers``); reports show just that.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from cljax.errors import UserError, check_flag, check_positive
from cljax.options import Options
from cljax.states import Contents
from cljax.types import Array, Examples, Needs, PyTree, Spec

__all__ = ["Memory", "distinct", "example_of", "place_in", "with_replacement"]


class Memory(Options):
    """Examples of a stream for replay: a frozen dataclass of options; see the module."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.kind

    @property
    def needs(self) -> Needs:
        """What it must be told of the stream; by default nothing."""
        return Needs()

    @property
    def needs_classes(self) -> str:
        """Why the targets must be classes, after "because it"; "" where any numbers will do."""
        return ""

    def init(self, spec: Spec, capacity: int) -> Any:
        """The empty memory of at most ``capacity`` examples, such as ``example_of(spec)`` is."""
        raise UserError(f"The memory {self.name} needs a function init(self, spec, capacity).")

    def draw(self, memory: Any, examples: Examples, mask: Bool[Array, " B"], key: Array) -> PyTree:
        """Every random choice of an offer, as data, leaves [B, ...], row i of example i."""
        return ()

    def offer(self, memory: Any, examples: Examples, mask: Bool[Array, " B"], drawn: PyTree) -> Any:
        """The memory once B examples, leaves [B, ...], were offered in order, as one by one.

        Args:
          mask: [B], False = not offered; such a row changes nothing.
          drawn: what ``draw`` made for these examples.
        """
        raise UserError(
            f"The memory {self.name} needs a function offer(self, memory, examples, mask, drawn)."
        )

    def sample(
        self, memory: Any, num: int, key: Array, *, replace: bool = False
    ) -> tuple[Examples, Bool[Array, " R"]]:
        """Draws ``num`` stored examples uniformly, at most as many as there are.

        Args:
          replace: draw each independently.

        Returns:
          Leaves [num, ...] and which rows are valid.
        """
        check_positive(num=num)
        check_flag(replace=replace)
        contents: Contents = memory.contents
        valid = contents.mask.reshape(-1)
        choose = with_replacement if replace else distinct
        slots, stored = choose(valid, num, key), Examples(contents.x, contents.y, contents.task)
        lead = contents.mask.ndim
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[lead:])[slots], stored)
        return flat, jnp.arange(num) < jnp.sum(valid)


def example_of(spec: Spec) -> Examples:
    """One example of a stream, as shapes, with its label and task: what most methods store."""
    label = jax.ShapeDtypeStruct((), jnp.int32)
    return Examples(spec.example, label if spec.target is None else spec.target, label)


def distinct(valid: Bool[Array, " M"], num: int, key: Array) -> Int[Array, " R"]:
    """Slots of ``num`` different valid entries, uniformly; past their number any others."""
    size = valid.shape[0]
    ranks = jnp.where(valid, jax.random.uniform(key, (size,)), 2.0)
    return jnp.argsort(ranks)[jnp.minimum(jnp.arange(num), size - 1)]


def with_replacement(valid: Bool[Array, " M"], num: int, key: Array) -> Int[Array, " R"]:
    """Slots of ``num`` valid entries, each drawn uniformly by itself; 0 where there are none."""
    rank = jax.random.randint(key, (num,), 0, jnp.maximum(jnp.sum(valid), 1))
    before = jnp.cumsum(valid)[None] <= rank[:, None]  # [R, M]
    return jnp.minimum(jnp.sum(before, axis=1), valid.shape[0] - 1)


def place_in(rows: Bool[Array, " M"], share: Array) -> Int[Array, ""]:
    """The slot of one of ``rows``, by a draw ``share`` in [0, 1); 0 where there are none."""
    rank = (share * jnp.sum(rows)).astype(jnp.int32)
    return jnp.argmax(jnp.cumsum(rows) > rank)
