"""Figures of accuracies, rates, exemplars and features; matplotlib comes in with the first.

Every function draws on the ``Axes`` it is given, or on a new figure of its own that knows nothing
of pyplot, and returns the ``Axes``. Colours are safe for colour-blind readers and keep their order
in greyscale: ``viridis`` for quantities, Okabe & Ito's palette with line styles for methods.
Accuracies come in as fractions and are shown in percent.
"""

from cljax.plot.accuracy import (
    Ticks,
    accuracy_matrix,
    heat_map,
    mean_curve,
    over_time,
    save,
    task_curves,
)
from cljax.plot.classes import class_accuracy, confusion_matrix
from cljax.plot.exemplars import exemplar_grid, outer_loss
from cljax.plot.features import tsne
from cljax.plot.report import forgetting_bars, rate_histograms

__all__ = [
    "Ticks", "accuracy_matrix", "class_accuracy", "confusion_matrix", "exemplar_grid",
    "forgetting_bars",
    "heat_map", "mean_curve", "outer_loss", "over_time", "rate_histograms", "save", "task_curves",
    "tsne",
]  # fmt: skip
