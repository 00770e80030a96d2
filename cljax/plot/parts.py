"""What every figure is made of: colours, axes, means with bands, lines and legends.

Colours: Okabe and Ito, "Color Universal Design", 2008; with line styles, so that a curve is told
by either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from cljax import measures
from cljax.errors import UserError, as_numbers, check_known
from cljax.metrics import seen_accuracy
from cljax.stats import MIN_SEEDS, t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLANK", "INK", "Measured", "Names", "PALETTE", "PAPER", "axes", "band", "class_name",
    "curve_of", "labels_of", "legend", "lines", "matrix_of", "mean", "singles", "tidy",
]  # fmt: skip

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D1F")
INK, PAPER, BLANK = "#1A1A1A", "#FFFFFF", "#E4E4E4"
Names: TypeAlias = Sequence[str] | Mapping[int, str] | None  # of classes, by label
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 2)), (0, (1, 1)), (0, (7, 2, 2, 2)))
_LISTED = 24  # at most so many curves are named in a legend


class Measured(Protocol):
    """What figures read of a ``cljax.Run``."""

    @property
    def results(self) -> Mapping[str, Any]:
        """As ``Run.results``."""
        ...

    def accuracy_matrix(self, name: str | None = None) -> np.ndarray:
        """As ``Run.accuracy_matrix``."""
        ...


def axes(
    ax: Axes | None,
    size: tuple[float, float],
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Axes:
    """The given axes, or those of a new figure of ``size`` (width, height) in inches.

    ``compressed`` makes room for the labels of axes that keep their aspect.
    """
    if ax is not None:
        return ax
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN, without a warning, where nothing is left."""
    count = np.isfinite(values).sum(axis=0)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def matrix_of(what: Measured | ArrayLike) -> ArrayLike:
    """A run's accuracy matrix, or the array that is one."""
    own: Any = getattr(what, "accuracy_matrix", None)
    return as_numbers("an accuracy matrix", what) if own is None else own()


def score_of(*shown: Any, score: str | None = None) -> str:
    """What numbers are of: as it is said, else as the first run says, else accuracies."""
    if score is not None:
        return score
    for what in shown:
        if hasattr(what, "accuracy_matrix"):
            return str(what.results.get("score", measures.ACCURACY))
    return measures.ACCURACY


def titled(score: str) -> str:
    """The name of an axis of a score."""
    return f"Test {score} (%)" if measures.in_percent(score) else f"Test {score}"


def curve_of(what: Measured | ArrayLike, metric: str) -> np.ndarray:
    """A run's curve [S, T] of a metric, or the array that is one."""
    if not hasattr(what, "accuracy_matrix"):
        return as_numbers("a curve", what)
    if metric == "average_accuracy":
        return seen_accuracy(matrix_of(what), np.ones(np.shape(matrix_of(what))[-1]))
    end = "_by_session"
    metrics = what.results["metrics"]  # type: ignore[union-attr]
    known = [name.removesuffix(end) for name in metrics if name.endswith(end)]
    check_known("metric over time", metric, ["average_accuracy", *known])
    return np.array(metrics[metric + end]["values"], np.float64)


def lines(
    ax: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Each curve as the mean over seeds, its 95 % interval as a band, and a legend beside them.

    Of 2 to 4 seeds, too few for an interval that says something, each is a thin line with points.
    Up to eight curves differ in colour and line style; more are taken as ordered, coloured from
    dark to light, and only their means are drawn.

    Args:
      curves: name -> positions [P] and heights [S, P] of S seeds, NaN = no value.
      bounds: the least and the largest height that is possible, where bands are cut.
    """
    ordered = len(curves) > len(PALETTE)
    marker = "o" if all(len(x) <= 25 for x, _ in curves.values()) else None
    for i, (name, (x, heights)) in enumerate(curves.items()):
        middle, low, high = band(heights, bounds)
        style: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "linestyle": _STYLES[i % 8]}
        if ordered:
            style = {"color": _shade(i / (len(curves) - 1)), "linestyle": "-"}
        ax.plot(
            x, middle, label=name, linewidth=1.1 if ordered else 1.8,
            marker=marker, markersize=2.5 if ordered else 3.5, **style,
        )  # fmt: skip
        if ordered:
            continue
        for single in singles(heights):
            ax.plot(
                x, single, color=style["color"], linewidth=0.6, alpha=0.6, marker="o", markersize=2
            )
        if np.isfinite(low).any():
            ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    step = -(-len(labels) // _LISTED)
    keep = [i for i in range(len(labels)) if i % step == 0 or i == len(labels) - 1]
    legend(ax, [handles[i] for i in keep], [labels[i] for i in keep], small=ordered)


def legend(
    ax: Axes, handles: list[Any], labels: list[str], *, small: bool = False, length: float = 3.2
) -> None:
    """Names beside the axes; ``length`` of what stands before each, in letters."""
    ax.legend(
        handles, labels, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5),
        fontsize=7 if small else 9, handlelength=length, labelspacing=0.25 if small else 0.6,
    )  # fmt: skip


def tidy(ax: Axes, title: str | None) -> None:
    """Light horizontal grid, no frame above and to the right, small ticks, a title if any."""
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    if title:
        ax.set_title(title, fontsize=10)


def labels_of(
    kind: str, labels: ArrayLike, num: int, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [num] and which are valid [num], or a sentence about their shapes."""
    owner = np.asarray(labels)
    valid = np.ones(owner.shape, bool) if mask is None else np.asarray(mask, bool)
    if owner.shape != (num,) or valid.shape != (num,):
        raise UserError(
            f"{kind} labels have shape {list(owner.shape)} and their mask {list(valid.shape)}, "
            f"but there are {num} rows; both must be [{num}]."
        )
    return owner, valid


def class_name(names: Names, label: int | np.integer) -> str:
    """The name of a class, or a sentence if some are named but not this one."""
    if names is None:
        return f"class {label}"
    known = names if isinstance(names, Mapping) else dict(enumerate(names))
    if int(label) not in known:
        raise UserError(f"names has no entry for class {label}; it must name every label drawn.")
    return known[int(label)]


def singles(array: np.ndarray) -> np.ndarray:
    """The rows of [S, P] that have a value, where they are 2 to 4; else none, [0, P]."""
    rows = array[np.isfinite(array).any(axis=1)]
    return rows if 1 < len(rows) < MIN_SEEDS else rows[:0]


def band(
    array: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and the ends of the 95 % t-interval at each point, cut at ``bounds``.

    The ends are NaN with fewer than five seeds.
    """
    middle = mean(array)
    count = np.isfinite(array).sum(axis=0)
    if not (count >= MIN_SEEDS).any():
        none = np.full_like(middle, np.nan)
        return middle, none, none
    squares = np.where(np.isfinite(array), (array - middle) ** 2, 0.0).sum(axis=0)
    df = np.maximum(count - 1, 1)
    factor = np.array([t_quantile(int(each)) for each in df.flat]).reshape(df.shape)
    half = factor * np.sqrt(squares / df / np.maximum(count, 1))
    half = np.where(count >= MIN_SEEDS, half, np.nan)
    return middle, np.clip(middle - half, *bounds), np.clip(middle + half, *bounds)


def _shade(position: float) -> Any:
    """A colour of ``viridis`` that still shows on white, and reversed on black."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.8 * position)
