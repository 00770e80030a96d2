"""What others may read of a method's state: a stated interface instead of guesses.

A method's state is a ``NamedTuple`` of its own. What surrounds methods (readouts, wrappers,
reports) reads these fields, where a state has them, and no others:

    params, model_state   the network that is being trained
    memory, exemplars     what is remembered; each says its ``contents``
    alpha                 learned rates, one for each parameter (La-MAML)
    inner                 the state of the method that a wrapper carries, which is asked instead
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from cljax.types import Array, PyTree

__all__ = [
    "Contents", "Remembers", "WithNetwork", "contents_of", "labelled", "rates_in", "unwrapped",
]  # fmt: skip


class Contents(NamedTuple):
    """The examples that a memory holds, in slots of any leading axes ``[...]``."""

    x: PyTree  # [..., *example]
    y: Array  # [...] int32
    task: Array  # [...] int32
    mask: Array  # [...] bool, slots that hold an example
    before: PyTree | None = None  # as ``x``, what examples that were learned began as


@runtime_checkable
class WithNetwork(Protocol):
    """A state that holds the network in training."""

    params: Any
    model_state: Any


@runtime_checkable
class Remembers(Protocol):
    """A memory whose examples reports may show; a new kind of memory needs nothing else for it."""

    @property
    def contents(self) -> Contents | None:
        """None for examples that have no labels or tasks."""
        ...


def unwrapped(state: PyTree) -> PyTree:
    """The state that a wrapper carries, else the state itself."""
    inner = getattr(state, "inner", None)
    return state if inner is None else inner


def labelled(data: PyTree, mask: Array) -> Contents | None:
    """The contents of slots whose data have the fields ``x``, ``y`` and ``task``, else None."""
    x, y, task = (getattr(data, name, None) for name in ("x", "y", "task"))
    return None if x is None or y is None or task is None else Contents(x, y, task, mask)


def contents_of(state: PyTree) -> Contents | None:
    """What a state remembers, or the one that it carries."""
    for holder in (state, unwrapped(state)):
        for memory in (getattr(holder, "memory", None), getattr(holder, "exemplars", None)):
            if isinstance(memory, Remembers) and memory.contents is not None:
                return memory.contents
    return None


def rates_in(state: PyTree) -> PyTree | None:
    """The rates that a state learns for its parameters; None where it learns none."""
    return getattr(unwrapped(state), "alpha", None)
