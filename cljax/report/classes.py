"""The part of a report about single classes: their accuracy over time, and what they are taken for.

Of at most ten classes both figures are open; of more they are folded, as are the confusions after
the earlier tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from cljax import plot
from cljax.plot.classes import image, shares
from cljax.report.figures import Picture, picture
from cljax.report.parts import Part
from cljax.runner import snapshots

__all__ = ["of_classes"]

_OPEN = 10  # classes
_PANELS = 4  # earlier moments that are drawn
_NOTE = "in percent of its tests, all seeds together"


def of_classes(name: str, arrays: Mapping[str, np.ndarray]) -> Iterator[Part]:
    """The figures of a run's ``kept.npz``; none where classes were not counted."""
    moments = snapshots.confusion_rows(arrays)
    moments = {row: counts for row, counts in moments.items() if counts.any()}
    if not moments:
        return
    last = max(moments)
    num = moments[last].shape[-1]
    after = f"After {last} task{'s'[: last != 1]}"
    shown = (
        picture(
            f"{name}-class_accuracy", plot.class_accuracy(moments),
            f"Test accuracy on each class after each task, {_NOTE}; grey: not tested then.",
            f"Heat map of {num} classes at {len(moments)} moments.",
        ),
        picture(
            f"{name}-confusion", plot.confusion_matrix(moments[last]),
            f"{after}: what each class (rows) is taken for (columns), {_NOTE}.",
            f"Confusion matrix of {num} classes.",
        ),
    )  # fmt: skip
    html = "".join(one.html() for one in shown)
    yield Part(html if num <= _OPEN else _folded(f"All {num} classes", html), shown)
    earlier = {row: counts for row, counts in moments.items() if 0 < row < last}
    if earlier:
        panels = _panels(f"{name}-confusions", earlier)
        yield Part(_folded("Confusion after the earlier tasks", panels.html()), (panels,))


def _folded(title: str, html: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def _panels(name: str, moments: Mapping[int, np.ndarray]) -> Picture:
    """The confusion after some tasks, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(moments)
    places = np.unique(np.linspace(0, len(rows) - 1, min(_PANELS, len(rows))).round().astype(int))
    chosen = [rows[i] for i in places]
    wide = min(4, len(chosen))
    tall = -(-len(chosen) // wide)
    figure = Figure(figsize=(1.9 * wide, 2.0 * tall), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(tall, wide, squeeze=False)
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    for ax, row in zip(axes.flat, chosen, strict=False):
        ax.set(xticks=[], yticks=[])  # at first: ticks that are removed take as long as others
        ax.spines[:].set_visible(False)
        ax.set_title(f"after task {row}", fontsize=9)
        image(ax, 100 * shares(moments[row]))
    left = f" {len(chosen)} of {len(rows)} are drawn." if len(chosen) < len(rows) else ""
    caption = f"As above, after earlier tasks: classes in rows, predictions in columns.{left}"
    return picture(name, axes.flat[0], caption, f"Confusion matrices at {len(chosen)} moments.")
