"""Measures against hand-computed matrices, and what is left out where entries are missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cljax import metrics
from cljax.errors import UserError

NAN = np.nan
#                  task 0, 1, 2
HAND = np.array([[0.10, 0.12, 0.08],  # before training
                 [0.90, 0.20, 0.14],
                 [0.70, 0.80, 0.30],
                 [0.60, 0.85, 0.95]])  # fmt: skip
COUNTS = np.array([100, 100, 200])
EXPECTED = {
    "RA": (0.60 + 0.85 + 0.95) / 3,
    "LA": (0.90 + 0.80 + 0.95) / 3,
    "BTI": (-0.30 + 0.05 + 0.0) / 3,
    "FWT": ((0.20 - 0.12) + (0.30 - 0.08)) / 3,
    "forgetting": ((0.90 - 0.60) + (0.80 - 0.85)) / 2,
    "AIA": (0.90 + 0.75 + (0.60 * 100 + 0.85 * 100 + 0.95 * 200) / 400) / 3,
    "F": 0.30,
}
NEEDED = {  # which entries of [T+1, T] each measure reads, written out for three tasks
    "RA": ["...", "...", "...", "xxx"],
    "LA": ["...", "x..", ".x.", "..x"],
    "BTI": ["...", "x..", ".x.", "xxx"],
    "FWT": [".xx", ".x.", "..x", "..."],
    "forgetting": ["...", "x..", "xx.", "xxx"],
    "AIA": ["...", "x..", "xx.", "xxx"],
    "F": ["...", "x..", "...", "x.."],
}


def _pattern(name: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in NEEDED[name]])


@pytest.mark.parametrize("name", EXPECTED)
def test_hand_computed(name: str) -> None:
    values, absent = metrics.compute(HAND, COUNTS)
    assert absent == {}
    np.testing.assert_allclose(values[name], EXPECTED[name], rtol=1e-14, atol=1e-15)


def test_the_seed_axis_is_kept() -> None:
    stack = np.stack([HAND, HAND * 0.5, HAND[::-1]])
    values, _ = metrics.compute(stack, COUNTS)
    assert set(values) == set(EXPECTED)
    for i, matrix in enumerate(stack):
        alone, _ = metrics.compute(matrix, COUNTS)
        for name, value in values.items():
            assert value.shape == (3,)
            np.testing.assert_allclose(value[i], alone[name], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_measure_reads_exactly_the_entries_it_needs(name: str) -> None:
    pattern = _pattern(name)
    enough = np.where(pattern, HAND, NAN)
    values, absent = metrics.compute(enough, COUNTS)
    np.testing.assert_allclose(values[name], EXPECTED[name], rtol=1e-14, atol=1e-15)
    assert name not in absent
    for row, column in np.argwhere(pattern):
        short = HAND.copy()
        short[row, column] = NAN
        values, absent = metrics.compute(short, COUNTS)
        assert name not in values
        assert "1 of these" in absent[name] and "not evaluated" in absent[name]


def test_every_measure_is_present_or_explained_and_never_nan() -> None:
    diagonal_last = np.where(_pattern("BTI"), HAND, NAN)
    values, absent = metrics.compute(diagonal_last, COUNTS)
    assert set(values) == {"RA", "LA", "BTI", "F"}
    assert set(absent) == {"FWT", "forgetting", "AIA"}
    assert "entries='lower'" in absent["forgetting"] and "entries='full'" in absent["FWT"]
    assert all(np.isfinite(v).all() for v in values.values())
    json.dumps({name: v.tolist() for name, v in values.items()}, allow_nan=False)


def test_a_seed_without_results_is_named() -> None:
    stack = np.stack([HAND, np.full_like(HAND, NAN), HAND])
    values, absent = metrics.compute(stack, COUNTS)
    assert values == {}
    assert "for 1 of 3 seeds (1)" in absent["RA"]


def test_one_task() -> None:
    values, absent = metrics.compute([[0.1], [0.9]], [10])
    assert {name: float(v) for name, v in values.items()} == {
        "RA": 0.9, "LA": 0.9, "AIA": 0.9
    }  # fmt: skip
    for name in ("BTI", "F", "FWT", "forgetting"):
        assert absent[name] == "needs at least 2 tasks, but the stream has 1."
    assert np.isnan(metrics.forgetting([[0.1], [0.9]]))


@st.composite
def _matrices(draw: st.DrawFn) -> np.ndarray:
    num_tasks = draw(st.integers(2, 6))
    shape = (draw(st.integers(1, 3)), num_tasks + 1, num_tasks)
    return draw(arrays(np.float64, shape, elements=st.floats(0, 1)))


@given(_matrices())
def test_bti_is_ra_minus_la_and_the_mean_change(matrix: np.ndarray) -> None:
    values, _ = metrics.compute(matrix, np.ones(matrix.shape[-1]))
    np.testing.assert_array_equal(values["BTI"], values["RA"] - values["LA"])
    change = matrix[:, -1] - np.stack([np.diag(m[1:]) for m in matrix])
    np.testing.assert_allclose(values["BTI"], change.mean(axis=-1), atol=1e-14)


@given(_matrices())
def test_bounds_and_bruteforce(matrix: np.ndarray) -> None:
    num_tasks = matrix.shape[-1]
    counts = np.arange(1, num_tasks + 1)
    values, _ = metrics.compute(matrix, counts)
    for s, m in enumerate(matrix):
        a = m[1:]
        seen = [
            sum(counts[j] * a[i, j] for j in range(i + 1)) / sum(counts[: i + 1])
            for i in range(num_tasks)
        ]
        np.testing.assert_allclose(values["AIA"][s], np.mean(seen), atol=1e-13)
        if num_tasks > 1:
            drops = [
                max(a[i, j] for i in range(j, num_tasks - 1)) - a[-1, j]
                for j in range(num_tasks - 1)
            ]
            np.testing.assert_allclose(values["forgetting"][s], np.mean(drops), atol=1e-13)
            gain = sum(a[t - 1, t] - m[0, t] for t in range(1, num_tasks)) / num_tasks
            np.testing.assert_allclose(values["FWT"][s], gain, atol=1e-13)
            assert (
                values["forgetting"][s] >= -values["BTI"][s] * num_tasks / (num_tasks - 1) - 1e-12
            )
    assert ((values["AIA"] >= 0) & (values["AIA"] <= 1 + 1e-12)).all()


def test_forgetting_ignores_accuracy_before_a_task_is_learned() -> None:
    high = HAND.copy()
    high[1, 1] = 1.0  # on task 1, before learning it
    assert metrics.forgetting(high) == metrics.forgetting(HAND)


def test_retained_accuracy_does_not_weigh_tasks_but_aia_does() -> None:
    same, _ = metrics.compute(HAND, [1, 1, 1])
    uneven, _ = metrics.compute(HAND, [1, 1, 98])
    assert same["RA"] == uneven["RA"]
    assert same["AIA"] != uneven["AIA"]
    np.testing.assert_allclose(
        metrics.seen_accuracy(HAND, [1, 1, 98])[-1], 0.0060 + 0.0085 + 0.95 * 0.98
    )


def test_a_large_first_task_by_hand() -> None:
    # 50 classes, then 2 x 25, 10 test images a class; the row before training has no part in it.
    matrix = [[0.99, 0.99, 0.99], [0.8, NAN, NAN], [0.6, 0.9, NAN], [0.5, 0.4, 0.8]]
    values, absent = metrics.compute(matrix, [500, 250, 250])
    curve = [400 / 500, (300 + 225) / 750, (250 + 100 + 200) / 1000]
    assert curve == [0.8, 0.7, 0.55] and "AIA" not in absent
    np.testing.assert_allclose(metrics.seen_accuracy(matrix, [500, 250, 250]), curve, rtol=1e-14)
    assert values["AIA"] == pytest.approx(2.05 / 3, rel=1e-14)
    assert values["F"] == pytest.approx(0.3, rel=1e-14)  # positive: it forgets
    matrix[3][0] = 0.85
    assert metrics.forgetting_rate(matrix) == pytest.approx(-0.05, rel=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 4), (1, 0), (5, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="accuracy matrix has shape"):
        metrics.compute(np.zeros(shape), np.ones(shape[-1]))


@pytest.mark.parametrize("counts", [[1, 1], [1, 0, 1], [1, 1, NAN], 3])
def test_wrong_counts_are_refused(counts: object) -> None:
    with pytest.raises(UserError, match="3 positive numbers"):
        metrics.compute(HAND, counts)  # pyright: ignore[reportArgumentType]


def test_prequential_accuracy_weighs_examples_not_updates() -> None:
    correct = np.array([[1, 10, 1], [0, 4, 2]])
    values, absent = metrics.compute_online(correct, [2, 10, 2])
    np.testing.assert_allclose(values["prequential_accuracy"], [12 / 14, 6 / 14])
    assert "eval_every" in absent["average_anytime_accuracy"]


def test_average_anytime_accuracy_counts_points_equally() -> None:
    points = np.array([[0.8, NAN, NAN], [0.6, 0.4, NAN], [0.3, 0.6, 0.9]])
    expected = (0.8 + 0.5 + 0.6) / 3
    assert metrics.average_anytime_accuracy(points) == pytest.approx(expected, rel=1e-15)
    full = np.where(np.isnan(points), 0.1, points)
    assert metrics.average_anytime_accuracy(full, [1, 2, 3]) == pytest.approx(expected, rel=1e-15)
    assert np.isnan(metrics.average_anytime_accuracy(points, [1, 3, 3]))
    values, absent = metrics.compute_online(None, [1], [points, full], [1, 2, 3])
    np.testing.assert_allclose(values["average_anytime_accuracy"], [expected, expected])
    assert "online=True" in absent["prequential_accuracy"]


def test_a_point_without_accuracy_is_named() -> None:
    good, bad = np.array([[0.5, NAN]]), np.array([[NAN, NAN]])
    values, absent = metrics.compute_online([[1]], [1], [good, bad])
    assert "average_anytime_accuracy" not in values
    assert "seed 1" in absent["average_anytime_accuracy"]
