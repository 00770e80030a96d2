"""Confusion matrices and accuracies of single classes, as figures and in a report."""

from __future__ import annotations

import numpy as np
import pytest

from cljax import plot
from cljax.errors import UserError
from cljax.plot.classes import shares
from cljax.report.classes import of_classes

COUNTS = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]], [[1, 3, 0], [2, 2, 0], [0, 0, 0]]])


def kept(classes: int, tasks: int = 2, seeds: int = 2) -> dict[str, np.ndarray]:
    each = np.eye(classes, dtype=np.int32) + 1
    return {f"confusion/{s}/{row}": each for s in range(seeds) for row in range(1, tasks + 1)}


def test_shares_are_of_the_tests_of_all_seeds():
    np.testing.assert_allclose(shares(COUNTS), [[0.5, 0.5, 0], [0.25, 0.75, 0], [np.nan] * 3])
    np.testing.assert_allclose(shares(COUNTS[0])[0], [0.75, 0.25, 0])


def test_cells_hold_what_a_class_is_taken_for_but_for_zeros():
    ax = plot.confusion_matrix(COUNTS)
    (numbers,) = ax.collections
    assert numbers.texts == ["50", "50", "25", "75"]
    np.testing.assert_array_equal(numbers.get_offsets(), [[0, 0], [1, 0], [0, 1], [1, 1]])
    assert not plot.confusion_matrix(COUNTS, numbers=False).collections
    named = plot.confusion_matrix(COUNTS, names=["a", "b", "c"])
    assert [label.get_text() for label in named.get_yticklabels()] == ["a", "b", "c"]


def test_rows_are_moments_and_columns_classes():
    ax = plot.class_accuracy({2: COUNTS, 0: COUNTS[0]})
    image = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(image, [[75, 100, np.nan], [50, 75, np.nan]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["untrained", "2"]


@pytest.mark.parametrize("counts", [np.zeros((2, 3)), np.zeros(4), [[1, -1], [0, 1]]], ids=len)
def test_what_is_no_confusion_matrix_is_refused(counts):
    with pytest.raises(UserError, match="confusion matrix"):
        plot.confusion_matrix(counts)


def test_moments_are_needed():
    with pytest.raises(UserError, match="at least one"):
        plot.class_accuracy({})


def test_few_classes_are_open_and_earlier_tasks_folded():
    final, earlier = of_classes("run", kept(3))
    assert "<details>" not in final.html and earlier.html.startswith("<details>")
    names = [p.name for part in (final, earlier) for p in part.pictures]
    assert names == ["run-class_accuracy", "run-confusion", "run-confusions"]


def test_many_classes_are_folded_and_not_every_task_is_drawn():
    final, earlier = of_classes("run", kept(12, tasks=12))
    assert "<summary>All 12 classes" in final.html and "4 of 11 are drawn" in earlier.html


def test_a_run_without_counts_or_with_one_task_shows_what_there_is():
    assert not list(of_classes("run", {"rates/0/1": np.ones(3)}))
    assert len(list(of_classes("run", kept(3, tasks=1)))) == 1
