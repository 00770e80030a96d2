"""Continual learning as pure functions over one state pytree."""

from cljax import (
    data,
    errors,
    losses,
    memory,
    methods,
    metrics,
    nets,
    stats,
    streams,
    tree,
    types,
)  # fmt: skip
from cljax.evaluate import Evaluation
from cljax.methods.lamaml import cmaml, lamaml, sync_lamaml
from cljax.published import published
from cljax.recipes import Recipe, recipe
from cljax.run import Run, load, run
from cljax.types import Method, Penalty
from cljax.unroll import InnerStep, Unrolled, optax_step, sgd_step, split, unroll

__version__ = "0.1.0"

__all__ = [
    "Evaluation", "InnerStep", "Method", "Penalty", "Recipe", "Run", "Unrolled", "cmaml",
    "data", "errors", "lamaml", "load", "losses", "memory", "methods", "metrics", "nets",
    "optax_step", "published", "recipe", "run", "sgd_step", "split", "stats", "streams",
    "sync_lamaml", "tree", "types", "unroll",
]  # fmt: skip
