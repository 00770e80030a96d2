"""Continual learning as pure functions over one state pytree."""

from cljax import losses, memory, methods, nets, tree
from cljax.methods.lamaml import cmaml, lamaml, sync_lamaml
from cljax.unroll import InnerStep, Unrolled, optax_step, sgd_step, split, unroll

__all__ = [
    "InnerStep",
    "Unrolled",
    "cmaml",
    "lamaml",
    "losses",
    "memory",
    "methods",
    "nets",
    "optax_step",
    "sgd_step",
    "split",
    "sync_lamaml",
    "tree",
    "unroll",
]
