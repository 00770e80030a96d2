"""Figures of a report: forgetting of each task, and learned rates over time.

    forgetting of task j   max_{j <= i < T-1} a(i, j) - a(T-1, j)
    share of a bin         its count / all counts, mean over seeds, in bins that all rows share

Source: forgetting as in Chaudhry et al. 2018 (arXiv:1801.10112); rates for each weight as La-MAML
learns them (arXiv:2007.13904, equation 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cljax import measures
from cljax.errors import UserError
from cljax.plot import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["forgetting_bars", "forgetting_of_tasks", "rate_histograms"]

_SHOWN = 60  # common bins
_TAIL = 5e-4  # share of weights at either end that may lie outside the picture
_LEAST = 1e-4  # share of weights that still has a colour of its own


def forgetting_of_tasks(matrix: ArrayLike) -> np.ndarray:
    """How far each task but the last fell from its best accuracy to its final one.

    The mean over tasks is ``cljax.metrics.forgetting``; where entries were not evaluated, the best
    of those that were counts.

    Args:
      matrix: [..., T+1, T] fractions, row 0 before training, NaN = not evaluated.

    Returns:
      [..., T-1] fractions, negative where a task ends best; NaN where nothing is known.
    """
    array = np.asarray(matrix, np.float64)
    num_tasks = array.shape[-1]
    after = array[..., 1:-1, :-1]
    known = np.tri(num_tasks - 1, dtype=bool) & np.isfinite(after)
    best = np.where(known, after, -np.inf).max(axis=-2, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan) - array[..., -1, :-1]


def forgetting_bars(
    matrices: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    title: str | None = None,
    score: str = measures.ACCURACY,
) -> Axes:
    """Bars of forgetting, one a task and run: the mean over seeds, with its 95 % interval.

    Of 2 to 4 seeds each is a point instead.

    Args:
      matrices: name -> [T+1, T] or [S, T+1, T] fractions, all of the same T, at least 2.
      ax: where to draw; None: a new figure.
      title: above the axes.
      score: what the numbers are.

    Raises:
      UserError: without matrices, for tasks that differ in number, or for a single task.
    """
    scale = measures.scale(score)
    bounds = (-scale, scale) if measures.in_percent(score) else (-np.inf, np.inf)
    result = {name: np.atleast_2d(scale * forgetting_of_tasks(m)) for name, m in matrices.items()}
    counts = {values.shape[-1] + 1 for values in result.values()}
    if len(counts) != 1 or counts == {1}:
        raise UserError(
            f"forgetting is drawn for matrices of {sorted(counts)} tasks, but needs at least one "
            "matrix, all of them of the same number of tasks, at least 2."
        )
    num = counts.pop() - 1
    ax = parts.axes(ax, (7.6, 3.2))
    width = 0.8 / len(result)
    places = np.arange(1, num + 1)
    for i, (name, values) in enumerate(result.items()):
        middle, low, high = parts.band(values, bounds)
        known = np.isfinite(low)
        ends = np.stack([np.where(known, middle - low, 0), np.where(known, high - middle, 0)])
        offset = (i - (len(result) - 1) / 2) * width
        ax.bar(
            places + offset, np.nan_to_num(middle), width, label=name, linewidth=0.6,
            color=parts.PALETTE[i % len(parts.PALETTE)], edgecolor=parts.PAPER,
            yerr=ends if known.any() else None,
            error_kw={
                "elinewidth": 0.9, "capsize": min(3.0, 40 * width / num), "ecolor": parts.INK,
            },
        )  # fmt: skip
        for single in parts.singles(values):
            ax.plot(places + offset, single, "o", color=parts.INK, markersize=2, alpha=0.7)
    ax.axhline(0, color=parts.INK, linewidth=0.8)
    step = 1 if num <= 25 else 10
    ax.set_xticks([t for t in places if t % step == 0])
    ax.set_xlabel("Task", fontsize=9)
    ax.set_ylabel("Forgetting (points)", fontsize=9)
    if len(result) > 1:
        parts.legend(ax, *ax.get_legend_handles_labels(), length=1.2)
    parts.tidy(ax, title)
    return ax


def rate_histograms(
    edges: ArrayLike,
    counts: ArrayLike,
    ax: Axes | None = None,
    *,
    names: list[str] | None = None,
    ylabel: str = "Learning rate of a weight",
    title: str | None = None,
) -> Axes:
    """Histograms of learned rates over time: a column a moment, shaded by the share of weights.

    Shades are logarithmic; lines are the median and the 5 % and 95 % quantiles.

    Args:
      edges: [P, n + 1] or [S, P, n + 1] at P moments of S seeds, each ascending.
      counts: [..., n] weights between them.
      ax: where to draw; None: a new figure.
      names: [P] of the moments; None: "start", 1, 2, ...

    Raises:
      UserError: for shapes that disagree, edges that do not ascend, or no weights.
    """
    from matplotlib.colors import LogNorm

    where, number = np.asarray(edges, np.float64), np.asarray(counts, np.float64)
    where, number = (a[None] if a.ndim == 2 else a for a in (where, number))
    if where.ndim != 3 or number.shape != (*where.shape[:2], where.shape[2] - 1):
        raise UserError(
            f"histograms have edges of shape {list(np.shape(edges))} and counts of shape "
            f"{list(np.shape(counts))}, but must be [moments, n + 1] and [moments, n]."
        )
    if not (np.diff(where) > 0).all() or not (number.sum(axis=-1) > 0).all():
        raise UserError("a histogram's edges must ascend, and it must count at least one weight.")
    share = np.concatenate([np.zeros((*number.shape[:2], 1)), number.cumsum(axis=-1)], axis=-1)
    share /= share[..., -1:]
    pairs = list(zip(where.reshape(-1, where.shape[2]), share.reshape(-1, share.shape[2]),
                     strict=True))  # fmt: skip
    of_all = lambda values: np.array(values).reshape(*where.shape[:2], *np.shape(values)[1:])
    at = lambda q: of_all([np.interp(q, s, w) for w, s in pairs])
    low, high = at(_TAIL).min(), at(1 - _TAIL).max()
    room = 0.02 * max(high - low, 1e-3 * max(abs(low), abs(high), 1e-9))
    bins = np.linspace(low - room, high + room, _SHOWN + 1)
    below = of_all([np.interp(bins, w, s) for w, s in pairs])
    image = np.diff(below, axis=-1).mean(axis=0).T  # [bins, moments]
    num = where.shape[1]
    ax = parts.axes(ax, (7.6, 3.6))
    mesh = ax.pcolormesh(
        np.arange(num + 1) - 0.5, bins, np.ma.masked_less(image, _LEAST), cmap="viridis_r",
        norm=LogNorm(_LEAST, 1), rasterized=True,
    )  # fmt: skip
    for quantile, style in ((0.05, ":"), (0.5, "-"), (0.95, ":")):
        ax.plot(range(num), at(quantile).mean(axis=0), color="#D55E00", linestyle=style,
                linewidth=1.6, label="median" if quantile == 0.5 else "5 % and 95 %")  # fmt: skip
    if low < 0 < high:
        ax.axhline(0, color=parts.INK, linewidth=0.8)
    ticks = names or ["start", *map(str, range(1, num))]
    shown = range(0, num, 1 if num <= 25 else 10)
    ax.set_xticks(list(shown), [ticks[i] for i in shown])
    ax.set_xlabel("After task", fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label("Share of weights", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    bar.minorticks_off()
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[:2], labels[:2], loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8,
        frameon=False, borderaxespad=0.2,
    )  # fmt: skip
    parts.tidy(ax, title)
    ax.grid(visible=False)
    return ax
