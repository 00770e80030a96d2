"""Memories by name and options, as in ``ring:per=class``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from cljax import options
from cljax.errors import UserError, in_words
from cljax.memory.balanced import Balanced
from cljax.memory.greedy import Greedy
from cljax.memory.protocol import Memory
from cljax.memory.reservoir import Reservoir
from cljax.memory.ring import Ring

__all__ = ["MEMORIES", "Remembered", "called", "named"]

# A name of ``MEMORIES``, with options after a colon; or a memory as an object.
Remembered: TypeAlias = str | Memory

MEMORIES: Mapping[str, Memory] = MappingProxyType(
    {memory.name: memory for memory in (Reservoir(), Ring(), Balanced(), Greedy())}
)


def named(memory: Remembered) -> Memory:
    """A memory by its name and options, or one as an object as it is.

    Raises:
      UserError: for an unknown name or option, or what is no memory.
    """
    if isinstance(memory, Memory):
        return memory
    if not isinstance(memory, str):
        raise UserError(
            f"memory is {in_words(memory)}, but it must be the name of a memory, such as ring, or "
            "a Memory, such as cljax.memory.Ring() or a subclass of cljax.memory.Memory."
        )
    return options.named(memory, MEMORIES, "memory")


def called(memory: Remembered) -> Remembered:
    """The name of a memory of the library, by which ``named`` gives it again; others as they are.

    So an object and its name are one in a run's config.
    """
    name = options.name_in(MEMORIES, memory)
    return memory if name is None else name
