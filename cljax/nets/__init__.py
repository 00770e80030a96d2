"""Networks behind one signature; a net is a function from the number of outputs to a Model."""

from cljax.nets.dense import mlp
from cljax.nets.linen import from_linen

NETS = {"mlp": mlp}

__all__ = ["NETS", "from_linen", "mlp"]
