"""Continual-learning measures as pure functions of an accuracy matrix and test counts.

An accuracy matrix ``A [..., T+1, T]`` holds, in row 0, the accuracy on each task's test data
before training and, in row t + 1, after learning task t; leading axes (seeds) are kept. Entries
that were not evaluated are NaN. Here ``a(i, j)`` is row i + 1, column j (accuracy on task j after
task i, both from 0) and ``a0(j)`` is row 0. Every accuracy is a fraction in [0, 1], in and out.

    RA          mean_j a(T-1, j)                               last row
    LA          mean_j a(j, j)                                 diagonal
    BTI         RA - LA                                        last row, diagonal
    FWT         1/T sum_{j>=1} a(j-1, j) - a0(j)               superdiagonal, row 0
    forgetting  mean_{j<T-1} max_{j<=i<T-1} a(i, j) - a(T-1, j)  lower triangle
    AIA         mean_i (accuracy on the test data of tasks 0..i after task i)  lower triangle
    F           a(0, 0) - a(T-1, 0)                            two entries

The functions return NaN where an entry they need is NaN; ``compute`` instead leaves such a
measure out and says why, as it does with one that has no meaning (``unmeasured``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cljax.errors import UserError, as_numbers

__all__ = [
    "AFTER_EACH", "LOWER_IS_BETTER", "NAMES", "Metrics", "average_anytime_accuracy",
    "average_incremental_accuracy", "backward_transfer", "check_matrix", "compute",
    "compute_online", "entries_of", "evaluated", "forgetting", "forgetting_rate",
    "forward_transfer", "learning_accuracy", "prequential_accuracy", "retained_accuracy",
    "seen_accuracy", "unmeasured",
]  # fmt: skip


class Metrics(NamedTuple):
    """Measures by name, each ``[...]`` (one value per seed), and why the others are absent."""

    values: dict[str, np.ndarray]
    absent: dict[str, str]


def retained_accuracy(matrix: ArrayLike) -> np.ndarray:
    """RA: mean accuracy over all tasks after the last one, each task counting the same.

    ``RA = 1/T sum_j a(T-1, j)`` (Riemer et al. 2019, arXiv:1810.11910; Gupta et al. 2020,
    arXiv:2007.13904, section 5).

    Args:
      matrix: [..., T+1, T] accuracies; needs the last row.

    Returns:
      [...] fractions.
    """
    return check_matrix(matrix)[..., -1, :].mean(axis=-1)


def learning_accuracy(matrix: ArrayLike) -> np.ndarray:
    """LA: mean accuracy on each task right after it was learned.

    ``LA = 1/T sum_j a(j, j)`` (Riemer et al. 2019, arXiv:1810.11910).

    Args:
      matrix: [..., T+1, T] accuracies; needs the diagonal a(j, j).

    Returns:
      [...] fractions.
    """
    return _diagonal(check_matrix(matrix)).mean(axis=-1)


def backward_transfer(matrix: ArrayLike) -> np.ndarray:
    """BTI, backward transfer and interference: mean change since each task was learned.

    ``BTI = 1/T sum_j a(T-1, j) - a(j, j) = RA - LA`` over all T tasks, so the last one contributes
    0 (Riemer et al. 2019, arXiv:1810.11910; Gupta et al. 2020, arXiv:2007.13904, section 5). The
    backward transfer of Lopez-Paz & Ranzato (2017, arXiv:1706.08840) divides by T - 1 instead.

    Args:
      matrix: [..., T+1, T] accuracies; needs the diagonal and the last row.

    Returns:
      [...] fractions, negative where there was forgetting.

    Example:
        >>> from cljax import metrics
        >>> matrix = [[0.5, 0.5], [1.0, 0.5], [0.75, 1.0]]  # untrained, after task 0, after task 1
        >>> float(metrics.retained_accuracy(matrix)), float(metrics.learning_accuracy(matrix))
        (0.875, 1.0)
        >>> float(metrics.backward_transfer(matrix)), float(metrics.forgetting(matrix))
        (-0.125, 0.25)
    """
    return retained_accuracy(matrix) - learning_accuracy(matrix)


def forward_transfer(matrix: ArrayLike) -> np.ndarray:
    """FWT: what learning the tasks before it did for a task, against the untrained network.

    ``FWT = 1/T sum_{j>=1} a(j-1, j) - a0(j)``; task 0 contributes 0 to the mean over T, as in the
    La-MAML reference code, but with the true accuracies before training for ``a0``. Lopez-Paz &
    Ranzato (2017, arXiv:1706.08840) divide by T - 1 instead.

    Args:
      matrix: [..., T+1, T] accuracies; needs a(j-1, j) and row 0 but for its first entry.

    Returns:
      [...] fractions.
    """
    matrix = check_matrix(matrix)
    before = np.diagonal(matrix[..., 1:-1, 1:], axis1=-2, axis2=-1)
    return (before - matrix[..., 0, 1:]).sum(axis=-1) / matrix.shape[-1]


def forgetting(matrix: ArrayLike) -> np.ndarray:
    """Mean drop of each task but the last from its best accuracy to its final one.

    ``1/(T-1) sum_{j<T-1} max_{j<=i<T-1} a(i, j) - a(T-1, j)`` (Chaudhry et al. 2018,
    arXiv:1801.10112). The maximum starts when the task is learned, so that the value does not
    depend on whether tasks were also tested before that; negative for a task that ends best.

    Of the matrix of an evaluation with a readout, this and the other measures of forgetting are of
    the representation ("Learning to Remember from a Multi-Task Teacher"). Its R_t, the readout's
    accuracy on task t when the next task began less that at the end, ``a(t, t) - a(T-1, t)``, is
    ``forgetting_rate`` for task 0, and ``-backward_transfer`` is its mean over all T tasks; here
    the best accuracy since task t stands for the first.

    Args:
      matrix: [..., T+1, T] accuracies; needs a(i, j) for i >= j. NaN for one task.

    Returns:
      [...] fractions, lower is better.
    """
    matrix = check_matrix(matrix)
    num_tasks = matrix.shape[-1]
    if num_tasks < 2:
        return np.full(matrix.shape[:-2], np.nan)
    after = matrix[..., 1:-1, :-1]  # [..., T-1, T-1]
    learned = np.tri(num_tasks - 1, dtype=bool)
    return (np.where(learned, after, -np.inf).max(axis=-2) - matrix[..., -1, :-1]).mean(axis=-1)


def seen_accuracy(matrix: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """Accuracy on all test data of the tasks seen so far, after each task.

    ``A_i = sum_{j<=i} n_j a(i, j) / sum_{j<=i} n_j`` with n the test counts: the curve of
    class-incremental papers (Liu et al. 2020, arXiv:2002.10211, section 5.1).

    Args:
      matrix: [..., T+1, T] accuracies; needs a(i, j) for i >= j.
      counts: [T] test examples of each task.

    Returns:
      [..., T] fractions.
    """
    matrix = check_matrix(matrix)
    counts = _check_counts(counts, matrix.shape[-1])
    seen = np.tri(matrix.shape[-1], dtype=bool)
    right = np.where(seen, matrix[..., 1:, :] * counts, 0.0).sum(axis=-1)
    return right / np.cumsum(counts)


def average_incremental_accuracy(matrix: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """AIA: mean over tasks (phases) of the accuracy on all classes seen so far.

    ``AIA = 1/T sum_i A_i`` with A of ``seen_accuracy``, phase 0 included (Rebuffi et al. 2017,
    arXiv:1611.07725; Liu et al. 2020, arXiv:2002.10211, Table 1).

    Args:
      matrix: [..., T+1, T] accuracies; needs a(i, j) for i >= j.
      counts: [T] test examples of each task.

    Returns:
      [...] fractions.
    """
    return seen_accuracy(matrix, counts).mean(axis=-1)


def forgetting_rate(matrix: ArrayLike) -> np.ndarray:
    """F: accuracy on phase 0's test data after phase 0 minus that after the last phase.

    ``F = a(0, 0) - a(T-1, 0)`` (Liu et al. 2020, arXiv:2002.10211, Table 1; its table header
    prints the opposite sign, its values are positive where there was forgetting).

    Args:
      matrix: [..., T+1, T] accuracies; needs a(0, 0) and a(T-1, 0).

    Returns:
      [...] fractions, lower is better.
    """
    matrix = check_matrix(matrix)
    return matrix[..., 1, 0] - matrix[..., -1, 0]


def prequential_accuracy(correct: ArrayLike, batch_sizes: ArrayLike) -> np.ndarray:
    """Share of the stream's training examples classified right just before learning from them.

    Each counts once, when it arrives: not in later passes, nor where it is replayed.
    ``sum_u correct(u) / sum_u n(u)`` over updates (predictive sequential error: Gama et al. 2013,
    Machine Learning 90; online accuracy in Cai et al. 2021, arXiv:2108.09020).

    Args:
      correct: [..., U] new examples of each update classified right.
      batch_sizes: [U] new examples of each update.

    Returns:
      [...] fractions.
    """
    right, sizes = as_numbers("correct", correct), as_numbers("batch_sizes", batch_sizes)
    if right.ndim < 1 or sizes.shape != right.shape[-1:] or not sizes.sum() > 0:
        raise UserError(
            f"correct has shape {list(right.shape)} and batch_sizes {list(sizes.shape)}, but they "
            "must be [..., U] and [U], the counts of U updates."
        )
    return right.sum(axis=-1) / sizes.sum()


def average_anytime_accuracy(accuracies: ArrayLike, seen: ArrayLike | None = None) -> np.ndarray:
    """Mean over evaluation points of the mean accuracy on the tasks seen by then.

    ``1/P sum_p 1/k(p) sum_{j<k(p)} a(p, j)`` (Caccia et al. 2022, arXiv:2104.05025).

    Args:
      accuracies: [..., P, T] at each evaluation point, NaN where not evaluated.
      seen: [P] number k of tasks seen at each point; None: those that are not NaN.

    Returns:
      [...] fractions; NaN where a point has no accuracy, or one of a seen task is NaN.
    """
    accuracies = as_numbers("accuracies", accuracies)
    if accuracies.ndim < 2:
        raise UserError(
            f"accuracies have shape {list(accuracies.shape)}, but they must be [..., P, T], at P "
            "points on T tasks."
        )
    if seen is None:
        used = np.isfinite(accuracies)
    else:
        ranks = np.arange(accuracies.shape[-1])
        counts = as_numbers("seen", seen)
        if counts.shape != accuracies.shape[-2:-1]:
            raise UserError(
                f"seen has shape {list(counts.shape)}, but there are {accuracies.shape[-2]} "
                "points; give a number of tasks for each."
            )
        used = np.broadcast_to(ranks < counts[..., None], accuracies.shape)
    count = used.sum(axis=-1)
    total = np.where(used, accuracies, 0.0).sum(axis=-1)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means.mean(axis=-1) if means.shape[-1] else np.full(means.shape[:-1], np.nan)


class _Rule(NamedTuple):
    """How ``compute`` makes a measure, and which entries it needs."""

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    needed: Callable[[int], np.ndarray]  # T -> [T+1, T] bool
    needs: str
    entries: str  # the choice of ``learn(entries=...)`` that evaluates them
    min_tasks: int = 1


# What speaks of the moment at which a task has been learned, or of what was lost since.
_UNANSWERED = (
    "in scenario class no output of a task that was not learned may be the answer, so that both of "
    "its terms are 0."
)
AFTER_EACH = ("LA", "BTI", "FWT", "forgetting", "AIA", "F")


def unmeasured(
    method: Mapping[str, str], stream: str, *, boundaries: bool, scenario: str = "domain",
    class_mask: ArrayLike | None = None,
) -> dict[str, str]:  # fmt: skip
    """Measures that have no meaning for a method on a stream, and why.

    Args:
      method: its ``Method.unmeasured``. stream: its name.
      boundaries: whether the stream has tasks that end.
      scenario: of the evaluation that measures are taken of. class_mask: [T, C] of the stream.
    """
    reason = f"the tasks of {stream} have no ends, so there is no moment after one of them."
    without = {} if boundaries else dict.fromkeys(AFTER_EACH, reason)
    apart = class_mask is not None and bool((np.asarray(class_mask, int).sum(axis=0) <= 1).all())
    if scenario == "class" and apart and len(np.asarray(class_mask)) > 1:
        without["FWT"] = _UNANSWERED
    return {**without, **method}


def compute(
    matrix: ArrayLike, counts: ArrayLike, without: Mapping[str, str] = MappingProxyType({})
) -> Metrics:
    """All measures that an accuracy matrix allows: RA, LA, BTI, FWT, forgetting, AIA and F.

    Args:
      matrix: [..., T+1, T] accuracies with the row before training first, NaN = not evaluated.
      counts: [T] test examples of each task.
      without: measures that have no meaning here, and why; see ``unmeasured``.

    Returns:
      Metrics ``(values, absent)``: each measure ``[...]``, one value per seed and never NaN; one
      that lacks an entry in any seed is not in ``values`` but, with the reason, in ``absent``.

    Raises:
      UserError: if the matrix is not [..., T+1, T] or the counts are not T positive numbers.
    """
    matrix = check_matrix(matrix)
    num_tasks = matrix.shape[-1]
    counts = _check_counts(counts, num_tasks)
    values: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    for name, rule in _RULES.items():
        reason = without.get(name) or _missing(matrix, rule)
        if reason is None:
            values[name] = rule.value(matrix, counts)
        else:
            absent[name] = reason
    return Metrics(values, absent)


def compute_online(
    correct: ArrayLike | None,
    batch_sizes: ArrayLike,
    anytime: Sequence[ArrayLike] = (),
    seen: ArrayLike | None = None,
) -> Metrics:
    """The measures taken while learning: ``prequential_accuracy``, ``average_anytime_accuracy``.

    Args:
      correct: [S, U] new examples of each update classified right; None: not counted.
      batch_sizes: [U] new examples of each update.
      anytime: for each of S seeds, [P, T] accuracies at the evaluation points, NaN = unseen.
      seen: [P] tasks seen at each point; None: those that are not NaN.

    Returns:
      Metrics ``(values, absent)``, values ``[S]``.
    """
    values: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    if correct is None:
        absent["prequential_accuracy"] = "online accuracy was not counted; run with online=True."
    elif not np.size(correct) or not np.sum(batch_sizes):
        absent["prequential_accuracy"] = "no seed learned from a new example to the end."
    else:
        values["prequential_accuracy"] = prequential_accuracy(correct, batch_sizes)
    points = [np.asarray(a, np.float64) for a in anytime]
    if not points or any(a.size == 0 for a in points):
        absent["average_anytime_accuracy"] = "no accuracy was taken while learning; set eval_every."
        return Metrics(values, absent)
    mean = np.array([average_anytime_accuracy(a, seen) for a in points])
    missing = np.flatnonzero(~np.isfinite(mean))
    if missing.size:
        where = ", ".join(str(i) for i in missing)
        absent["average_anytime_accuracy"] = f"an evaluation point has no accuracy (seed {where})."
    else:
        values["average_anytime_accuracy"] = mean
    return Metrics(values, absent)


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _missing(matrix: np.ndarray, rule: _Rule) -> str | None:
    """Why a measure cannot be computed, None if it can."""
    num_tasks = matrix.shape[-1]
    if num_tasks < rule.min_tasks:
        return f"needs at least {rule.min_tasks} tasks, but the stream has {num_tasks}."
    needed = rule.needed(num_tasks)
    lacking = (np.isnan(matrix) & needed).sum(axis=(-2, -1)).reshape(-1)  # [S]
    seeds = np.flatnonzero(lacking)
    if not seeds.size:
        return None
    gap = f"{lacking.max()} of these {needed.sum()} entries were not evaluated"
    if seeds.size < lacking.size:
        where = ", ".join(str(i) for i in seeds)
        return f"needs {rule.needs}, but {gap} for {seeds.size} of {lacking.size} seeds ({where})."
    return f"needs {rule.needs}, but {gap}; evaluate with entries='{rule.entries}'."


def check_matrix(matrix: ArrayLike) -> np.ndarray:
    """An accuracy matrix [..., T+1, T] as float64; raises UserError for another shape."""
    matrix = as_numbers("an accuracy matrix", matrix)
    if matrix.ndim < 2 or matrix.shape[-1] < 1 or matrix.shape[-2] != matrix.shape[-1] + 1:
        raise UserError(
            f"an accuracy matrix has shape {list(matrix.shape)}, but it must be [..., T+1, T]: "
            "a row before training, then one after each of T tasks."
        )
    return matrix


def _check_counts(counts: ArrayLike, num_tasks: int) -> np.ndarray:
    counts = as_numbers("counts", counts)
    if counts.shape != (num_tasks,) or not (counts > 0).all():
        raise UserError(
            f"test counts are {counts.tolist()}, but they must be {num_tasks} positive numbers, "
            "one for each task."
        )
    return counts


def _rows(num_tasks: int, after: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """[T+1, T] bool from the rows after each task and, optionally, the row before training."""
    first = np.zeros(num_tasks, bool) if before is None else before
    return np.concatenate([first[None], after])


def _last(num_tasks: int) -> np.ndarray:
    return _rows(num_tasks, np.arange(num_tasks)[:, None] + np.zeros(num_tasks) == num_tasks - 1)


def _own(num_tasks: int) -> np.ndarray:
    return _rows(num_tasks, np.eye(num_tasks, dtype=bool))


def _next(num_tasks: int) -> np.ndarray:
    return _rows(num_tasks, np.eye(num_tasks, k=1, dtype=bool), np.arange(num_tasks) > 0)


def _lower(num_tasks: int) -> np.ndarray:
    return _rows(num_tasks, np.tri(num_tasks, dtype=bool))


def _first(num_tasks: int) -> np.ndarray:
    """The entries on task 0 after task 0 and after the last."""
    corners = np.zeros((num_tasks, num_tasks), bool)
    corners[[0, -1], 0] = True
    return _rows(num_tasks, corners)


_TRIANGLE = "the lower triangle of the accuracy matrix"
_RULES: Mapping[str, _Rule] = {
    "RA": _Rule(
        lambda a, n: retained_accuracy(a), _last, "the accuracies after the last task",
        "diagonal-last",
    ),
    "LA": _Rule(
        lambda a, n: learning_accuracy(a), _own, "the accuracy on each task after learning it",
        "diagonal-last",
    ),
    "BTI": _Rule(
        lambda a, n: backward_transfer(a), lambda t: _last(t) | _own(t),
        "the accuracies on each task after learning it and after the last task", "diagonal-last", 2,
    ),
    "FWT": _Rule(
        lambda a, n: forward_transfer(a), _next,
        "the accuracies on each task before training and just before learning it", "full", 2,
    ),
    "forgetting": _Rule(lambda a, n: forgetting(a), _lower, _TRIANGLE, "lower", 2),
    "AIA": _Rule(average_incremental_accuracy, _lower, _TRIANGLE, "lower"),
    "F": _Rule(
        lambda a, n: forgetting_rate(a), _first,
        "the accuracies on task 0 after it and after the last task", "diagonal-last", 2,
    ),
}  # fmt: skip

NAMES = (*_RULES, "prequential_accuracy", "average_anytime_accuracy")
LOWER_IS_BETTER = ("forgetting", "F")
_ENTRIES = ("diagonal-last", "lower", "full")  # each has those of the ones before


def entries_of(metric: str) -> str | None:
    """The choice of entries of the accuracy matrix that a metric needs; None: it needs none."""
    return _RULES[metric].entries if metric in _RULES else None


def evaluated(metric: str, entries: str) -> bool:
    """Whether a choice of entries is enough for a metric."""
    needed = entries_of(metric)
    return needed is None or _ENTRIES.index(entries) >= _ENTRIES.index(needed)
