"""Continual learning as pure functions over one state pytree."""

import importlib
from typing import Any

from cljax import (
    data,
    errors,
    losses,
    memory,
    methods,
    metrics,
    nets,
    penalties,
    stats,
    streams,
    sweep,
    tree,
    types,
)  # fmt: skip
from cljax.engine.allocator import keep_freed_memory
from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.again import Scores, Trained, evaluate
from cljax.evaluation.continuum import continuum_lower_bound
from cljax.evaluation.linear import readout
from cljax.implicit import implicit_gradient
from cljax.inner_loop import InnerStep, Unrolled, optax_step, sgd_step, split, unroll
from cljax.method import Method, Problem
from cljax.methods.bic import bic
from cljax.methods.er import ER
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import fixed_rep
from cljax.methods.gem import AGEM, GEM
from cljax.methods.hat import HAT
from cljax.methods.icarl import icarl, lwf_exemplars
from cljax.methods.icarl_ti import icarl_ti
from cljax.methods.independent import Independent
from cljax.methods.itaml import itaml
from cljax.methods.joint import IID, Joint
from cljax.methods.laer import LaER
from cljax.methods.lamaml import CMAML, LaMAML, SyncLaMAML
from cljax.methods.lucir import lucir
from cljax.methods.mer import MER
from cljax.methods.metabgd import MetaBGD
from cljax.methods.multitask import Multitask
from cljax.methods.oml import OML
from cljax.methods.pretrained import Pretrained
from cljax.methods.rep import Rep
from cljax.methods.replayed import oracle, replayed
from cljax.methods.reptile import fomaml, reptile
from cljax.methods.teacher import Teacher
from cljax.methods.with_exemplars import with_exemplars
from cljax.options import Options
from cljax.penalties import EWC, MAS, SI, LwF, OnlineEWC, RWalk
from cljax.penalty import Penalty
from cljax.recipes import Recipe, recipe
from cljax.references.published import published
from cljax.runner.run import Run, Running, resume, run
from cljax.sweep.compare import Study, Tune, compare
from cljax.sweep.found import load_any as load
from cljax.types import Readout
from cljax.version import __version__

_LATER = ("geometry", "plot", "report")  # imported when first asked for: they take a while

__all__ = [
    "AGEM", "GEM", "HAT", "Independent", "MER", "MetaBGD", "OML", "Pretrained", "Rep", "Teacher",
    "CMAML", "ER", "EWC", "Evaluation", "Finetune", "IID", "InnerStep", "Joint", "LaER", "LaMAML",
    "LwF", "MAS", "Method", "Multitask", "Online", "OnlineEWC", "Options", "Penalty", "Problem",
    "RWalk", "Readout", "Recipe", "Run", "Running", "SGD", "SI", "Scores", "Study", "SyncLaMAML",
    "Trained", "Tune", "Unrolled", "__version__", "bic", "compare", "continuum_lower_bound",
    "data", "errors", "evaluate", "fixed_rep", "fomaml", "icarl", "icarl_ti",
    "implicit_gradient", "itaml", "keep_freed_memory", "load", "losses", "lucir",
    "lwf_exemplars", "memory", "methods", "metrics", "nets", "optax_step",
    "oracle", "penalties", "published", "readout", "recipe", "replayed",
    "reptile", "resume", "run", "sgd_step", "split", "stats", "streams", "sweep", "tree",
    "types", "unroll", "with_exemplars",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LATER])
