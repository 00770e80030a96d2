"""Penalties that combine with any gradient method, by their names on the command line."""

from cljax.penalties.ewc import ewc, online_ewc
from cljax.penalties.lwf import lwf
from cljax.penalties.mas import mas
from cljax.penalties.rwalk import rwalk
from cljax.penalties.si import si

PENALTIES = {
    "ewc": ewc,
    "online-ewc": online_ewc,
    "si": si,
    "mas": mas,
    "rwalk": rwalk,
    "lwf": lwf,
}

__all__ = ["PENALTIES", "ewc", "lwf", "mas", "online_ewc", "rwalk", "si"]
