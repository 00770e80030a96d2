"""Ablations of iTAML on split-mnist (section 10 of its paper, and ours), with plots.

    python experiments/itaml_ablations.py --data-dir DIR
    python experiments/itaml_ablations.py --smoke

One choice is changed at a time, from two starting points: `script`, the released script, whose loss
sees its task's own outputs, and `tuned`, the setting that a run without a recipe has; both with 10
epochs a task, half of theirs. The size of the continuum (p) and the epochs of adaptation (b) change
the tests alone, and are measured on one training. Beside the curve of task
accuracy against p stands the bound of Algorithm 4 with the measured P0, the accuracy of the worst
class. Every run is a folder, so the script goes on where it stopped. The tables and the plots go
to experiments/results/itaml_ablations.md, .json and .png, the section `Reading` is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from common import Report, Table, arguments, metric, printed, write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import cljax
from cljax import resolve
from cljax.evaluation.accuracy import Evaluation
from cljax.method import Problem
from cljax.methods.adapted import adapted_predictor
from cljax.types import Predictor, Variables

EPOCHS = 10
SIZES = (1, 2, 3, 5, 10, 17, 20, 30, 50, 100)
ADAPTATIONS = range(6)
STARTS = {"script": "released", "tuned": "tuned"}
GENERAL = {"algebra": "general"}
# name -> label -> options
SGD, MOMENTUM = {"optimizer": "sgd", "lr": 0.5}, {"optimizer": "momentum", "lr": 0.1}
ABLATIONS = {
    "r": {str(r): {"inner_steps": r, **GENERAL} for r in range(1, 6)},
    "beta": {f"{beta:g}": {"beta": beta} for beta in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)},
    "optimizer": {
        "SGD": {**SGD, **GENERAL},
        "SGD, momentum 0.9, decay 1e-3": {**MOMENTUM, "weight_decay": 1e-3, **GENERAL},
        "Adam 0.001": {"optimizer": "adam", "lr": 0.001, "weight_decay": 0.0, **GENERAL},
        "RAdam 0.001": {"optimizer": "radam", "lr": 0.001, "weight_decay": 0.0, **GENERAL},
    },
    "mode": {mode: {"mode": mode, **GENERAL} for mode in ("paper", "released", "sequential-mean")},
    "weight decay": {f"{w:g}": {"weight_decay": w, **GENERAL} for w in (0.0, 1e-4, 1e-3, 1e-2)},
    "eta index": {index: {"eta_index": index} for index in ("code", "paper", "printed")},
    "exemplars": {kind: {"exemplars": kind} for kind in ("random", "first", "herding")},
}
COLUMNS = ("accuracy_no_update", "accuracy_task_agnostic", "task_accuracy", "accuracy_task_aware")


def evaluations(sizes: Sequence[int]) -> list[Evaluation]:
    """Task and class accuracy at every size, and accuracy after each number of epochs."""
    by_size = [
        Evaluation(name, predictor, "class", p, hit=hit, metric=name)
        for p in sizes
        for name, predictor, hit in (
            (f"accuracy_p{p}", "adapted", "class"), (f"task_p{p}", "logits", "task"),
        )
    ]  # fmt: skip
    return by_size + [
        Evaluation(f"b{b}", f"adapted-{b}", "class", 20, metric=f"accuracy_b{b}")
        for b in ADAPTATIONS
    ]


class Adapting(cljax.ITAML, name="itaml"):
    """iTAML with a predictor for each number of epochs of adaptation."""

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        adapted = {
            f"adapted-{b}": adapted_predictor(*problem, epochs=b, lr=0.001, batch_size=64)
            for b in ADAPTATIONS
        }
        return {**super().predictors(problem), **adapted}


def worst_class(run: cljax.Run, stream, net: str) -> list[float]:
    """P0 of each seed: accuracy per sample of the class that comes out worst."""
    model, found = resolve.net(net)(stream.num_classes), []
    for state in run.states:
        variables = Variables(jnp.asarray(0), state.model_state)._replace(params=state.params)
        right = np.zeros(stream.num_classes)
        for rows in np.array_split(np.arange(len(stream.test_y)), 10):
            x = stream.spec(1).show(jnp.asarray(stream.test_x[rows]), jnp.zeros(len(rows), int))
            guess = np.asarray(model.apply(variables, x, False)[0].logits).argmax(axis=1)
            hits = stream.test_y[rows][guess == stream.test_y[rows]]
            right += np.bincount(hits, minlength=stream.num_classes)
        found.append(float((right / np.bincount(stream.test_y)).min()))
    return found


def bound_of(p0: float) -> str:
    """Algorithm 4's size of a continuum for five tasks of two classes, if there is one."""
    try:
        bound = cljax.evaluation.continuum_lower_bound(p0, 2, 5)
    except cljax.errors.UserError:
        return "none"
    return f"{bound.n} (stable from {bound.n_stable})"


def parsed() -> argparse.Namespace:
    parser = arguments(
        __doc__, smoke="the sample, 1 epoch, a few runs", seeds=3, runs="itaml_ablations",
        out="itaml_ablations.md",
    )  # fmt: skip
    parser.add_argument("--starts", nargs="*", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), default=list(ABLATIONS))
    args = parser.parse_args()
    args.sizes = SIZES
    if args.smoke:
        args.starts, args.ablations, args.sizes, args.seeds = ["tuned"], ["beta"], (1, 20), 2
        args.data_dir = None  # the sample
    return args


def main() -> None:
    args = parsed()
    parts, curves, found = [], {}, {}
    for start in args.starts:
        recipe = cljax.recipe("itaml", "split-mnist", "itaml", STARTS[start])
        recipe = recipe.replace(data_dir=args.data_dir, sample=args.smoke)
        if args.smoke:
            recipe = recipe.replace(batch_size=64, first_epochs=1)
        stream = cljax.streams.SplitMNIST(**recipe.stream_options).build()
        epochs = 1 if args.smoke else EPOCHS
        shared = {"net": recipe.net, "batch_size": recipe.batch_size, "epochs": epochs}
        run = cljax.run(
            Adapting(**recipe.method_options), stream, seeds=args.seeds,
            evaluations=evaluations(args.sizes), entries="diagonal-last", **shared,
        )  # fmt: skip
        p0 = worst_class(run, stream, recipe.net)
        cells = run.results["metrics"]
        curves[start] = (
            [cells[f"task_p{p}"]["values"] for p in args.sizes],
            [cells[f"accuracy_p{p}"]["values"] for p in args.sizes],
            p0,
        )
        parts += continuum_tables(start, args.sizes, cells, p0)
        for name in args.ablations:
            rows = []
            for label, options in list(ABLATIONS[name].items())[: 2 if args.smoke else None]:
                changed = cljax.ITAML(**{**recipe.method_options, **options})
                folder = args.runs / ("smoke" if args.smoke else "full") / start
                out = folder / f"{name}-{label}".replace(" ", "-").replace(",", "")
                run = cljax.run(changed, stream, seeds=args.seeds, out=out, **shared)
                cells = found[start, name, label] = run.results["metrics"]
                row = [label, *(metric(cells.get(column), "std") for column in COLUMNS)]
                rows.append(printed(row))
            columns = [name, "per sample", "continuum 20, task inferred", "task accuracy",
                       "task given"]  # fmt: skip
            parts += [f"## {start}: {name}", "", Table(columns, rows), ""]
            if not args.smoke:
                write(args.out, report(parts, args.seeds))
    if not args.smoke:
        draw(curves, found, args.out.with_suffix(".png"))


def continuum_tables(
    start: str, sizes: Sequence[int], cells: Mapping[str, Any], p0: Sequence[float]
) -> list[Table | str]:
    """Accuracy by the size of the continuum and by the epochs of adaptation, of one training."""
    by_size = [
        printed([p, metric(cells[f"task_p{p}"], "std"), metric(cells[f"accuracy_p{p}"], "std")])
        for p in sizes
    ]
    by_epochs = [printed([b, metric(cells[f"accuracy_b{b}"], "std")]) for b in ADAPTATIONS]
    bounds = ", ".join(bound_of(p) for p in p0)
    worst = f"P0 of the seeds: {', '.join(f'{p:.3f}' for p in p0)}; bound n at 95 %: {bounds}."
    print(worst, flush=True)
    return [
        f"## {start}: the continuum", "",
        Table(["p", "task accuracy", "class accuracy"], by_size), "",
        f"## {start}: epochs of adaptation", "",
        Table(["b", "continuum 20, task inferred"], by_epochs), "", worst, "",
    ]  # fmt: skip


def report(parts: Sequence[Table | str], seeds: int) -> Report:
    about = (
        f": {EPOCHS} epochs a task, {seeds} seeds, percent, mean ± standard deviation over all "
        "test images after the last task. `script` is the released script, `tuned` the default of "
        "`cljax run itaml split-mnist`; one choice is changed at a time."
    )
    return Report(
        "Ablations of iTAML on split-mnist",
        f"python experiments/itaml_ablations.py --data-dir DIR --seeds {seeds}",
        about, ["![](itaml_ablations.png)", "", *parts],
    )  # fmt: skip


def draw(curves, found, path: Path) -> None:
    """Task accuracy against p beside the bound, and every ablation's task and class accuracy."""
    figure, axes = plt.subplots(2, 5, figsize=(17, 7), constrained_layout=True)
    style = {"script": ("C0", "o"), "tuned": ("C1", "s")}
    for start, (task, accuracy, p0) in curves.items():
        colour, marker = style[start]
        task, accuracy = np.array(task, float), np.array(accuracy, float)
        axes[0, 0].plot(
            SIZES, 100 * np.nanmean(task, axis=1), colour, marker=marker, label=f"{start}"
        )
        sound = [p for p, row in zip(p0, task.T, strict=True) if np.isfinite(row).all()]
        bound = [_votes(float(np.mean(sound)), n) for n in SIZES]
        axes[0, 0].plot(SIZES, 100 * np.array(bound), colour, ls=":", label=f"{start}, bound")
        axes[0, 1].plot(
            SIZES, 100 * np.nanmean(accuracy, axis=1), colour, marker=marker, label=start
        )
    for axis, title in zip(axes[0, :2], ("task accuracy", "class accuracy"), strict=True):
        axis.set(xscale="log", xlabel="continuum p", ylabel=f"{title}, %")
        axis.legend(fontsize=8)
    for axis, name in zip(axes.flat[2:], ABLATIONS, strict=False):
        labels = list(ABLATIONS[name])
        for start, (colour, marker) in style.items():
            if (start, name, labels[-1]) not in found:
                continue
            for column, line in (("accuracy_task_agnostic", "-"), ("accuracy_no_update", ":")):
                values = []
                for label in labels:
                    mean = found[start, name, label].get(column, {"mean": None})["mean"]
                    values.append(np.nan if mean is None else 100 * mean)
                axis.plot(range(len(labels)), values, colour, ls=line, marker=marker, ms=4)
        shown = [label.split(" 0.")[0].split(" decay")[0].replace(", ", ",\n") for label in labels]
        axis.set_xticks(range(len(labels)), shown, fontsize=8)
        axis.set(xlabel=name, ylabel="%")
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    figure.suptitle("iTAML on split-mnist; below: continuum of 20 (solid), per sample (dotted)")
    figure.savefig(path, dpi=130)


def _votes(p0: float, n: int) -> float:
    """P(n) of Algorithm 4: more than their share of n votes are right."""
    p = p0 + (1 - p0) * (2 - 1) / (2 * 5 - 1)
    k = int(np.floor(n / 5 + 0.5)) + 1
    from scipy.stats import binom

    return float(binom.sf(k - 1, n, p))


if __name__ == "__main__":
    main()
