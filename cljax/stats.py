"""Summaries and tests over seeds: intervals, equivalence with a target, paired differences.

The rule of acceptance against a published number is two one-sided t-tests at 5 %
(Schuirmann 1987) with a margin fixed beforehand and at least five seeds:

    diff = mean(values) - target.mean
    ci90 = diff -+ t(0.95, df) * se      Welch's se and df where the target has a spread and n,
                                         else that of the values alone, the target being exact
    equivalent  ci90 lies strictly inside (-margin, margin): both one-sided tests reject
    different   ci90 lies entirely beyond one of the margins
    undecided   neither, or fewer than five seeds
    accepted    equivalent, or undecided with |diff| <= margin (and five seeds)

Everything is in the unit of the values: fractions for accuracies, and so is the margin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cljax.errors import UserError, as_numbers, check_above_zero, in_words

__all__ = [
    "MIN_SEEDS", "Cell", "Paired", "Summary", "Verdict", "equivalence", "holm", "paired",
    "summary", "t_quantile", "with_interval",
]  # fmt: skip

MIN_SEEDS = 5  # fewer decide nothing
_Interval = tuple[float, float]


class Cell(NamedTuple):
    """A number to compare with: mean over ``n`` runs and their standard deviation (ddof 1)."""

    mean: float
    std: float | None = None  # None: not stated, or one run
    n: int | None = None  # None: not stated
    source: str = ""


class Summary(NamedTuple):
    """Mean, standard deviation (ddof 1) and 95 % t-interval; both None with one value."""

    mean: float
    std: float | None
    ci95: _Interval | None
    values: tuple[float, ...]


class Verdict(NamedTuple):
    """The outcome of ``equivalence``.

    ``diff`` is mean minus target, ``ci90`` its 90 % interval (None with one value), ``n`` the
    numbers of values on both sides, ``p_value`` the larger of the two one-sided ones, and
    ``inside`` says whether ``|diff| <= margin``.
    """

    verdict: Literal["equivalent", "different", "undecided"]
    diff: float
    ci90: _Interval | None
    margin: float
    n: tuple[int, int | None]
    inside: bool
    p_value: float | None

    @property
    def accepted(self) -> bool:
        """Equivalent, or undecided with the difference inside the margin; at least five seeds."""
        enough = self.n[0] >= MIN_SEEDS
        return enough and (
            self.verdict == "equivalent" or (self.verdict == "undecided" and self.inside)
        )


class Paired(NamedTuple):
    """The outcome of ``paired``: mean of a - b, 95 % interval, two-sided p and Cohen's dz.

    ``ci95`` and ``p_value`` are None with one pair; ``effect_size``, the mean difference over the
    standard deviation of the differences, also where that is 0.
    """

    diff: float
    ci95: _Interval | None
    p_value: float | None
    effect_size: float | None
    n: int


def summary(values: ArrayLike) -> Summary:
    """Mean, standard deviation (ddof 1) and 95 % t-interval of one value per seed.

    Args:
      values: [S] finite numbers, S >= 1.

    Raises:
      UserError: without values, or with one that is not finite.

    Example:
        >>> from cljax import stats
        >>> found = stats.summary([0.75, 0.77, 0.76])
        >>> round(found.mean, 4), round(found.std, 4), [round(end, 4) for end in found.ci95]
        (0.76, 0.01, [0.7352, 0.7848])
    """
    x = _finite("values", values)
    mean = float(x.mean())
    if x.size == 1:
        return Summary(mean, None, None, (mean,))
    std = float(x.std(ddof=1))
    ci95 = _interval(mean, std / math.sqrt(x.size), x.size - 1, 0.95)
    return Summary(mean, std, ci95, tuple(x.tolist()))


def with_interval(
    mean: float,
    ci95: _Interval | None = None,
    *,
    values: Sequence[float | None] = (),
    bounds: _Interval | None = None,
    scale: float = 1.0,
    spec: str = ".2f",
    unit: str = "",
    width: int = 0,
) -> str:
    """A mean and its interval as text; without an interval the mean alone.

    Args:
      values: of the seeds, None for one that diverged. Where they are 2 to 4, too few for an
        interval that says something, they stand in its place, in parentheses.
      bounds: the least and the largest value that is possible; the interval is cut there.
      scale: multiplies all of these; 100 shows fractions in percent.
      spec: format of each number.
      unit: of the mean, behind it.
      width: columns of the mean, which stands to their right.

    Example:
        >>> from cljax import stats
        >>> stats.with_interval(0.76, (0.7352, 0.7848), scale=100)
        '76.00 [73.52, 78.48]'
        >>> stats.with_interval(0.98, (0.95, 1.01), bounds=(0, 1), scale=100, unit="%")
        '98.00 % [95.00, 100.00]'
        >>> stats.with_interval(0.76, (0.70, 0.82), values=(0.75, 0.77), scale=100)
        '76.00 (75.00, 77.00)'
    """
    text = f"{scale * mean:{spec}}".rjust(width) + (f" {unit}" if unit else "")
    single = [value for value in values if value is not None]
    if 0 < len(single) < MIN_SEEDS:
        shown = ", ".join(f"{scale * value:{spec}}" for value in single)
        return f"{text} ({shown})" if len(single) > 1 else text
    if ci95 is None:
        return text
    least, most = (-math.inf, math.inf) if bounds is None else bounds
    low, high = (scale * min(max(end, least), most) for end in ci95)
    return f"{text} [{low:{spec}}, {high:{spec}}]"


def equivalence(values: ArrayLike, target: Cell | Summary, margin: float) -> Verdict:
    """Tests whether a mean equals a target within a margin (two one-sided t-tests at 5 %).

    Args:
      values: [S] one finite number per seed.
      target: what to compare with. With a standard deviation over n >= 2 runs the tests are
        Welch's; otherwise its mean is taken as exact.
      margin: largest difference that does not matter, in the unit of the values, fixed before
        looking at them.

    Returns:
      Verdict, see the module's rule; undecided with fewer than five values.

    Raises:
      UserError: if a value is not finite or the margin not a positive finite number.
    """
    x = _finite("values", values)
    check_above_zero(margin=margin)
    if not isinstance(target, (Cell, Summary)):
        raise UserError(f"target is {in_words(target)}, but it must be a Cell or a Summary.")
    n = target.n if isinstance(target, Cell) else len(target.values)
    diff = float(x.mean() - target.mean)
    inside = abs(diff) <= margin
    if x.size == 1:
        return Verdict("undecided", diff, None, margin, (1, n), inside, None)
    parts = [(float(x.var(ddof=1)) / x.size, x.size - 1)]
    if target.std is not None and n is not None and n >= 2:
        parts.append((target.std**2 / n, n - 1))
    se, df = _standard_error(parts)
    low, high = _interval(diff, se, df, 0.90)
    p_value = max(_upper_tail(diff + margin, se, df), _upper_tail(margin - diff, se, df))
    verdict: Literal["equivalent", "different", "undecided"] = "undecided"
    if x.size >= MIN_SEEDS:
        if -margin < low and high < margin:
            verdict = "equivalent"
        elif low > margin or high < -margin:
            verdict = "different"
    return Verdict(verdict, diff, (low, high), margin, (x.size, n), inside, p_value)


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Paired t-test over seeds of ``a - b``, with interval and effect size (Cohen's dz).

    Args:
      a: [S] one finite number per seed.
      b: [S] those of the other method, same seeds in the same order.

    Raises:
      UserError: if the lengths differ or a value is not finite.

    Example:
        >>> from cljax import stats
        >>> found = stats.paired([0.75, 0.77, 0.76], [0.70, 0.73, 0.70])
        >>> round(found.diff, 4), round(found.p_value, 4), round(found.effect_size, 4)
        (0.05, 0.0131, 5.0)
    """
    x, y = _finite("a", a), _finite("b", b)
    if x.size != y.size:
        raise UserError(
            f"a has {x.size} values and b has {y.size}, but paired values need the same seeds."
        )
    d = x - y
    diff = float(d.mean())
    if d.size == 1:
        return Paired(diff, None, None, None, 1)
    std = float(d.std(ddof=1))
    if std <= 1e-12 * abs(diff):  # equal differences, but for rounding
        std = 0.0
    se, df = std / math.sqrt(d.size), d.size - 1
    p_value = min(1.0, 2 * _upper_tail(abs(diff), se, df)) if diff else 1.0
    return Paired(
        diff, _interval(diff, se, df, 0.95), p_value, diff / std if std > 0 else None, d.size
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction of a family of p-values (Holm 1979).

    Sorted ascending, ``max_{i<=k} min(1, (m - i) p_i)`` with i from 0; a hypothesis is rejected at
    level q where its corrected p-value is at most q, and then the family-wise error is at most q.

    Args:
      p_values: [m] in [0, 1].

    Returns:
      [m] corrected p-values, in the order given.

    Raises:
      UserError: for a p-value outside [0, 1].

    Example:
        >>> from cljax import stats
        >>> stats.holm([0.5, 0.125, 0.25])
        (0.5, 0.375, 0.5)
    """
    p = as_numbers("p_values", p_values).reshape(-1)
    bad = p[~((p >= 0) & (p <= 1))]
    if bad.size:
        raise UserError(f"a p-value is {bad[0]}, but it must be in [0, 1].")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * (p.size - np.arange(p.size)))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(steps) if p.size else steps
    return tuple(corrected.tolist())


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    x = as_numbers(name, values).reshape(-1)
    if not x.size:
        raise UserError(f"{name} is empty, but a statistic needs at least one value.")
    if not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x)))
        raise UserError(f"{name}[{bad}] is {x[bad]}, but every value must be a finite number.")
    return x


def _standard_error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Standard error and Welch-Satterthwaite degrees of freedom from (variance of mean, df)."""
    total = sum(v for v, _ in parts)
    if total == 0:
        return 0.0, float(min(df for _, df in parts))
    # Shares, not variances, so that tiny ones do not underflow when squared.
    return math.sqrt(total), 1 / sum((v / total) ** 2 / df for v, df in parts)


@functools.cache
def t_quantile(df: int) -> float:
    """The ``t`` with P(|T| <= t) = 0.95 for Student's T with ``df`` >= 1 degrees of freedom.

    With theta = atan(t / sqrt(df)) the probability is a finite sum (Abramowitz and Stegun, 26.7.3
    and 26.7.4), solved here by bisection: to import ``scipy.special`` takes longer than to draw
    most figures.
    """
    odd = df % 2

    def inside(theta: float) -> float:
        power, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
        for k in range(1 + odd, df, 2):
            total += power
            power *= math.cos(theta) ** 2 * k / (k + 1)
        total *= math.sin(theta)
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _interval(centre: float, se: float, df: float, level: float) -> _Interval:
    from scipy.special import stdtrit

    half = float(stdtrit(df, (1 + level) / 2)) * se
    return centre - half, centre + half


def _upper_tail(excess: float, se: float, df: float) -> float:
    """P(T >= excess / se); without spread 0 or 1 by the sign of ``excess``."""
    from scipy.special import stdtr

    if se == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stdtr(df, -excess / se))
