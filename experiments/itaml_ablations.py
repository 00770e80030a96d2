"""Ablations of iTAML on split-mnist (section 10 of its paper, and ours), with plots.

    python experiments/itaml_ablations.py --data-dir DIR
    python experiments/itaml_ablations.py --smoke

One choice is changed at a time, from two starting points: `script`, the released script, whose loss
sees its task's own outputs, and `tuned`, the setting that a run without a recipe has; both with 10
epochs a task, half of theirs. The size of the continuum (p) and the epochs of adaptation (b) change
the tests alone, and are measured on one training. Beside the curve of task
accuracy against p stands the bound of Algorithm 4 with the measured P0, the accuracy of the worst
class. Every run is a folder, so the script goes on where it stopped. The tables and the plots go
to experiments/results/itaml_ablations.md and .png, the section `Reading` is kept.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import cljax
from cljax import resolve
from cljax.evaluation.accuracy import Evaluation
from cljax.methods.adapted import adapted_predictor
from cljax.types import Variables

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


def percent(cell) -> str:
    if cell is None or cell["mean"] is None:
        return "diverged"
    spread = "" if cell["std"] is None else f" ± {100 * cell['std']:.2f}"
    lost = sum(value is None for value in cell["values"])
    return f"{100 * cell['mean']:.2f}{spread}" + (f" ({lost} diverged)" if lost else "")


def continua(sizes) -> list[Evaluation]:
    """Task and class accuracy at every size."""
    found = []
    for p in sizes:
        for hit, metric in (("class", f"accuracy_p{p}"), ("task", f"task_p{p}")):
            predictor = "adapted" if hit == "class" else "logits"
            found.append(Evaluation(metric, predictor, "class", p, hit=hit, metric=metric))
    return found


def with_adaptations(method: cljax.Method) -> cljax.Method:
    """The method with a predictor for each number of epochs of adaptation."""

    def bind(model, spec):
        learner = method.bind(model, spec)
        more = {
            f"adapted-{b}": adapted_predictor(model, spec, epochs=b, lr=0.001, batch_size=64)
            for b in ADAPTATIONS
        }
        return learner._replace(predictors={**learner.predictors, **more})

    return method._replace(bind=bind)


def adaptations() -> list[Evaluation]:
    return [
        Evaluation(f"b{b}", f"adapted-{b}", "class", 20, metric=f"accuracy_b{b}")
        for b in ADAPTATIONS
    ]


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
        bound = cljax.continuum_lower_bound(p0, 2, 5)
    except cljax.errors.UserError:
        return "none"
    return f"{bound.n} (stable from {bound.n_stable})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--runs", type=Path, default=Path("runs/itaml_ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", nargs="*", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--smoke", action="store_true", help="the sample, 1 epoch, a few runs")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/itaml_ablations.md"),
        help="and .png beside it; not written by --smoke",
    )  # fmt: skip
    args = parser.parse_args()

    starts, chosen = (["tuned"], ["beta"]) if args.smoke else (args.starts, args.ablations)
    sizes = (1, 20) if args.smoke else SIZES
    seeds = 2 if args.smoke else args.seeds
    folder = args.runs / ("smoke" if args.smoke else "full")
    lines, curves, found = [], {}, {}
    for start in starts:
        recipe = cljax.recipe("itaml", "split-mnist", "itaml", STARTS[start])
        recipe = recipe.replace(data_dir=args.data_dir, sample=args.smoke)
        if args.smoke:
            recipe = recipe.replace(batch_size=64, first_epochs=1)
        stream = cljax.streams.SplitMNIST(**recipe.stream_options).build()
        method = cljax.ITAML(**recipe.method_options)
        epochs = 1 if args.smoke else EPOCHS
        shared = {"net": recipe.net, "batch_size": recipe.batch_size, "epochs": epochs}
        judged = [*continua(sizes), *adaptations()]
        run = cljax.run(
            with_adaptations(method), stream, seeds=seeds, evaluations=judged,
            entries="diagonal-last", **shared,
        )  # fmt: skip
        p0 = worst_class(run, stream, recipe.net)
        bounds = [bound_of(p) for p in p0]
        cells = run.results["metrics"]
        curves[start] = (
            [cells[f"task_p{p}"]["values"] for p in sizes],
            [cells[f"accuracy_p{p}"]["values"] for p in sizes],
            p0,
        )
        lines += [
            f"## {start}: the continuum", "",
            "| p | task accuracy | class accuracy |", "| --- | --- | --- |",
            *(f"| {p} | {percent(cells[f'task_p{p}'])} | {percent(cells[f'accuracy_p{p}'])} |"
              for p in sizes), "",
            f"## {start}: epochs of adaptation", "",
            "| b | continuum 20, task inferred |", "| --- | --- |",
            *(f"| {b} | {percent(cells[f'accuracy_b{b}'])} |" for b in ADAPTATIONS), "",
            "P0 of the seeds: " + ", ".join(f"{p:.3f}" for p in p0) + "; bound n at 95 %: "
            + ", ".join(bounds) + ".", "",
        ]  # fmt: skip
        print("\n".join(lines[-len(sizes) - 16 :]), flush=True)
        for name in chosen:
            lines += [
                f"## {start}: {name}", "",
                f"| {name} | per sample | continuum 20, task inferred | task accuracy | "
                "task given |", "| --- | --- | --- | --- | --- |",
            ]  # fmt: skip
            for label, options in list(ABLATIONS[name].items())[: 2 if args.smoke else None]:
                changed = cljax.ITAML(**{**recipe.method_options, **options})
                kept = folder / start / f"{name}-{label}".replace(" ", "-").replace(",", "")
                run = cljax.run(changed, stream, seeds=seeds, out=kept, **shared)
                cells = run.results["metrics"]
                found[start, name, label] = cells
                row = [label, *(percent(cells.get(column)) for column in COLUMNS)]
                lines.append("| " + " | ".join(row) + " |")
                print(start, name, lines[-1], flush=True)
            lines.append("")
            if not args.smoke:
                write(args.out, lines, seeds)
    if not args.smoke:
        draw(curves, found, args.out.with_suffix(".png"))


def write(out: Path, lines: list[str], seeds: int) -> None:
    """What there is so far, and the section Reading, which is kept."""
    kept = ""
    if out.exists() and "## Reading" in out.read_text():
        kept = "## Reading" + out.read_text().partition("## Reading")[2]
    head = [
        "# Ablations of iTAML on split-mnist", "",
        f"Made by `python experiments/itaml_ablations.py --data-dir DIR --seeds {seeds}`: {EPOCHS} "
        f"epochs a task, {seeds} seeds, percent, mean ± standard deviation over all test images "
        "after the last task. `script` is the released script, `tuned` the default of `cljax run "
        "itaml split-mnist`; one choice is changed at a time.", "", "![](itaml_ablations.png)", "",
    ]  # fmt: skip
    out.write_text("\n".join([*head, *lines, kept]).rstrip() + "\n")


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
