"""Continual learning as pure functions over one state pytree."""

import importlib
from typing import Any

# First, and so from a shallow stack: jax reads the metadata of all packages that are installed, in
# loops that CPython runs many times slower where their frames cross two blocks of its stack.
import jax  # noqa: F401

from cljax import (
    data,
    evaluation,
    losses,
    memory,
    nets,
    options,
    penalties,
    recipes,
    stats,
    streams,
    sweep,
    tree,
    types,
)  # fmt: skip
from cljax.engine.batches import batches
from cljax.engine.options import Running
from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.again import evaluate
from cljax.inner_loop import sgd_step, unroll
from cljax.method import Method, Problem
from cljax.methods.bic import BiC
from cljax.methods.der import DER, DERpp
from cljax.methods.er import ER
from cljax.methods.er_ace import ERACE
from cljax.methods.fecam import FeCAM
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import FixedRep
from cljax.methods.gdumb import GDumb
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
from cljax.methods.mir import MIR
from cljax.methods.multitask import Multitask
from cljax.methods.ncm import NCM
from cljax.methods.oml import OML
from cljax.methods.pretrained import Pretrained
from cljax.methods.ranpac import RanPAC
from cljax.methods.rep import Rep
from cljax.methods.replayed import Oracle, Replayed
from cljax.methods.reptile import FOMAML, Reptile
from cljax.methods.slda import SLDA
from cljax.methods.teacher import Teacher
from cljax.methods.with_exemplars import WithExemplars
from cljax.options import Real
from cljax.recipes import recipe
from cljax.references.published import published
from cljax.runner.run import Run, resume, run
from cljax.storage.weights import load_weights
from cljax.sweep.compare import Tune, compare
from cljax.sweep.folders import load_any as load
from cljax.version import __version__

_LATER = (
    "geometry",
    "loggers",
    "plot",
    "report",
    "runtime",
)  # imported when first asked for: they take a while

__all__ = [
    # Runs.
    "__version__", "Evaluation", "Run", "Running", "Tune", "batches", "compare", "evaluate", "load",
    "load_weights", "published", "recipe", "resume", "run",
    # Methods.
    "AGEM", "BiC", "CMAML", "DER", "DERpp", "ER", "ERACE", "FeCAM", "Finetune", "FixedRep",
    "FOMAML", "GDumb", "GEM", "HAT", "ICaRL", "ICaRLTI", "IID", "Independent", "ITAML", "Joint",
    "LaER", "LaMAML", "LUCIR", "LwFExemplars", "MER", "MetaBGD", "MIR", "Multitask", "NCM", "OML",
    "Online", "Oracle", "Pretrained", "RanPAC", "Rep", "Replayed", "Reptile", "SGD", "SLDA",
    "SyncLaMAML", "Teacher", "WithExemplars",
    # Pieces of a method, and of a loop of one's own.
    "Method", "Problem", "Real", "sgd_step", "unroll",
    # Rooms.
    "data", "evaluation", "losses", "memory", "nets", "options", "penalties", "recipes", "stats",
    "streams", "sweep", "tree", "types",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LATER])
