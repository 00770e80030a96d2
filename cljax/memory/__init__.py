"""Memories: ``init / add / sample -> (examples, mask)`` over any pytree, and exemplar policies."""

from cljax.memory import exemplars, policies, reservoir, ring, selection
from cljax.memory.mnemonics import Mnemonics
from cljax.memory.mnemonics_released import MnemonicsReleased
from cljax.memory.policies import POLICIES
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.selection import First, Herding, Random

__all__ = [
    "POLICIES", "ExemplarPolicy", "First", "Herding", "Mnemonics", "MnemonicsReleased", "Random",
    "exemplars", "policies", "reservoir", "ring", "selection",
]  # fmt: skip
