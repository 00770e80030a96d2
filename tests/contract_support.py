"""Every method on a small problem: the table behind the tests that all methods share."""

from __future__ import annotations

import jax
import support

import cljax
from cljax import methods
from cljax.method import Method
from cljax.types import Learner

# Name -> (options that fit the small problem, a real hyper-parameter that may be traced, or None)
CASES = {
    "lamaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "alpha_lr"),
    "sync-lamaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "lr"),
    "cmaml": ({"capacity": 6, "replay_size": 3, "glances": 2}, "lr"),
    "la-er": ({"capacity": 6, "replay_size": 3, "glances": 2}, "alpha_lr"),
    "mer": ({"capacity": 6, "replay_size": 3, "sweeps": 2, "lr": 0.1, "beta": 0.3}, "lr"),
    "gem": ({"per_task": 3, "glances": 2, "lr": 0.1}, "lr"),
    "agem": ({"per_task": 3, "glances": 2, "lr": 0.1, "reference_size": 4}, "lr"),
    "meta-bgd": ({"capacity": 6, "replay_size": 3, "glances": 2, "inner_steps": 2}, "lr"),
    "icarl-ti": ({"capacity": 24, "stage_size": 16, "lr": 0.1}, "lr"),
    "er": ({"capacity": 6, "replay_size": 3, "glances": 2}, "lr"),
    "der": ({"capacity": 6, "replay_size": 3, "lr": 0.1}, "alpha"),
    "der++": ({"capacity": 6, "replay_size": 3, "lr": 0.1, "glances": 2}, "beta"),
    "er-ace": ({"capacity": 6, "replay_size": 3, "lr": 0.1, "glances": 2}, "lr"),
    "mir": ({"capacity": 6, "replay_size": 2, "candidates": 4, "glances": 2}, "lr"),
    "gdumb": ({"capacity": 24, "passes": 3, "memory_batch": 4}, "lr"),
    "ncm": ({}, None),
    "slda": ({}, "shrinkage"),
    "ranpac": ({"projections": 8, "ridge": 0.5}, "ridge"),
    "fecam": ({}, "diagonal"),
    "independent": ({"lr": 0.1}, "lr"),
    "joint": ({"lr": 0.1}, "lr"),
    "iid": ({"lr": 0.1}, "lr"),
    "finetune": ({"lr": 0.1}, "lr"),
    "online": ({"lr": 0.1}, "lr"),
    "sgd": ({"lr": 0.1}, "lr"),
    "ewc": ({"lr": 0.1, "num_examples": 3}, "lr"),
    "online-ewc": ({"lr": 0.1, "num_examples": 3}, "lr"),
    "si": ({"lr": 0.1}, "lr"),
    "mas": ({"lr": 0.1, "num_examples": 3}, "lr"),
    "rwalk": ({"lr": 0.1, "window": 2}, "lr"),
    "lwf": ({"lr": 0.1}, "lr"),
    "replayed": ({"capacity": 24, "lr": 0.1}, "lr"),
    "oracle": ({"lr": 0.1, "optimizer": "momentum"}, "lr"),
    "reptile": ({"capacity": 24, "lr": 0.5, "optimizer": "momentum"}, "lr"),
    "fomaml": ({"capacity": 24, "lr": 0.5, "inner_steps": 2}, "inner_lr"),
    "fixed-rep": ({"lr": 0.1}, "lr"),
    "icarl": ({"capacity": 24, "lr": 0.1}, "lr"),
    "bic": ({"capacity": 24, "lr": 0.1}, "lr"),
    "lwf-exemplars": ({"capacity": 24, "lr": 0.1, "optimizer": "momentum"}, "strength"),
    "lucir": ({"capacity": 24, "lr": 0.5, "weight_decay": 1e-3}, "less_forget"),
    "itaml": ({"capacity": 24, "lr": 0.5, "optimizer": "momentum"}, "lr"),
    "multitask": ({"lr": 0.1}, "lr"),
    "hat": ({"lr": 0.1, "anneal": 60}, "lr"),
    "oml": ({"lr": 0.1}, "lr"),
    "rep": ({"lr": 0.1}, "lr"),
    "teacher": ({"lr": 0.1, "hidden": 3, "truncation_cap": 5, "episodes": 2}, "lr"),
}
HELD = {"oml", "rep", "teacher"}  # practise on examples that the stream holds out
MULTI_HEAD = {"icarl-ti", "hat", *HELD}  # not defined on one head
# These need tasks with classes of their own in one head.
CLASS_INCREMENTAL = {
    "replayed", "oracle", "reptile", "fomaml", "fixed-rep", "icarl", "bic", "lwf-exemplars",
    "lucir", "itaml",
}  # fmt: skip
AT_END = {"gdumb"}  # learn nothing in an update, but from the memory in a phase
# Only add up in an update: hyper-parameters act when they predict, and most draw nothing.
CLOSED_FORM = {"ncm", "slda", "ranpac", "fecam"}
DRAWS_NOTHING = {"ncm", "slda", "fecam"}
COSINE = {"lucir"}  # compares outputs by angle


def make(name, **extra) -> Method:
    return methods.make(name, **{**CASES[name][0], **extra})


def form(name) -> dict[str, bool]:
    """The form of the small problem that a method is defined on."""
    return {"multi_head": name in MULTI_HEAD, "own_classes": name in CLASS_INCREMENTAL}


def bind(method) -> Learner:
    if method.name in HELD:
        problem = support.held_spec()
        return method.bind(cljax.nets.mlp(5)(problem.num_classes), problem)
    head = "cosine" if method.name in COSINE else "linear"
    return support.bind(method, **form(method.name), head=head)


def batches_for(name, num, **options):
    return support.batches(num, **form(name), **options)


def scanned(learner: Learner, batches, key):
    def body(state, batch):
        draws = learner.draw(state, batch, jax.random.fold_in(key, batch.clock.step))
        state, info = learner.update(state, batch, draws)
        return state, info.loss

    return jax.lax.scan(body, learner.init(key), batches)
