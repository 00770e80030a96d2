"""What the multi-task teacher's experiments share: readouts of runs, tables, and their curves.

Readouts are linear layers fitted anew on frozen features, every so many updates of the new tasks;
differences to the learned rule are paired over seeds and Holm-corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from common import Report, Table, difference, number, spread, write

import cljax
from cljax import stats
from cljax.plot.parts import PALETTE, tidy

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["GIVES_UP", "LEARNED", "Readouts", "cells", "readouts", "write_readouts"]

LEARNED = "learned rule"
CLAIMED = ("sgd", "lwf", "ewc")  # that the paper says it forgets less than
GIVES_UP = 0.03  # of the new task, the specification's reading of "nearly the same"
# Rows of one method share a colour and differ in line style.
_COLOURS = {
    LEARNED: "#000000", "multitask": "#8A8A8A",
    **dict(zip(("sgd", "lwf", "ewc", "hat", "oml", "rep"),
               (c for c in PALETTE if c != "#000000"), strict=False)),
}  # fmt: skip
_MARKS = dict(zip(_COLOURS, "oXs^Dv<>", strict=True))


class Readouts(NamedTuple):
    """Readouts of a row while new tasks are learned; S seeds, K points, T tasks."""

    seeds: tuple[int, ...]
    steps: np.ndarray  # [K] updates since the first new task began
    values: np.ndarray  # [S, K, T] fractions; NaN: the task is still to come
    seconds: float  # a seed


def readouts(runs: Sequence[cljax.Run], seeds: Sequence[int] | None = None) -> Readouts:
    """The readouts of runs that differ in their seeds alone; of some ``seeds``, if given."""
    parts = [_readouts(run) for run in runs]
    found = Readouts(
        sum((part.seeds for part in parts), ()), parts[0].steps,
        np.concatenate([part.values for part in parts]),
        float(np.average([part.seconds for part in parts], weights=[len(p.seeds) for p in parts])),
    )  # fmt: skip
    if seeds is None:
        return found
    rows = [found.seeds.index(seed) for seed in seeds]
    return found._replace(seeds=tuple(seeds), values=found.values[rows])


def _readouts(run: cljax.Run) -> Readouts:
    entry, spent = run.results["evaluations"]["readout"], run.results["time"]
    matrix = np.array(entry["accuracy_matrix"], float)  # [S, T + 1, T]
    curves = entry["anytime"]
    steps = [point["step"] for point in curves[0]]
    values = np.array([[point["accuracy"] for point in curve] for curve in curves], float)
    new = [i for i, step in enumerate(steps) if not np.isnan(values[0, i, 1:]).all()]
    start = matrix[:, 1][:, None]  # after the source task, before any new one
    first = steps[new[0]] - (steps[new[1]] - steps[new[0]])
    return Readouts(
        tuple(run.results["seeds"]),
        np.array([0, *(steps[i] - first for i in new)]),
        np.concatenate([start, values[:, new]], axis=1),
        (spent["train_s"] + spent["eval_s"]) / len(matrix),
    )


def cells(found: Readouts) -> list[Any]:
    """Readout of each task before the first new one and at the end, and seconds a seed."""
    ends = [
        spread(found.values[:, point, task], scale=100)
        for task in range(found.values.shape[2])
        for point in (0, -1)
    ]
    return [*ends, number(found.seconds, ".0f")]


def write_readouts(
    out: Path, head: Report, rows: Mapping[str, Readouts], more: Sequence[Table | str] = ()
) -> None:
    """Writes the report of an experiment to ``out``, with its curves beside it.

    Args:
      head: title, command and what was run; the tables are made here. more: parts after them.
    """
    tasks = next(iter(rows.values())).values.shape[2]
    names = ["old", "new"] if tasks == 2 else ["first", "second", "third"]
    columns = [f"{name}, {when}" for name in names for when in ("before", "after")]
    about = (
        f"{head.about} Accuracy of linear readouts in percent, before the first new task and after "
        "the last, with 95 % t-intervals; seconds are of training and tests, a seed."
    )
    found = [[label, *cells(found)] for label, found in rows.items()]
    parts = [
        Table(["method", *columns, "seconds"], found), "", *_differences(rows), *_claim(rows),
        f"![readouts while new tasks are learned]({out.stem}.png)", "", *more,
    ]  # fmt: skip
    write(out, head._replace(about=about, parts=parts))
    _draw(rows, out.with_suffix(".png"))


def _differences(rows: Mapping[str, Readouts]) -> list[Table | str]:
    """The learned rule less each other method, at the end, paired over seeds."""
    last = {label: found.values[:, -1] for label, found in rows.items()}
    ours = last.pop(LEARNED, None)
    if ours is None or not last:
        return []
    tasks = (0, ours.shape[1] - 1)
    pairs = {label: [stats.paired(ours[:, t], v[:, t]) for t in tasks] for label, v in last.items()}
    p_values = [pair.p_value for both in pairs.values() for pair in both]
    if any(pair.ci95 is None for both in pairs.values() for pair in both) or None in p_values:
        return []
    adjusted = iter(stats.holm(p_values))  # type: ignore[arg-type]
    first, second = ("old", "new") if tasks[1] == 1 else ("first", "last")
    body = [
        [label, *(cell for pair in both
                  for cell in (difference(pair), number(next(adjusted), ".3f")))]
        for label, both in pairs.items()
    ]  # fmt: skip
    columns = ["method", f"{first} task", f"p, {first}", f"{second} task", f"p, {second}"]
    said = "The learned rule less the others, points, paired over seeds, p Holm-corrected:"
    return [said, "", Table(columns, body), ""]


def _claim(rows: Mapping[str, Readouts]) -> list[Table | str]:
    """The paper's claim against each hand-made rule, decided by 95 % intervals of paired seeds."""
    last = {label: found.values[:, -1] for label, found in rows.items()}
    if LEARNED not in last or len(last[LEARNED]) < 2:
        return []
    ours = last[LEARNED]
    body = [
        [label, _decided(ours[:, 0] - last[label][:, 0], 0.0),
         _decided(ours[:, -1] - last[label][:, -1], -GIVES_UP)]
        for label in CLAIMED if label in last
    ]  # fmt: skip
    return [
        f"The claim: it forgets less of the old task, and gives up at most {100 * GIVES_UP:.0f} "
        "points of the new one.", "",
        Table(["method", "forgets less", "new task kept"], body), "",
    ]  # fmt: skip


def _decided(gains: np.ndarray, least: float) -> str:
    """Whether differences [S] lie above ``least``, by their 95 % interval."""
    limits = stats.summary(gains).ci95
    if limits is None:
        return "undecided"
    return "yes" if limits[0] > least else "no" if limits[1] < least else "undecided"


def _draw(rows: Mapping[str, Readouts], path: Path) -> None:
    """A panel a task: mean readout over seeds while new tasks are learned, with 95 % bands."""
    tasks = next(iter(rows.values())).values.shape[2]
    figure, panels = plt.subplots(1, tasks, figsize=(4.3 * tasks + 1.8, 3.9), layout="constrained")
    for label, found in rows.items():
        style = _style(label)
        for task, panel in enumerate(panels):
            here = np.isfinite(found.values[..., task]).all(axis=0)
            values, steps = 100 * found.values[:, here, task], found.steps[here]
            panel.plot(steps, values.mean(axis=0), label=label, **style)
            band = [stats.summary(column).ci95 for column in values.T]
            if len(values) > 1 and all(limits is not None for limits in band):
                low, high = (np.array(ends) for ends in zip(*band, strict=True))  # type: ignore[arg-type]
                panel.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    names = {2: ("old task", "new task"), 3: ("first task", "second task", "third task")}[tasks]
    for task, (panel, name) in enumerate(zip(panels, names, strict=True)):
        means = 100 * np.concatenate([f.values[..., task].mean(axis=0) for f in rows.values()])
        limits = np.nanmin(means) - 4, min(100, np.nanmax(means) + 4)  # wide bands are cut off
        panel.set(xlabel="updates of new tasks", ylim=limits)
        tidy(panel, name)
    panels[0].set_ylabel("readout accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8,
                  frameon=False, handlelength=3.4)  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _style(label: str) -> dict[str, Any]:
    base = next((name for name in _COLOURS if label == name), None)
    varied = base is None  # "sgd x 0.1", "learned rule, one start"
    base = base or next((name for name in _COLOURS if label.startswith(name)), "rep")
    return {
        "color": _COLOURS[base], "marker": _MARKS[base], "markersize": 3.5,
        "linestyle": "--" if varied else "-", "linewidth": 2.2 if base == LEARNED else 1.3,
        "markerfacecolor": "white" if varied else _COLOURS[base],
        "zorder": 3 if base == LEARNED else 2,
    }  # fmt: skip
