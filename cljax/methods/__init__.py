"""The methods, one module a family, and their factories by their names on the command line."""

from cljax.methods import (
    bic,
    er,
    finetune,
    fixed_rep,
    gem,
    icarl,
    icarl_ti,
    independent,
    itaml,
    joint,
    laer,
    lamaml,
    mer,
    metabgd,
    replayed,
    reptile,
)

METHODS = {
    "lamaml": lamaml.lamaml,
    "cmaml": lamaml.cmaml,
    "sync-lamaml": lamaml.sync_lamaml,
    "la-er": laer.la_er,
    "er": er.er,
    "mer": mer.mer,
    "gem": gem.gem,
    "agem": gem.agem,
    "itaml": itaml.itaml,
    "meta-bgd": metabgd.meta_bgd,
    "icarl": icarl.icarl,
    "bic": bic.bic,
    "reptile": reptile.reptile,
    "fomaml": reptile.fomaml,
    "fixed-rep": fixed_rep.fixed_rep,
    "replayed": replayed.replayed,
    "oracle": replayed.oracle,
    "icarl-ti": icarl_ti.icarl_ti,
    "independent": independent.independent,
    "iid": joint.iid,
    "joint": joint.joint,
    "finetune": finetune.finetune,
    "online": finetune.online,
    "sgd": finetune.sgd,
    **finetune.PENALISED,
}

# How each method's update is checked: golden (a step-by-step trace of the authors' code),
# hand-checked (computed steps in the tests), or restated (known at second hand, steps computed).
CHECKED = {
    **dict.fromkeys(
        ("lamaml", "cmaml", "sync-lamaml", "la-er", "er", "mer", "gem", "agem", "itaml"), "golden"
    ),
    **dict.fromkeys(
        ("meta-bgd", "icarl-ti", "independent", "iid", "joint", "finetune", "online", "sgd", "ewc"),
        "hand-checked",
    ),
    **dict.fromkeys(("online-ewc", "si", "mas", "rwalk", "lwf"), "restated"),
    **dict.fromkeys(
        ("icarl", "bic", "reptile", "fomaml", "fixed-rep", "replayed", "oracle"), "restated"
    ),
}

__all__ = [
    "CHECKED",
    "METHODS",
    "bic",
    "er",
    "finetune",
    "fixed_rep",
    "gem",
    "icarl",
    "icarl_ti",
    "independent",
    "itaml",
    "joint",
    "laer",
    "lamaml",
    "mer",
    "metabgd",
    "replayed",
    "reptile",
]
