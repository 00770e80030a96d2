"""How many test examples of one unknown task it takes to infer that task (iTAML, Algorithm 4).

    p = P0 + (1 - P0) (U - 1) / (U t - 1)        the top response lies in the right task
    k = round(n / t) + 1                         votes for it that are more than its share
    P(n) = sum_{j=k..n} C(n, j) p^j (1 - p)^(n-j)

Symbols: P0 ``p0``, U ``classes_per_task``, t ``num_tasks``, gamma ``confidence``, n the continuum.

Source: Rajasegaran et al., "iTAML: An Incremental Task-Agnostic Meta-learning Approach", CVPR 2020
(arXiv:2003.11652), section 3.4 and Algorithm 4. The printed algorithm leaves out the term "P0 +"
of the text (``formula="printed"``). The bound counts votes, while the prediction compares means of
largest responses, and more than its share of the votes need not be most of them: a guide.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from cljax.errors import UserError, check_known, check_positive, check_share

__all__ = ["ContinuumBound", "continuum_lower_bound"]

_CHUNK = 4096
_LONGEST = 10**7


class ContinuumBound(NamedTuple):
    """Sizes of a continuum that infer the task with the confidence asked for.

    ``n`` is the smallest such size, ``probability`` P(n) there. P falls where k jumps, so sizes
    above n may fail; from ``n_stable`` on none does. ``p`` is the chance of one right vote.
    """

    n: int
    n_stable: int
    probability: float
    p: float


def continuum_lower_bound(
    p0: float,
    classes_per_task: int,
    num_tasks: int,
    confidence: float = 0.95,
    *,
    formula: Literal["text", "printed"] = "text",
    rounding: Literal["half-up", "half-even"] = "half-up",
) -> ContinuumBound:
    """The smallest continuum whose task is inferred with some confidence (Algorithm 4).

    Args:
      p0: in [0, 1], how often the top response is the true class, for the worst class.
      classes_per_task: U. num_tasks: t, the tasks seen.
      confidence: in (0, 1), gamma; P(n) must exceed it.
      formula: of p, as in the paper's text, or as printed in its Algorithm 4.
      rounding: of n / t where it lies half way.

    Raises:
      UserError: for a value out of range, or if no continuum suffices.

    Example:
        >>> import cljax
        >>> bound = cljax.evaluation.continuum_lower_bound(0.5, classes_per_task=2, num_tasks=5)
        >>> bound.n, round(bound.probability, 3), round(bound.p, 3)
        (7, 0.967, 0.556)
    """
    check_positive(classes_per_task=classes_per_task, num_tasks=num_tasks)
    check_known("formula", formula, ("text", "printed"))
    check_known("rounding", rounding, ("half-up", "half-even"))
    check_share(p0=p0, confidence=confidence)
    if confidence in (0, 1):
        raise UserError(f"confidence is {confidence}, but it must lie between 0 and 1.")
    if num_tasks == 1:
        return ContinuumBound(1, 1, 1.0, 1.0)
    wrong = (1 - p0) * (classes_per_task - 1) / (classes_per_task * num_tasks - 1)
    p = p0 + wrong if formula == "text" else wrong
    gap = p - 1 / num_tasks
    horizon = math.inf if gap <= 0 else _horizon(gap, confidence)
    if horizon > _LONGEST:
        raise UserError(
            f"No continuum suffices for p0 = {p0}: a vote is right with probability {p:.6g}, which "
            f"is not enough above the share of a task, {1 / num_tasks:.6g}."
        )
    first, last_failure, reached = 0, 0, 0.0
    for start in range(1, int(horizon) + 1, _CHUNK):
        n = np.arange(start, min(start + _CHUNK, int(horizon) + 1))
        chance = _probability(n, p, num_tasks, rounding)
        passes = chance > confidence
        if not first and passes.any():
            first, reached = int(n[passes][0]), float(chance[passes][0])
        if not passes.all():
            last_failure = int(n[~passes][-1])
    return ContinuumBound(first, last_failure + 1, reached, p)


def _probability(n: np.ndarray, p: float, num_tasks: int, rounding: str) -> np.ndarray:
    """P(n): at least k of n votes are right."""
    from scipy.stats import binom

    share = n / num_tasks
    k = 1 + (np.floor(share + 0.5) if rounding == "half-up" else np.round(share))
    return binom.sf(k - 1, n, p)


def _horizon(gap: float, confidence: float) -> float:
    """A size from which on P(n) exceeds the confidence, by Hoeffding's inequality.

    1 - P(n) <= exp(-2 (n gap - 3/2)^2 / n), since k <= n / t + 3/2; with d the root of
    -log(1 - confidence) / 2 that is small enough once n gap - 3/2 >= d sqrt(n).
    """
    d = math.sqrt(-math.log1p(-confidence) / 2)
    root = (d + math.sqrt(d * d + 6 * gap)) / (2 * gap)
    return math.ceil(root * root) + 1
