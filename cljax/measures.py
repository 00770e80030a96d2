"""Names of the measures in plain words, what each means in a line, and which values it can take.

The functions that compute them are in ``cljax.metrics``; the keys are those of ``results.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "ACCURACY", "MEASURES", "Measure", "SHARES", "bounds", "digits", "in_percent", "label",
    "legend", "ordered", "scale", "unit",
]  # fmt: skip

ACCURACY = "accuracy"  # the score where no other is named
SHARES = (ACCURACY, "subset-accuracy", "label-accuracy")  # scores that are fractions
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


def label(name: str, score: str = ACCURACY) -> str:
    """A measure in words with its key, ``final accuracy (RA)``; one of a user's own by its key.

    Args:
      score: what the matrix holds, in the place of accuracy.
    """
    return f"{_worded(MEASURES[name].name, score)} ({name})" if name in MEASURES else name


def bounds(name: str, score: str = ACCURACY) -> tuple[float, float]:
    """The least and the largest value that a measure can be; none of a user's own is known."""
    known = name in MEASURES and in_percent(score)
    return MEASURES[name].bounds if known else (-math.inf, math.inf)


def in_percent(score: str) -> bool:
    """Whether values of a score are fractions, shown in percent."""
    return score in SHARES


def scale(score: str = ACCURACY) -> float:
    """What values of a score are multiplied by where they are shown."""
    return 100.0 if in_percent(score) else 1.0


def digits(score: str = ACCURACY, spec: str = ".1f") -> str:
    """The format of shown values: ``spec`` in percent, else three significant digits."""
    plus = "+" if spec.startswith("+") else ""
    return spec if in_percent(score) else f"{plus}.3g"


def unit(name: str, score: str = ACCURACY) -> str:
    """``%`` of accuracies, ``points`` of differences between them; of other scores nothing."""
    if not in_percent(score):
        return ""
    return "points" if bounds(name) == _DIFFERENCE else "%"


def _worded(text: str, score: str) -> str:
    """A text about accuracy as one about another score."""
    return text.replace("accuracies", f"values of {score}").replace(ACCURACY, score)


def ordered(names: Iterable[str]) -> list[str]:
    """Names in the order in which they are shown, those of a user's own last."""
    given = set(names)
    return [*(n for n in MEASURES if n in given), *sorted(given - set(MEASURES))]


def legend(names: Iterable[str], score: str = ACCURACY) -> list[tuple[str, str]]:
    """(key, what it means) of measures, in order."""
    shown = [name for name in ordered(names) if name in MEASURES]
    return [(name, _worded(MEASURES[name].meaning, score)) for name in shown]
