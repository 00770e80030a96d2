"""Recipes of the baselines in La-MAML's Table 1, which were run by the protocol of MER's code.

One example an update, one pass, a perceptron with Xavier-uniform weights, no clipping, memory of
200 examples (500 for many permutations). Values are those of the example scripts released with MER
(Riemer et al. 2019, arXiv:1810.11910); rows that Table 1 lacks have the source ``mer-code``.
"""

from __future__ import annotations

from typing import Any

from cljax.recipes.base import Recipe

__all__ = ["RECIPES"]

_STREAMS = ("mnist-rotations", "mnist-permutations", "mnist-many-permutations")
_NET = "mlp:100,100:xavier-uniform"
_RESERVOIR = {"reservoir_rule": "inclusive", "with_replacement": True}
_PUBLISHED = "published: the scripts released with MER"

# method -> (source, values common to the streams, values for each stream, notes)
_TABLE: dict[str, tuple[str, dict[str, Any], tuple[dict[str, Any], ...], str]] = {
    "online": ("lamaml-table1", {}, ({"lr": 0.0003}, {"lr": 0.003}, {"lr": 0.003}), ""),
    "ewc": (
        "lamaml-table1",
        {"fisher": "mean-gradient", "num_examples": 10},
        (
            {"lr": 0.001, "strength": 200.0},
            {"lr": 0.01, "strength": 20.0},
            {"lr": 0.003, "strength": 2.0},
        ),
        "The code's penalty has no 1/2: its strengths are 100, 10 and 1.",
    ),
    "gem": (
        "lamaml-table1",
        {"ridge": 0.0, "algebra": "low-rank"},
        (
            {"lr": 0.01, "per_task": 10, "margin": 0.0},
            {"lr": 0.01, "per_task": 10, "margin": 0.0},
            {"lr": 0.003, "per_task": 5, "margin": 0.1},
        ),
        "A ridge of 0 is the least that rounding allows.",
    ),
    "mer": (
        "lamaml-table1",
        {"gamma": 1.0, "algorithm": "1", **_RESERVOIR},
        (
            {"lr": 0.1, "beta": 0.01, "replay_size": 10, "sweeps": 5},
            {"lr": 0.03, "beta": 0.03, "replay_size": 10, "sweeps": 10},
            {"lr": 0.03, "beta": 0.03, "replay_size": 5, "sweeps": 10},
        ),
        "",
    ),
    "er": (
        "mer-code",
        {"lr": 0.1, **_RESERVOIR},
        ({"replay_size": 10}, {"replay_size": 10}, {"replay_size": 25}),
        "Algorithm 4 of MER's code.",
    ),
    "independent": ("mer-code", {"lr": 0.01}, ({}, {}, {}), "Hidden layers of 100 / T units."),
}
_CAPACITY = ("er", "mer")


def _recipe(method: str, index: int) -> Recipe:
    source, shared, by_stream, notes = _TABLE[method]
    stream, options = _STREAMS[index], {**shared, **by_stream[index]}
    many = stream == "mnist-many-permutations"
    if method in _CAPACITY:
        options["capacity"] = 500 if many else 200
    net = _NET
    if method == "independent":
        net = f"mlp:{1 if many else 5},{1 if many else 5}:xavier-uniform"
    return Recipe(
        method,
        stream,
        net=net,
        source=source,
        variant="reference",
        method_options=options,
        batch_size=1,
        entries="diagonal-last" if many else "lower",
        status=_PUBLISHED,
        notes=notes,
    )


RECIPES = tuple(_recipe(method, index) for method in _TABLE for index in range(3))
