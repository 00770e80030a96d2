"""Penalties that combine with any gradient method, by their names on the command line."""

from cljax.penalties.ewc import EWC, OnlineEWC
from cljax.penalties.lwf import LwF
from cljax.penalties.mas import MAS
from cljax.penalties.rwalk import RWalk
from cljax.penalties.si import SI
from cljax.penalty import Penalty

PENALTIES = {penalty.kind: penalty for penalty in (EWC, OnlineEWC, SI, MAS, RWalk, LwF)}

__all__ = ["EWC", "MAS", "PENALTIES", "SI", "LwF", "OnlineEWC", "Penalty", "RWalk"]
