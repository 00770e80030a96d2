"""The methods, one module a family, and their factories by their names on the command line."""

from cljax.methods import er, finetune, gem, icarl_ti, laer, lamaml, mer, metabgd

METHODS = {
    "lamaml": lamaml.lamaml,
    "cmaml": lamaml.cmaml,
    "sync-lamaml": lamaml.sync_lamaml,
    "la-er": laer.la_er,
    "er": er.er,
    "mer": mer.mer,
    "gem": gem.gem,
    "agem": gem.agem,
    "meta-bgd": metabgd.meta_bgd,
    "icarl-ti": icarl_ti.icarl_ti,
    "finetune": finetune.finetune,
    "online": finetune.online,
    "sgd": finetune.sgd,
    **finetune.PENALISED,
}

__all__ = ["METHODS", "er", "finetune", "gem", "icarl_ti", "laer", "lamaml", "mer", "metabgd"]
