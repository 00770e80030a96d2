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
from cljax.engine.options import Running, Training
from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.again import Scores, Trained, evaluate
from cljax.evaluation.continuum import continuum_lower_bound
from cljax.evaluation.linear import readout
from cljax.implicit import implicit_gradient
from cljax.inner_loop import InnerStep, Unrolled, optax_step, sgd_step, split, unroll
from cljax.method import Method, Problem
from cljax.methods.bic import BiC
from cljax.methods.er import ER
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import FixedRep
from cljax.methods.gem import AGEM, GEM
from cljax.methods.hat import HAT
from cljax.methods.icarl import ICaRL, LwFExemplars
from cljax.methods.icarl_ti import ICaRLTI
from cljax.methods.independent import Independent
from cljax.methods.itaml import ITAML
from cljax.methods.joint import IID, Joint
from cljax.methods.laer import LaER
from cljax.methods.lamaml import CMAML, LaMAML, SyncLaMAML
from cljax.methods.lucir import LUCIR
from cljax.methods.mer import MER
from cljax.methods.metabgd import MetaBGD
from cljax.methods.multitask import Multitask
from cljax.methods.oml import OML
from cljax.methods.pretrained import Pretrained
from cljax.methods.rep import Rep
from cljax.methods.replayed import Oracle, Replayed
from cljax.methods.reptile import FOMAML, Reptile
from cljax.methods.teacher import Teacher
from cljax.methods.with_exemplars import WithExemplars
from cljax.options import Count, Options, Rate, Real, Share, positional
from cljax.penalties import EWC, MAS, SI, LwF, OnlineEWC, RWalk
from cljax.penalty import Penalty
from cljax.recipes import Recipe, recipe
from cljax.references.published import published
from cljax.runner.options import RunOptions
from cljax.runner.run import Run, resume, run
from cljax.sweep.compare import Study, Tune, compare
from cljax.sweep.folders import load_any as load
from cljax.types import Readout
from cljax.version import __version__

_LATER = (
    "geometry",
    "loggers",
    "plot",
    "report",
)  # imported when first asked for: they take a while

__all__ = [
    "AGEM", "BiC", "CMAML", "Count", "ER", "EWC", "Evaluation", "FOMAML", "Finetune", "FixedRep",
    "GEM", "HAT", "ICaRL", "ICaRLTI", "IID", "ITAML", "Independent", "InnerStep", "Joint", "LUCIR",
    "LaER", "LaMAML", "LwF", "LwFExemplars", "MAS", "MER", "MetaBGD", "Method", "Multitask", "OML",
    "Online", "OnlineEWC", "Options", "Oracle", "Penalty", "Pretrained", "Problem", "RWalk", "Rate",
    "Readout", "Real", "Recipe", "Rep", "Replayed", "Reptile", "Run", "RunOptions", "Running",
    "SGD", "SI", "Scores", "Share", "Study", "SyncLaMAML", "Teacher", "Trained", "Training", "Tune",
    "Unrolled", "WithExemplars", "__version__", "compare", "continuum_lower_bound", "data",
    "errors", "evaluate", "implicit_gradient", "keep_freed_memory", "load", "losses", "memory",
    "methods", "metrics", "nets", "optax_step", "penalties", "positional", "published", "readout",
    "recipe", "resume", "run", "sgd_step", "split", "stats", "streams", "sweep", "tree", "types",
    "unroll",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LATER])
