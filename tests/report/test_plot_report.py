"""Bars of forgetting and histograms of rates say what their numbers are."""

from __future__ import annotations

import numpy as np
import pytest

from cljax import metrics, plot, stats
from cljax.errors import UserError
from cljax.plot.report import forgetting_of_tasks


def matrices(tasks=4, seeds=3):
    rng = np.random.default_rng(0)
    matrix = rng.random((seeds, tasks + 1, tasks))
    matrix[:, 1:][:, ~np.tri(tasks, dtype=bool)] = np.nan
    return matrix


def test_forgetting_of_tasks_is_the_metrics_and_hand_computed():
    matrix = matrices()
    np.testing.assert_allclose(
        forgetting_of_tasks(matrix).mean(axis=-1), metrics.forgetting(matrix), rtol=1e-14
    )
    hand = [[0.1, 0.1, 0.1], [0.9, 0.2, 0.2], [0.5, 0.7, 0.3], [0.6, 0.8, 0.9]]
    np.testing.assert_allclose(forgetting_of_tasks(hand), [0.3, -0.1])
    hand[2][1] = np.nan  # its only entry before the last
    np.testing.assert_allclose(forgetting_of_tasks(hand), [0.3, np.nan])


def test_few_seeds_are_points_on_their_bars():
    matrix = matrices()
    ax = plot.forgetting_bars({"one": matrix})
    points = [line.get_ydata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points, 100 * forgetting_of_tasks(matrix))
    assert not ax.collections


def test_bars_are_means_with_intervals():
    matrix = matrices(seeds=5)
    ax = plot.forgetting_bars({"one": matrix, "two": matrix[0]})
    values = 100 * forgetting_of_tasks(matrix)
    first, second = ax.containers[1], ax.containers[2]  # after the whiskers of the first
    np.testing.assert_allclose([bar.get_height() for bar in first], values.mean(axis=0))
    np.testing.assert_allclose([bar.get_height() for bar in second], values[0])
    (whiskers,) = [c for c in ax.collections if len(c.get_segments()) == 3]
    low, high = np.array(whiskers.get_segments())[0, :, 1]
    np.testing.assert_allclose([low, high], stats.summary(values[:, 0]).ci95)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


@pytest.mark.parametrize(
    "given", [{}, {"a": matrices(1)}, {"a": matrices(2), "b": matrices(3)}], ids=len
)
def test_bars_of_what_cannot_be_compared_are_refused(given):
    with pytest.raises(UserError, match="same number of tasks"):
        plot.forgetting_bars(given)


def test_histograms_keep_the_weights_and_their_quantiles():
    rng = np.random.default_rng(0)
    edges, counts = [], []
    for width in (1e-6, 0.01, 0.03):
        count, edge = np.histogram(0.1 + width * rng.standard_normal(20_000), 48)
        edges.append(edge)
        counts.append(count)
    ax = plot.rate_histograms([edges, edges], [counts, counts])
    shares = np.asarray(ax.collections[0].get_array()).reshape(-1, 3)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=5e-3)  # but for the tails
    median, five = ax.lines[1].get_ydata(), ax.lines[0].get_ydata()
    np.testing.assert_allclose(median, 0.1, atol=1e-3)
    np.testing.assert_allclose(five, 0.1 - 1.645 * np.array([1e-6, 0.01, 0.03]), atol=1e-3)
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == ["start", "1", "2"]


@pytest.mark.parametrize(
    ("edges", "counts", "said"),
    [
        ([[0.0, 1.0]], [[1.0, 2.0]], "but must be"),
        ([0.0, 1.0], [1.0], "but must be"),
        ([[0.0, 0.0]], [[1.0]], "ascend"),
        ([[0.0, 1.0]], [[0.0]], "at least one weight"),
    ],
)
def test_histograms_that_are_none_are_refused(edges, counts, said):
    with pytest.raises(UserError, match=said):
        plot.rate_histograms(edges, counts)
