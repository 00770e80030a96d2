"""Memories for replay, and exemplar policies: what is stored of a stream, over any pytree."""

from cljax.memory import exemplars, memories, policies, reservoir, ring, selection
from cljax.memory.balanced import Balanced
from cljax.memory.greedy import Greedy
from cljax.memory.memories import MEMORIES
from cljax.memory.mnemonics import Mnemonics
from cljax.memory.mnemonics_released import MnemonicsReleased
from cljax.memory.policies import POLICIES
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.protocol import Memory, example_of
from cljax.memory.reservoir import Reservoir
from cljax.memory.ring import Ring
from cljax.memory.selection import First, Herding, Random
from cljax.states import Contents

__all__ = [
    "MEMORIES", "POLICIES", "Balanced", "Contents", "ExemplarPolicy", "First", "Greedy", "Herding",
    "Memory", "Mnemonics", "MnemonicsReleased", "Random", "Reservoir", "Ring", "example_of",
    "exemplars", "memories", "policies", "reservoir", "ring", "selection",
]  # fmt: skip
