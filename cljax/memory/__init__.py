"""Memories: ``init / add / sample -> (examples, mask)`` over any pytree."""

from cljax.memory import exemplars, policies, reservoir, ring, selection

__all__ = ["exemplars", "policies", "reservoir", "ring", "selection"]
