"""iTAML's bound on the size of a continuum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cljax
from cljax.errors import UserError

# P0, U, t -> p, n, P(n), n_stable: worked by hand with exact binomials.
WORKED = [
    (0.30, 10, 10, 0.363636, 12, 0.965348, 12),
    (0.20, 10, 10, 0.272727, 21, 0.952132, 26),
    (0.40, 10, 10, 0.454545, 9, 0.963672, 9),
    (0.50, 10, 10, 0.545455, 4, 0.957312, 7),
    (0.90, 2, 5, 0.911111, 2, 0.992099, 2),
    (0.60, 1000, 10, 0.639964, 3, 0.953330, 6),
    (0.30, 5, 20, 0.328283, 8, 0.958553, 13),
    (0.30, 20, 5, 0.434343, 16, 0.962914, 19),
]


@pytest.mark.parametrize(("p0", "u", "t", "p", "n", "chance", "stable"), WORKED)
def test_worked_values(p0, u, t, p, n, chance, stable):
    found = cljax.evaluation.continuum_lower_bound(p0, u, t)
    assert found.p == pytest.approx(p, abs=5e-7)
    assert (found.n, found.n_stable) == (n, stable)
    assert found.probability == pytest.approx(chance, abs=5e-7)


def exact(n, p, t, half_even=False):
    k = 1 + (round(n / t) if half_even else math.floor(n / t + 0.5))
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


@settings(deadline=None, max_examples=60)
@given(st.floats(0.35, 1.0), st.integers(2, 20), st.integers(2, 12), st.floats(0.5, 0.99))
def test_it_is_the_first_size_and_the_last_failure(p0, u, t, confidence):
    found = cljax.evaluation.continuum_lower_bound(p0, u, t, confidence)
    chances = np.array([exact(n, found.p, t) for n in range(1, found.n_stable + 60)])
    clear = np.abs(chances - confidence) > 1e-9  # not decided by rounding
    passes = chances > confidence
    assert not (passes & clear)[: found.n - 1].any() and (passes | ~clear)[found.n - 1]
    assert (passes | ~clear)[found.n_stable - 1 :].all()
    assert found.n_stable == 1 or not (passes & clear)[found.n_stable - 2]


def test_rounding_half_to_even_differs_where_it_is_half_way():
    assert cljax.evaluation.continuum_lower_bound(0.4, 10, 10, rounding="half-even").n == 5


def test_the_printed_formula_leaves_p0_out():
    with pytest.raises(UserError, match="No continuum suffices for p0 = 0.9: a vote is right"):
        cljax.evaluation.continuum_lower_bound(0.9, 10, 10, formula="printed")


def test_one_task_needs_one_example():
    assert cljax.evaluation.continuum_lower_bound(0.1, 10, 1) == (1, 1, 1.0, 1.0)


def test_no_p0_gives_the_17_that_the_paper_quotes_for_ten_tasks_of_ten():
    """The smallest size jumps from 14 to 19 near p0 = 0.2265."""
    sizes = {
        cljax.evaluation.continuum_lower_bound(p0, 10, 10).n for p0 in np.linspace(0.2, 0.3, 401)
    }
    assert 17 not in sizes and {14, 19} <= sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 10, 10), "p0 is -0.1"),
        ((1.1, 10, 10), "p0 is 1.1"),
        ((0.5, 0, 10), "classes_per_task is 0"),
        ((0.5, 10, 0), "num_tasks is 0"),
        ((0.5, 10, 10, 0.0), "confidence is 0.0"),
        ((0.5, 10, 10, 1.0), "confidence is 1.0"),
        ((0.0, 10, 10), "No continuum suffices"),
        ((float("nan"), 10, 10), "p0 is nan"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        cljax.evaluation.continuum_lower_bound(*arguments)
