"""The multi-task teacher's experiments at a size for CPUs: who forgets how much of the old task?

    python experiments/teacher_mini.py --data-dir DIR --experiment 1
    python experiments/teacher_mini.py --data-dir DIR --smoke

Experiments: 1 the new task's classes are known, its images are new; 2 new classes; 4 a new data
set; 5 two new tasks in a row. For each method and seed: a linear readout of the old and of the new
task, fitted anew on frozen features, every 50 updates of the new task (the paper's Figures 3 to
5), and at the end with 95 % intervals; differences to the learned rule are paired over seeds and
Holm-corrected. With them the lengths of episodes in meta-training (Figure 6) and the multipliers of
a test (Figure 7). Every row is a folder of its own, so the script goes on where it stopped. Tables
and pictures go to experiments/results/teacher_mini_N.*.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import matplotlib
import numpy as np

import cljax
from cljax import stats
from cljax.methods import METHODS
from cljax.recipes.teacher import BASELINES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STREAMS = {1: "fashion-5-5", 2: "cifar100-10-5", 4: "fashion-5-mnist-5", 5: "fashion-4-3-3"}
TITLES = {
    1: "known classes, new images", 2: "new classes", 4: "a new data set", 5: "two new tasks",
}  # fmt: skip
TINY = {
    "episodes": 4,
    "windows": 6,
    "longest": 20,
    "truncation_cap": 5,
    "target": 5,
    "episodes_at_once": 2,
}


def rows(stream: str) -> dict[str, tuple[str, dict]]:
    """label -> (method, options beside its recipe's)."""
    lr = cljax.recipe("sgd", stream).method_options["lr"]
    found: dict[str, tuple[str, dict]] = {"learned rule": ("teacher", {})}
    for name in BASELINES:
        if name in METHODS:
            found[name] = (name, {})
    found["sgd x 0.1"] = ("sgd", {"lr": lr / 10})
    return found


def readouts(run: cljax.Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps [K] from the first new task's beginning, and readout accuracies [S, K, T]."""
    entry = run.results["evaluations"]["readout"]
    matrix = np.array(entry["accuracy_matrix"], float)  # [S, T + 1, T]
    curves = entry["anytime"]
    steps = [point["step"] for point in curves[0]]
    values = np.array([[point["accuracy"] for point in curve] for curve in curves], float)
    new = [i for i, step in enumerate(steps) if not np.isnan(values[0, i, 1:]).all()]
    start = np.full((len(matrix), 1, matrix.shape[2]), np.nan)
    start[:, 0] = matrix[:, 1]  # after the source task, before any new one
    first = steps[new[0]] - (steps[new[1]] - steps[new[0]])
    return (
        np.array([0, *(steps[i] - first for i in new)]),
        np.concatenate([start, values[:, new]], axis=1),
    )


def interval(values: np.ndarray) -> str:
    found = stats.summary(values)
    text = f"{100 * found.mean:.2f}"
    if found.ci95 is not None:
        text += f" [{100 * found.ci95[0]:.2f}, {100 * found.ci95[1]:.2f}]"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--experiment", type=int, choices=STREAMS, default=1)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", nargs="*", help="rows of these labels alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/teacher_mini"))
    parser.add_argument("--smoke", action="store_true", help="three rows, a few updates, one seed")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    args = parser.parse_args()
    cljax.keep_freed_memory()

    stream = STREAMS[args.experiment]
    seeds = args.seeds or (5 if args.experiment < 3 else 3)
    runs: dict[str, cljax.Run] = {}
    for label, (method, options) in rows(stream).items():
        if args.only and label not in args.only:
            continue
        if args.smoke and label not in ("learned rule", "multitask", "sgd"):
            continue
        recipe = cljax.recipe(method, stream, source="teacher", variant="mini")
        recipe = recipe.replace(data_dir=args.data_dir, **options)
        if args.smoke:
            recipe = recipe.replace(steps=20, pretrain_steps=50)
            recipe = recipe.replace(**(TINY if method == "teacher" else {}))
        kept = f"{args.experiment}-{label.replace(' ', '-')}" + "-smoke" * args.smoke
        runs[label] = cljax.run(
            recipe, seeds=1 if args.smoke else seeds, readout=True,
            eval_every=5 if args.smoke else 50, out=args.runs / kept,
        )  # fmt: skip
        print(label, *line(runs[label]), sep=" | ", flush=True)
        if not args.smoke:
            write(args, runs)


def line(run: cljax.Run) -> list[str]:
    """Readout of each task before the first new one and at the end, and seconds a seed."""
    _, values = readouts(run)
    spent = run.results["time"]
    cells = []
    for task in range(values.shape[2]):
        cells += [interval(values[:, 0, task]), interval(values[:, -1, task])]
    return [*cells, f"{(spent['train_s'] + spent['eval_s']) / len(values):.0f}"]


def write(args: argparse.Namespace, runs: dict[str, cljax.Run]) -> None:
    some = next(iter(runs.values()))
    tasks = readouts(some)[1].shape[2]
    heads = ["old", "new"] if tasks == 2 else ["first", "second", "third"]
    columns = [f"{head}, {when}" for head in heads for when in ("before", "after")]
    named = f"experiments/results/teacher_mini_{args.experiment}"
    text = [
        f"# The multi-task teacher, experiment {args.experiment}: {TITLES[args.experiment]}", "",
        f"Made by `python experiments/teacher_mini.py --data-dir DIR --experiment "
        f"{args.experiment}`: {some.config['stream']['name']}, {some.config['net']}, "
        f"{len(some.results['seeds'])} seeds. Accuracy of linear readouts in percent, before the "
        "first new task and after the last, with 95 % t-intervals.", "",
        "| method | " + " | ".join(columns) + " | seconds a seed |",
        "| --- |" + " --- |" * (len(columns) + 1),
        *(f"| {label} | " + " | ".join(line(run)) + " |" for label, run in runs.items()), "",
        *differences(runs), "",
        f"![readouts while the new task is learned]({Path(named).name}.png)", "",
    ]  # fmt: skip
    out = args.out / f"teacher_mini_{args.experiment}.md"
    old = out.read_text() if out.exists() else ""
    reading = old[old.index("## Reading") :] if "## Reading" in old else ""
    out.write_text("\n".join(text) + ("\n" + reading if reading else ""))
    draw(runs, out.with_suffix(".png"))


def differences(runs: dict[str, cljax.Run]) -> list[str]:
    """The learned rule less each other method, at the end, paired over seeds."""
    if "learned rule" not in runs or len(runs) < 2:
        return []
    last = {label: readouts(run)[1][:, -1] for label, run in runs.items()}
    ours = last.pop("learned rule")
    tasks = (0, ours.shape[1] - 1)
    pairs = {label: [stats.paired(ours[:, t], v[:, t]) for t in tasks] for label, v in last.items()}
    if any(pair.ci95 is None for both in pairs.values() for pair in both):
        return []
    adjusted = iter(stats.holm([p.p_value for both in pairs.values() for p in both]))
    lines = [
        "The learned rule less the others, points, paired over seeds, p Holm-corrected:", "",
        "| method | old task | p | new task | p |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for label, both in pairs.items():
        cells = []
        for pair in both:
            low, high = pair.ci95
            cells += [
                f"{100 * pair.diff:+.2f} [{100 * low:.2f}, {100 * high:.2f}]",
                f"{next(adjusted):.3f}",
            ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def draw(runs: dict[str, cljax.Run], path: Path) -> None:
    """A panel a task: mean readout over seeds while new tasks are learned, with 95 % bands."""
    tasks = readouts(next(iter(runs.values())))[1].shape[2]
    figure, panels = plt.subplots(1, tasks, figsize=(4.6 * tasks, 3.6), layout="constrained")
    marks = "osv^D<>pX*"
    for number, (label, run) in enumerate(runs.items()):
        steps, values = readouts(run)
        for task, panel in enumerate(panels):
            mean = 100 * values[..., task].mean(axis=0)
            band = [stats.summary(column).ci95 for column in values[..., task].T]
            style = {"color": f"C{number}", "marker": marks[number % len(marks)], "markersize": 4}
            panel.plot(steps, mean, label=label, linewidth=2 if number == 0 else 1, **style)
            if all(limits is not None for limits in band):
                low, high = (100 * np.array(ends) for ends in zip(*band, strict=True))
                panel.fill_between(steps, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    names = ["old task"] + ["new task"] * (tasks == 2) + ["second", "third"] * (tasks == 3)
    for panel, name in zip(panels, names, strict=True):
        panel.set(title=name, xlabel="updates of new tasks", ylabel="readout accuracy (%)")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
