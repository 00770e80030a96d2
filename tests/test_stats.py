"""Intervals and tests against scipy.stats and printed examples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from cljax import stats
from cljax.errors import UserError
from cljax.stats import Cell

FIVE = [0.771, 0.764, 0.782, 0.769, 0.775]
fractions = st.floats(0.01, 0.99).map(lambda v: round(v, 4))


def test_summary_by_hand() -> None:
    s = stats.summary([0.70, 0.72, 0.74, 0.76, 0.78])
    assert s.mean == pytest.approx(0.74)
    assert s.std == pytest.approx(np.sqrt(0.004 / 4))
    half = 2.776445 * np.sqrt(0.001) / np.sqrt(5)  # t(0.975, 4) of the printed tables
    assert s.ci95 == pytest.approx((0.74 - half, 0.74 + half), abs=1e-7)
    assert s.values == (0.70, 0.72, 0.74, 0.76, 0.78)


def test_summary_of_one_value_has_no_spread() -> None:
    assert stats.summary([0.5]) == (0.5, None, None, (0.5,))
    assert stats.summary([0.5, 0.5]).ci95 == (0.5, 0.5)


@pytest.mark.parametrize("bad", [[], [0.5, float("nan")], [float("inf")]])
def test_bad_values_are_refused(bad: list[float]) -> None:
    for call in (stats.summary, lambda v: stats.equivalence(v, Cell(0.5), 0.01)):
        with pytest.raises(UserError, match="values"):
            call(bad)


@pytest.mark.parametrize("mean,std,n", [(0.7742, 0.0065, 5), (0.7607, 0.012, 3), (0.70, 0.03, 8)])
@pytest.mark.parametrize("margin", [0.002, 0.015, 0.05])
def test_welch_tost_equals_scipy(mean: float, std: float, n: int, margin: float) -> None:
    """Two one-sided Welch tests, each by scipy with the target moved by the margin."""
    verdict = stats.equivalence(FIVE, Cell(mean, std, n), margin)
    here = np.mean(FIVE), np.std(FIVE, ddof=1), len(FIVE)
    p = [
        scipy.stats.ttest_ind_from_stats(
            *here, mean + shift, std, n, equal_var=False, alternative=side
        ).pvalue
        for shift, side in ((-margin, "greater"), (margin, "less"))
    ]
    assert verdict.p_value == pytest.approx(max(p), rel=1e-9)
    assert (verdict.verdict == "equivalent") == (max(p) < 0.05)
    assert verdict.diff == pytest.approx(np.mean(FIVE) - mean)
    assert verdict.n == (5, n)


def test_welch_interval_equals_scipy() -> None:
    a, b = FIVE, [0.78, 0.74, 0.765]
    target = Cell(float(np.mean(b)), float(np.std(b, ddof=1)), 3)
    reference = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    assert stats.equivalence(a, target, 0.01).ci90 == pytest.approx(tuple(reference), rel=1e-9)


@pytest.mark.parametrize(
    "target", [Cell(0.774), Cell(0.774, None, 1), Cell(0.774, 0.01, 1), Cell(0.774, 0.01)]
)
def test_target_without_spread_or_number_is_exact(target: Cell) -> None:
    verdict = stats.equivalence(FIVE, target, 0.015)
    reference = scipy.stats.ttest_1samp(FIVE, 0.774).confidence_interval(0.90)
    low, high = (bound - 0.774 for bound in reference)
    assert verdict.ci90 == pytest.approx((low, high), rel=1e-9)
    lower = scipy.stats.ttest_1samp(FIVE, 0.774 - 0.015, alternative="greater").pvalue
    upper = scipy.stats.ttest_1samp(FIVE, 0.774 + 0.015, alternative="less").pvalue
    assert verdict.p_value == pytest.approx(max(lower, upper), rel=1e-9)


def test_a_summary_can_be_the_target() -> None:
    other = stats.summary([0.78, 0.77, 0.76])
    cell = Cell(other.mean, other.std, 3)
    assert stats.equivalence(FIVE, other, 0.02) == stats.equivalence(FIVE, cell, 0.02)


@pytest.mark.parametrize(
    "mean,margin,verdict,inside,accepted",
    [
        (0.772, 0.015, "equivalent", True, True),
        (0.772, 0.004, "undecided", True, True),  # close, too few runs to prove it
        (0.752, 0.015, "undecided", False, False),  # interval across the margin, mean beyond
        (0.720, 0.015, "different", False, False),
        (0.824, 0.015, "different", False, False),
    ],
)
def test_rule_of_acceptance(
    mean: float, margin: float, verdict: str, inside: bool, accepted: bool
) -> None:
    v = stats.equivalence(FIVE, Cell(mean, 0.0065, 5), margin)
    assert (v.verdict, v.inside, v.accepted) == (verdict, inside, accepted)
    low, high = v.ci90 or (0, 0)
    assert low < v.diff < high


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_than_five_seeds_decide_nothing(count: int) -> None:
    values = [0.7720, 0.7721, 0.7722, 0.7723, 0.7724]
    target = Cell(0.7722, 0.0001, 5)
    assert stats.equivalence(values, target, 0.015).verdict == "equivalent"
    few = stats.equivalence(values[:count], target, 0.015)
    assert (few.verdict, few.inside, few.accepted) == ("undecided", True, False)
    assert (few.ci90 is None) == (count == 1)
    far = stats.equivalence(values[:count], Cell(0.1, 0.0001, 5), 0.015)
    assert far.verdict == "undecided"


def test_no_spread_at_all() -> None:
    same = [0.5] * 5
    assert stats.equivalence(same, Cell(0.505), 0.01).verdict == "equivalent"
    assert stats.equivalence(same, Cell(0.52), 0.01).verdict == "different"
    assert stats.equivalence(same, Cell(0.505), 0.01).p_value == 0.0


@pytest.mark.parametrize("margin", [0.0, -0.01, float("nan"), float("inf")])
def test_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(UserError, match="margin"):
        stats.equivalence(FIVE, Cell(0.7), margin)


@given(
    st.lists(fractions, min_size=5, max_size=8),
    st.lists(fractions, min_size=2, max_size=8),
    st.floats(0.005, 0.2),
)
def test_verdict_is_symmetric(a: list[float], b: list[float], margin: float) -> None:
    """Reflecting everything, or exchanging the sides, changes the sign and nothing else."""
    sa, sb = stats.summary(a), stats.summary(b)
    one = stats.equivalence(a, sb, margin)
    mirrored = stats.equivalence([1 - v for v in a], Cell(1 - sb.mean, sb.std, len(b)), margin)
    assert one.ci90 is not None and mirrored.ci90 is not None
    # Where an interval ends on a margin, rounding decides.
    assume(all(abs(abs(end) - margin) > 1e-9 for end in (*one.ci90, one.diff)))
    assert mirrored.verdict == one.verdict and mirrored.inside == one.inside
    assert mirrored.ci90 == pytest.approx((-one.ci90[1], -one.ci90[0]), abs=1e-9)
    if len(b) >= 5:
        other = stats.equivalence(b, sa, margin)
        assert other.verdict == one.verdict
        assert other.diff == pytest.approx(-one.diff, abs=1e-12)


@given(st.lists(fractions, min_size=5, max_size=8), fractions, st.floats(0.005, 0.2))
def test_verdict_follows_the_interval(a: list[float], mean: float, margin: float) -> None:
    v = stats.equivalence(a, Cell(mean), margin)
    assert v.ci90 is not None and v.p_value is not None
    low, high = v.ci90
    expected = "undecided"
    if max(abs(low), abs(high)) < margin:
        expected = "equivalent"
    elif low > margin or high < -margin:
        expected = "different"
    assert v.verdict == expected
    wider = stats.equivalence(a, Cell(mean), margin * 2)
    assert not (v.verdict == "equivalent" and wider.verdict != "equivalent")
    assert not (v.accepted and v.verdict == "different")


def test_paired_equals_scipy() -> None:
    a, b = FIVE, [0.768, 0.765, 0.770, 0.761, 0.772]
    p = stats.paired(a, b)
    reference = scipy.stats.ttest_rel(a, b)
    d = np.subtract(a, b)
    assert p.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert p.ci95 == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-9)
    assert p.effect_size == pytest.approx(d.mean() / d.std(ddof=1))
    assert p.n == 5
    back = stats.paired(b, a)
    assert back.p_value == pytest.approx(p.p_value)
    assert (back.diff, back.effect_size) == pytest.approx((-p.diff, -(p.effect_size or 0)))


def test_paired_limits() -> None:
    assert stats.paired([0.5], [0.4])[1:] == (None, None, None, 1)
    same = stats.paired([0.5, 0.6], [0.5, 0.6])
    assert (same.p_value, same.effect_size, same.ci95) == (1.0, None, (0.0, 0.0))
    rounded = stats.paired([0.3, 0.2], [0.2, 0.1])  # equal, but for the last bits
    assert rounded.effect_size is None and rounded.ci95 == (rounded.diff, rounded.diff)
    shifted = stats.paired([0.75, 0.5], [0.5, 0.25])
    assert (shifted.p_value, shifted.effect_size) == (0.0, None)
    with pytest.raises(UserError, match="same seeds"):
        stats.paired([0.5, 0.6], [0.5])


def test_holm_on_a_known_example() -> None:
    """p = .01, .04, .03, .005: .005*4, .01*3, .03*2, then max(.06, .04*1)."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([0.5, 0.9]) == (1.0, 1.0)
    assert stats.holm([0.2]) == (0.2,)
    assert stats.holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_between_raw_and_bonferroni(p: list[float]) -> None:
    corrected = stats.holm(p)
    for raw, value in zip(p, corrected, strict=True):
        assert raw <= value <= min(1.0, raw * len(p)) * (1 + 1e-12)
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    smallest = int(order[0])
    assert corrected[smallest] == pytest.approx(min(1.0, p[smallest] * len(p)))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(UserError, match="p-value"):
        stats.holm([0.5, bad])


def test_error_rates() -> None:
    """At the margin's edge 'equivalent' comes out in at most about 5 % of experiments."""
    rng = np.random.default_rng(0)
    trials, margin = 2000, 0.015
    found = {"equivalent": 0, "different": 0}
    for _ in range(trials):
        values = rng.normal(0.76 + margin, 0.008, 5)
        target = stats.summary(rng.normal(0.76, 0.008, 5))
        verdict = stats.equivalence(values, target, margin).verdict
        if verdict in found:
            found[verdict] += 1
    for count in found.values():  # both are one-sided 5 % tests there
        assert 0.03 < count / trials < 0.07


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0.5,), {}, "0.50"),
        ((0.5, (0.25, 0.75)), {}, "0.50 [0.25, 0.75]"),
        ((0.5, (0.25, 0.75)), {"scale": 100, "spec": "+.1f"}, "+50.0 [+25.0, +75.0]"),
        ((-0.5, (-1.0, 0.0)), {"width": 8}, "   -0.50 [-1.00, 0.00]"),
        ((0.9, (0.7, 1.1)), {"bounds": (0, 1), "unit": "%"}, "0.90 % [0.70, 1.00]"),
        ((-0.9, (-1.1, -0.7)), {"bounds": (-1, 1)}, "-0.90 [-1.00, -0.70]"),
        ((0.5, (0.1, 0.9)), {"values": (0.4, None, 0.6)}, "0.50 (0.40, 0.60)"),
        ((0.5,), {"values": (0.5,), "unit": "%"}, "0.50 %"),
        ((0.5, (0.4, 0.6)), {"values": (0.5,) * 5}, "0.50 [0.40, 0.60]"),
    ],
)
def test_a_mean_is_shown_with_its_interval(arguments, options, text) -> None:
    assert stats.with_interval(*arguments, **options) == text


def test_quantiles_of_t_are_those_of_scipy() -> None:
    from scipy.special import stdtrit

    for df in (*range(1, 40), 199, 500):
        assert stats.t_quantile(df) == pytest.approx(stdtrit(df, 0.975), rel=1e-12)
