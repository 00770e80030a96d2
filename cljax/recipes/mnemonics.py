"""Recipes of mnemonics training: class-incremental methods with and without learned exemplars.

``without`` is a method's own row (herded exemplars), ``paper`` the row "with ours" (learned and
adjusted exemplars, weight transfer, balanced fine-tuning), ``fast`` the same with a fifth of the
outer epochs, ``released`` what the authors' code does. ``cpu-small`` is ``without`` on 20 classes
and a small network, ``toy`` on digits.

Sources: Liu et al. 2020 (arXiv:2002.10211), section 5, and the released code, whose weights of
the losses (1, 1), imprinting and frozen rows hold for all methods.
"""

from __future__ import annotations

from typing import Any

from cljax.recipes.base import Recipe

__all__ = ["CPU_SMALL", "LEARNED", "RECIPES", "TOY"]

_COMMON: dict[str, Any] = {
    "lr": 0.1, "optimizer": "momentum", "momentum": 0.9, "weight_decay": 5e-4,
    "milestones": (80, 120), "decay": 0.1, "capacity": None, "per_class": 20, "imprint": True,
    "freeze": True,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "lucir": {},
    "icarl": {"loss": "kl", "mirror": True},
    "lwf-exemplars": {},
    "bic": {},
}
_NETS = {"bic": "resnet32:linear"}
# What "with ours" adds; the images that BiC's stage 2 learns from are no exemplars and stay real.
LEARNED: dict[str, Any] = {
    "exemplars": "mnemonics", "transfer": "kept", "balanced_epochs": 50, "balanced_lr": 0.01,
}  # fmt: skip
CPU_SMALL: dict[str, dict[str, Any]] = {
    "stream_options": {"classes": 20, "base": 10, "classes_per_task": 2},
    "method_options": {**_COMMON, "milestones": (6, 8), "per_class": 10},
}
TOY: dict[str, dict[str, Any]] = {
    "stream_options": {},
    "method_options": {
        **_COMMON, "lr": 0.05, "milestones": (), "weight_decay": 0.0, "per_class": 5,
    },
}  # fmt: skip


def _learned(options: str) -> dict[str, Any]:
    exemplars = f"mnemonics:{options}" if options else "mnemonics"
    return {**LEARNED, "exemplars": exemplars}


def _full(method: str, phases: int, variant: str) -> Recipe:
    options = {**_COMMON, **_OWN[method]}
    status = "published: the paper's hyper-parameters, the released losses' weights"
    if variant == "paper":
        options |= _learned("")
    elif variant == "fast":
        options |= _learned("outer_epochs=10")
        status = "default: the paper's with 10 outer epochs instead of 50"
    elif variant == "released":
        options |= {
            "exemplars": "mnemonics-released", "transfer": "kept", "capacity": 2000,
            "per_class": None,
        }  # fmt: skip
        status = "published: the released code, 2000 exemplars in all"
    return Recipe(
        method, f"cifar100-b50-{phases}", net=_NETS.get(method, "resnet32"),
        source="mnemonics-table1", variant=variant, method_options=options, batch_size=128,
        epochs=160, status=status,
        notes="Learned exemplars decide what the paper leaves open as cljax.memory.mnemonics says.",
    )  # fmt: skip


def _small(method: str) -> Recipe:
    return Recipe(
        method, "cifar100-b50-5", net=_NETS.get(method, "resnet32").replace("32", "8"),
        source="mnemonics-table2", variant="cpu-small", batch_size=128, epochs=10,
        status="default: small enough for two cores",
        stream_options=CPU_SMALL["stream_options"],
        method_options={**CPU_SMALL["method_options"], **_OWN[method]},
    )  # fmt: skip


def _toy(method: str) -> Recipe:
    return Recipe(
        method, "mnist-b5-5", net="mlp:100" if method == "bic" else "mlp:100:cosine",
        source="mnemonics-toy", variant="toy", batch_size=64, epochs=5,
        status="default: seconds to minutes on two cores",
        method_options={**TOY["method_options"], **_OWN[method], **_mirrors(method)},
    )  # fmt: skip


def _mirrors(method: str) -> dict[str, Any]:
    return {"mirror": False} if method == "icarl" else {}  # digits are not symmetric


RECIPES = (
    *(
        _full(method, phases, variant)
        for method in _OWN
        for phases in (5, 10, 25)
        for variant in ("without", "paper", "fast", "released")
    ),
    *map(_small, _OWN),
    *map(_toy, _OWN),
)
