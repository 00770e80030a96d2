"""Recipes of La-MAML's Table 3: CIFAR-100 and TinyImageNet, tasks with heads of their own.

``lamaml-table3-single`` is one pass with glances, ``lamaml-table3-multiple`` ten passes with one
(iid: fifty). ``reference`` is the released script and code, ``paper`` has the printed values where
they differ, a clipping of 2 for all methods and a textbook reservoir. As in the table, mer has a
single pass only, and iid many.

Sources: Gupta, Yadav, Paull 2020 (arXiv:2007.13904), Tables 3 and 5 and section 5.2; the released
run script and code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cljax.recipes.base import Recipe

__all__ = ["RECIPES", "STREAMS"]

# Options of the streams that make them La-MAML's; the nets; replayed examples in memory.
STREAMS: dict[str, dict[str, Any]] = {
    "cifar100-20x5": {
        "class_order": "per-seed", "multi_head": True, "val": 0.1,
        "augment": "crop-flip-brightness",
    },
    "tinyimagenet-40x5": {},  # its defaults
}  # fmt: skip
_NETS = {
    "cifar100-20x5": "cnn:160,160,160:320,320",
    "tinyimagenet-40x5": "cnn:160,160,160,160:640,640",
}
_CAPACITY = {"cifar100-20x5": 200, "tinyimagenet-40x5": 400}

_RESERVOIR = {"reservoir_rule": "inclusive", "with_replacement": True}
_META = {
    "replay_size": 10, "inner_steps": 5, "order": "second", "inner_relu": False,
    "meta_reduce": "mean", **_RESERVOIR,
}  # fmt: skip
_RING = {"per_task": 10, "ring_rule": "truncate"}


class _Row(NamedTuple):
    """A method's values: shared, then by case in the order of ``_CASES``."""

    shared: dict[str, Any]
    own: dict[str, tuple[Any, ...]]  # option -> CIFAR single, CIFAR multiple, Tiny single, multiple
    paper: dict[str, tuple[Any, ...]] = {}  # where printed values differ


_CASES = tuple((stream, passes) for stream in STREAMS for passes in ("single", "multiple"))
_ROWS: dict[str, _Row] = {
    "lamaml": _Row(
        {"alpha_init": 0.1, "clip_norm": 1.0, "inner_clip": 1.0, **_META},
        {"alpha_lr": (0.25, 0.25, 0.4, 0.4), "glances": (10, 1, 2, 1)},
        {"alpha_lr": (0.3,) * 4, "clip_norm": (2.0,) * 4, "inner_clip": (2.0,) * 4},
    ),
    "sync-lamaml": _Row(
        {"clip_norm": 2.0, "inner_clip": 2.0, **_META},
        {
            "alpha_init": (0.1, 0.1, 0.075, 0.075), "lr": (0.1, 0.1, 0.075, 0.075),
            "alpha_lr": (0.35, 0.35, 0.25, 0.25), "glances": (5, 1, 2, 1),
        },
        {"alpha_lr": (0.3, 0.3, 0.25, 0.25)},
    ),
    "cmaml": _Row(
        {"clip_norm": 2.0, "inner_clip": 2.0, **_META},
        {
            "alpha_init": (0.075, 0.075, 0.03, 0.03), "lr": (0.075, 0.075, 0.03, 0.03),
            "glances": (2, 1, 2, 1),
        },
        {"alpha_init": (0.03,) * 4, "lr": (0.03,) * 4, "glances": (5, 1, 2, 1)},
    ),
    "la-er": _Row(
        {
            "alpha_lr": 0.1, "clip_norm": 2.0, "inner_clip": 2.0, "replay_size": 10,
            "inner_steps": 5, "offer": "every-epoch", **_RESERVOIR,
        },
        {"alpha_init": (0.1, 0.1, 0.3, 0.03), "glances": (1, 1, 2, 1)},
        {"alpha_init": (0.1, 0.1, 0.03, 0.03)},
    ),
    "er": _Row(
        {"replay_size": 1, "clip_norm": 2.0, "offer": "every-epoch", **_RESERVOIR},
        {"lr": (0.03, 0.03, 0.01, 0.01), "glances": (10, 1, 2, 1)},
        {
            "lr": (0.03, 0.03, 0.1, 0.1), "glances": (10, 1, 10, 1), "replay_size": (10,) * 4,
        },
    ),
    "mer": _Row(
        {
            "lr": 0.1, "beta": 0.1, "gamma": 1.0, "sweeps": 10, "replay_size": 25,
            "clip_norm": 10.0, "algorithm": "1", **_RESERVOIR,
        },
        {},
        {"replay_size": (10,) * 4, "clip_norm": (2.0,) * 4},
    ),
    "gem": _Row(
        {"lr": 0.03, "margin": 0.5, "ridge": 1e-3, **_RING},
        {"glances": (2, 1, 2, 1), "clip_norm": (5.0, 5.0, 5.0, 2.0)},
        {"clip_norm": (2.0,) * 4},
    ),
    "agem": _Row(
        {"clip_norm": 2.0, "reference_size": None, "skip_first_task": True, **_RING},
        {"lr": (0.03, 0.03, 0.01, 0.01), "glances": (2, 1, 2, 1)},
    ),
    "icarl-ti": _Row(
        {"strength": 1.0, "stage_size": 2240},
        {
            "lr": (0.03, 0.03, 0.01, 0.01), "glances": (2, 1, 2, 1),
            "clip_norm": (5.0, 5.0, 5.0, 2.0),
        },
        {"clip_norm": (2.0,) * 4},
    ),
    "meta-bgd": _Row(
        {
            "mc_samples": 2, "alpha_init": 0.1, "bayes_alpha": True, "replay_size": 10,
            "inner_steps": 3, "order": "second", "clip_norm": 2.0, "inner_clip": 2.0,
            "inner_relu": False, **_RESERVOIR,
        },
        {
            "lr": (50.0, 50.0, 30.0, 30.0), "std_init": (0.02, 0.02, 0.015, 0.015),
            "glances": (3, 1, 3, 1),
        },
        {"lr": (50.0,) * 4, "std_init": (0.02,) * 4},
    ),
    "iid": _Row(
        {"tasks_per_batch": 4, "updates": 5000},
        {"lr": (0.03, 0.03, 0.01, 0.01)},
    ),
}  # fmt: skip
_ONLY = {"mer": "single", "iid": "multiple"}
_BATCH = {"mer": 1, "iid": 32}
_WITH_MEMORY = ("lamaml", "sync-lamaml", "cmaml", "la-er", "er", "mer", "icarl-ti", "meta-bgd")


def _recipe(method: str, case: int, variant: str) -> Recipe:
    stream, passes = _CASES[case]
    row = _ROWS[method]
    options = {**row.shared, **{name: values[case] for name, values in row.own.items()}}
    if method in _WITH_MEMORY:
        options["capacity"] = _CAPACITY[stream]
    if variant == "paper":
        options |= {name: values[case] for name, values in row.paper.items()}
        if "reservoir_rule" in options:
            options["reservoir_rule"] = "textbook"
    epochs = {"single": 1, "multiple": 50 if method == "iid" else 10}[passes]
    return Recipe(
        method,
        stream,
        net=_NETS[stream] + ":xavier-normal" * (method == "meta-bgd"),
        source=f"lamaml-table3-{passes}",
        variant=variant,
        stream_options=STREAMS[stream],
        method_options=options,
        batch_size=_BATCH.get(method, 10),
        epochs=epochs,
        status="published: the released script and code"
        if variant == "reference"
        else "published: Table 5",
        notes="Class order, validation images and their complement differ from seed to seed.",
    )


RECIPES = tuple(
    _recipe(method, case, variant)
    for variant in ("reference", "paper")
    for case, (_, passes) in enumerate(_CASES)
    for method in _ROWS
    if _ONLY.get(method, passes) == passes
)
