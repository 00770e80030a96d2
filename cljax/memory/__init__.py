"""Memories: ``init / add / sample -> (examples, mask)`` over any pytree."""

from cljax.memory import reservoir

__all__ = ["reservoir"]
