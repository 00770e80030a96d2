"""Recipes of the multi-task teacher: its experiments at a size for CPUs, and at the paper's.

``mini`` are the specification's small designs; ``paper`` the published sizes, for an accelerator.
Experiment 3 (unseen first weights) is that of another one's stream with ``checkpoints``: 2's in the
paper, 1's in small.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), sections 4 and 5.
"""

from __future__ import annotations

from typing import Any

from cljax.recipes.base import Recipe

__all__ = ["BASELINES", "RECIPES"]

# stream -> (network, batch, step size, options of the learned rule)
# Windows are as long from the start as the paper's grow to be: on validation images of one seed
# the old task keeps two points more than with windows that grow from 5 (teacher_tune.md).
_SMALL: dict[str, Any] = {
    "hidden": 16, "hidden_norm": 8, "episodes_at_once": 4, "truncation": 17, "truncation_step": 0,
    "level_every": 200, "episodes": 900, "windows": 5000,
}  # fmt: skip
# The network's GroupNorm and convolutions take five times as long.
_CONV: dict[str, Any] = {**_SMALL, "level_every": 40, "episodes": 250, "windows": 1200}
_MINI: dict[str, tuple[str, int, float, dict[str, Any]]] = {
    "fashion-5-5": ("mlp:32,8", 64, 0.3, _SMALL),
    "fashion-5-mnist-5": ("mlp:32,8", 64, 0.3, _SMALL),
    "fashion-4-3-3": ("mlp:32,8", 64, 0.3, {**_SMALL, "longest": 200, "target": 30}),
    "cifar100-10-5": ("conv:8,16,8:group", 32, 0.3, _CONV),
}
_FULL: dict[str, tuple[str, int, float, dict[str, Any]]] = {
    "cifar10-5-5": (
        "resnet32:group", 64, 0.1,
        {"rho": 300.0, "threshold_cap": 30.0, "truncation_cap": 9, "episodes": 900},
    ),
    "cifar10-5-cifar100-5": ("resnet32:group", 64, 0.1, {"rho": 300.0}),
    "cifar10-5-tinyimagenet-5": ("resnet32:group", 64, 0.1, {"rho": 300.0}),
    "cifar10-10-10-10": (
        "resnet14:group", 64, 0.1, {"rho": 200.0, "truncation": 2, "longest": 300},
    ),
}  # fmt: skip
# What else is compared, by name and options beside the step size.
BASELINES: dict[str, dict[str, Any]] = {
    "multitask": {},
    "sgd": {},
    "lwf": {"strength": 0.25, "temperature": 2.0, "outputs": "past", "weights": "one"},
    "ewc": {"strength": 1.0, "num_examples": None},
    "hat": {},
    "oml": {},
    "rep": {},
}


# Their options on the small streams, chosen on validation images by experiments/teacher_tune.py;
# where nothing stands here, those above.
_SMALL_TUNED: dict[str, dict[str, Any]] = {
    "hat": {"s_max": 20.0, "strength": 0.01},
    "oml": {"inner_lr": 0.3, "meta_lr": 0.1},
}
_WEAK_LWF = {"strength": 0.1, "temperature": 2.0}
_TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "fashion-5-5": {**_SMALL_TUNED, "ewc": {"strength": 10.0}},
    "fashion-5-mnist-5": {
        **_SMALL_TUNED, "lwf": {"strength": 1.0, "temperature": 1.0}, "ewc": {"strength": 3.0},
    },
    "fashion-4-3-3": {**_SMALL_TUNED, "lwf": _WEAK_LWF, "ewc": {"strength": 3.0}},
    "cifar100-10-5": {
        **_SMALL_TUNED, "lwf": _WEAK_LWF, "ewc": {"strength": 0.3},
        "hat": {"s_max": 3.0, "strength": 0.01},
    },
}  # fmt: skip


def _recipes(
    table: dict[str, tuple[str, int, float, dict[str, Any]]], variant: str, status: str
) -> tuple[Recipe, ...]:
    return tuple(
        Recipe(
            method, stream, net=net, source="teacher", variant=variant, batch_size=batch,
            method_options={"lr": lr, **_options(method, stream, learned)},
            entries="full", status=status,
            notes="Every method starts from the same pretrained network; readouts are what counts.",
        )
        for stream, (net, batch, lr, learned) in table.items()
        for method in ("teacher", *BASELINES)
        if method != "hat" or not net.startswith("resnet")  # which HAT cannot mask
    )  # fmt: skip


def _options(method: str, stream: str, learned: dict[str, Any]) -> dict[str, Any]:
    if method == "teacher":
        return learned
    # Masks are to be as hard as they get when a new task ends.
    anneal = {"anneal": learned.get("longest", 500)} if method == "hat" else {}
    return {**BASELINES[method], **anneal, **_TUNED.get(stream, {}).get(method, {})}


RECIPES = (
    *_recipes(_MINI, "mini", "default: the specification's small designs"),
    *_recipes(_FULL, "paper", "published, with the defaults of what the paper leaves open"),
)
