"""Memories: ``init / add / sample -> (examples, mask)`` over any pytree."""

from cljax.memory import exemplars, reservoir

__all__ = ["exemplars", "reservoir"]
