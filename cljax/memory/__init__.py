"""Memories: ``init / add / sample -> (examples, mask)`` over any pytree."""

from cljax.memory import exemplars, reservoir, ring

__all__ = ["exemplars", "reservoir", "ring"]
