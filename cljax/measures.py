"""Names of the measures in plain words, what each means in a line, and which values it can take.

The functions that compute them are in ``cljax.metrics``; the keys are those of ``results.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["MEASURES", "Measure", "bounds", "label", "legend", "ordered", "unit"]

_ACCURACY, _DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)


class Measure(NamedTuple):
    """A measure in words; ``bounds`` are the least and the largest fraction it can be."""

    name: str
    meaning: str
    bounds: tuple[float, float] = _ACCURACY


# In the order in which they are shown.
MEASURES = MappingProxyType({
    "RA": Measure("final accuracy", "mean over all tasks, tested after the last one"),
    "LA": Measure("accuracy when learned", "mean over tasks, each tested when it was learned"),
    "BTI": Measure(
        "change since learned", "RA less LA; below 0 where tasks were forgotten", _DIFFERENCE
    ),
    "forgetting": Measure(
        "mean forgetting",
        "drop of each task but the last from its best accuracy to its final one", _DIFFERENCE,
    ),
    "F": Measure(
        "forgetting of the first task",
        "drop from its accuracy when learned to its final one", _DIFFERENCE,
    ),
    "AIA": Measure(
        "average incremental accuracy", "mean over tasks of the accuracy on all seen by then"
    ),
    "FWT": Measure(
        "forward transfer", "gain on tasks before they are learned, over an untrained network",
        _DIFFERENCE,
    ),
    "prequential_accuracy": Measure(
        "online accuracy", "each new example is predicted before it is learned from"
    ),
    "average_anytime_accuracy": Measure(
        "anytime accuracy", "mean over tests while learning, on the tasks seen by then"
    ),
    "accuracy_task_agnostic": Measure(
        "accuracy, task inferred", "on all classes, after adapting to the task inferred"
    ),
    "accuracy_task_aware": Measure(
        "accuracy, task given", "within the example's task, after adapting to it"
    ),
    "accuracy_no_update": Measure(
        "accuracy, not adapted", "on all classes, by the network as it was trained"
    ),
    "task_accuracy": Measure("tasks inferred", "share of tests whose task is inferred right"),
})  # fmt: skip


def label(name: str) -> str:
    """A measure in words with its key, ``final accuracy (RA)``; one of a user's own by its key."""
    return f"{MEASURES[name].name} ({name})" if name in MEASURES else name


def bounds(name: str) -> tuple[float, float]:
    """The least and the largest fraction that a measure can be; none of a user's own is known."""
    return MEASURES[name].bounds if name in MEASURES else (-math.inf, math.inf)


def unit(name: str) -> str:
    """``%`` of accuracies, ``points`` of differences between them."""
    return "points" if bounds(name) == _DIFFERENCE else "%"


def ordered(names: Iterable[str]) -> list[str]:
    """Names in the order in which they are shown, those of a user's own last."""
    given = set(names)
    return [*(n for n in MEASURES if n in given), *sorted(given - set(MEASURES))]


def legend(names: Iterable[str]) -> list[tuple[str, str]]:
    """(key, what it means) of measures, in order."""
    return [(name, MEASURES[name].meaning) for name in ordered(names) if name in MEASURES]
