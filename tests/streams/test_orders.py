from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cljax.streams import orders


@given(st.integers(0, 300), st.integers(0, 2**40), st.text(max_size=8))
def test_a_permutation_holds_every_number_once(n, seed, purpose):
    order = orders.permutation(n, purpose, seed)
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(n))


@given(st.integers(1, 300), st.data())
def test_taking_some_gives_the_first_of_all(n, data):
    take = data.draw(st.integers(0, n))
    whole = orders.permutation(n, "take", 3)
    assert np.array_equal(orders.permutation(n, "take", 3, take=take), whole[:take])


def test_the_numbers_are_the_recorded_ones():
    assert orders.permutation(8, "test", 0, 1).tolist() == [6, 2, 5, 1, 7, 0, 3, 4]
    assert [int(v) for v in orders.raw(2, "test")] == [12698292242644564332, 6927692440744979435]


def test_purposes_and_counters_are_independent():
    a = orders.raw(4, "a", 1, 12)
    for other in (("b", 1, 12), ("a", 11, 2), ("a", 1, 1, 2), ("a", "1", 12), ("a", 12, 1)):
        assert not np.array_equal(a, orders.raw(4, *other))
    assert np.array_equal(a, orders.raw(4, "a", np.int64(1), np.int32(12)))


def test_permutations_are_uniform():
    firsts = np.array([orders.permutation(5, "uniform", i)[0] for i in range(5000)])
    counts = np.bincount(firsts, minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # chi-squared, 4 degrees, 0.1 %


def test_uniform_numbers_are_in_the_unit_interval():
    u = orders.uniform(10_000, "u")
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
