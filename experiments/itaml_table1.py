"""iTAML's Table 1 on MNIST: its modes and losses tuned and told apart, and every comparator.

    python experiments/itaml_table1.py --data-dir DIR
    python experiments/itaml_table1.py --smoke

Five tasks of two digits, one head of ten outputs, 784-400-400-10 without an output bias, batch 256,
20 epochs a task (5 of the first for iTAML, as in the released script), 2000 exemplars where a
method has any. Every method is tuned on validation images alone, with a seed that is not among the
reported ones; then 5 seeds are tested once. Every method is judged both per sample and with a
continuum of 20. Every run is a folder, so the script goes on where it stopped. The tables go to
experiments/results/itaml_table1.md, between the title and the section `Reading`, which is kept.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from pathlib import Path

import cljax
from cljax import sweep
from cljax.methods import CHECKED, make
from cljax.methods.adapted import protocols
from cljax.references.published import sources
from cljax.stats import equivalence

NET, BATCH, EPOCHS, CONTINUUM, MARGIN = "mlp:400,400:pytorch:no-head-bias", 256, 20, 20, 0.015
MODES, LOSSES = ("paper", "released", "sequential-mean"), ("own", "seen", "seen-frozen")
SCRIPT = {"first_epochs": 5, "beta": 0.5, "milestones": (5, 10, 15), "decay": 0.5}
# The same eight settings for every mode and loss.
OPTIMIZERS = {
    "sgd": ({"optimizer": "sgd"}, [0.5, 1.0, 2.0]),
    "momentum": (
        {"optimizer": "momentum", "weight_decay": 1e-3, "last_factor": 0.5},
        [0.03, 0.1, 0.2],
    ),
    "radam": ({"optimizer": "radam"}, [0.001, 0.003]),
}
# As released and as printed, before any tuning.
AS_THEY_ARE = {
    "released, script": {"mode": "released", "lr": 0.1, **OPTIMIZERS["momentum"][0], **SCRIPT},
    "released, a tenth of its rate": {
        "mode": "released", "lr": 0.01, **OPTIMIZERS["momentum"][0], **SCRIPT,
    },
    "paper, RAdam 0.01": {"mode": "paper", "lr": 0.01, "optimizer": "radam", "first_epochs": 5},
}  # fmt: skip
ADAM = {"lr": 1e-3, "optimizer": "adam"}
SGD = {"milestones": (5, 10, 15), "decay": 0.5, "first_epochs": 5}
STRENGTHS = {"strength": [0.1, 1.0, 10.0, 100.0]}
# name -> (fixed options, the tuned ones and their values: four settings each)
COMPARATORS = {
    "finetune": ({"optimizer": "adam"}, {"lr": [1e-4, 3e-4, 1e-3, 3e-3]}),
    "ewc": (ADAM, {"strength": [10.0, 100.0, 1000.0, 10000.0]}),
    "online-ewc": (ADAM, {"strength": [10.0, 100.0, 1000.0, 10000.0]}),
    "si": (ADAM, STRENGTHS),
    "mas": (ADAM, STRENGTHS),
    "rwalk": (ADAM, STRENGTHS),
    "lwf": (ADAM, {"strength": [0.3, 1.0, 3.0, 10.0]}),
    "gem": ({"per_task": 400}, {"lr": [0.003, 0.01, 0.03, 0.1]}),
    "fixed-rep": ({"loss": "sigmoid"}, {"lr": [0.1, 0.3, 1.0, 3.0]}),
    "icarl": ({"loss": "kl", **SGD}, {"lr": [0.01, 0.03, 0.1, 0.3]}),
    "bic": (SGD, {"lr": [0.01, 0.03, 0.1, 0.3]}),
    "reptile": (SGD, {"lr": [0.1, 0.3, 1.0, 3.0]}),
    "fomaml": (SGD, {"lr": [0.3, 1.0], "inner_lr": [0.1, 0.5]}),
    "replayed": ({"loss": "sigmoid", **SGD}, {"lr": [0.1, 0.3, 1.0, 3.0]}),
    "oracle": ({"loss": "sigmoid", **SGD}, {"lr": [0.1, 0.3, 1.0, 3.0]}),
}
MEMORY = {"gem", "icarl", "bic", "reptile", "fomaml", "replayed"}  # of 2000 examples
SHOWN = {"replayed": "replayed (Joint of Figure 5)"}
NOT_RUN = ("dgr", "rtf", "rps-net")
COLUMNS = ("accuracy_no_update", "accuracy_task_agnostic", "task_accuracy", "accuracy_task_aware")
GENERIC = {"icarl": "nearest-mean"}  # the predictor of methods whose headline is not "logits"


def percent(summary) -> str:
    if summary is None or summary["mean"] is None:
        return "diverged"
    text = f"{100 * summary['mean']:.2f}"
    if summary["ci95"] is not None:
        text += f" [{100 * summary['ci95'][0]:.2f}, {100 * summary['ci95'][1]:.2f}]"
    return text


def itaml_settings(mode: str, loss: str, optimizer: str) -> dict:
    fixed, _ = OPTIMIZERS[optimizer]
    made = {"mode": mode, "loss_outputs": loss, **SCRIPT, **fixed}
    if mode == "paper" and optimizer == "sgd" and loss != "seen-frozen":
        made["algebra"] = "one-gradient"
    return made


def named(text: str) -> str:
    return re.sub(r"\W+", "-", text)


def tuned(name: str, base: dict, grid: dict, stream, folder: Path, seed: int, shared: dict):
    """Settings of a method on validation images, best first, by the headline's RA."""
    recipe = cljax.Recipe(name, "split-mnist", method_options=base)
    plan = sweep.plan(recipe, stream, sweep.grid(**grid), seeds=[seed], **shared)
    done = sweep.run(plan, folder)
    if done.exit_code:
        raise SystemExit(done.exit_code)
    return done.settings


def row_of(name: str, label: str, run: cljax.Run) -> str:
    cells, seeds = run.results["metrics"], run.results["seeds"]
    row = [label, *(percent(cells.get(column)) for column in COLUMNS)]
    source = sources()["itaml-table1"].cells.get((name, "split-mnist"))
    found = "-" if source is None else f"{100 * source['accuracy'].mean:.2f}: "
    if source is not None:
        verdicts = []
        for column in COLUMNS:
            values = cells.get(column, {"values": [None]})["values"]
            if column != "task_accuracy" and None not in values and len(seeds) > 1:
                verdict = equivalence(run.metric(column), source["accuracy"], MARGIN)
                short = column.removeprefix("accuracy_").replace("_", "-")
                verdicts.append(f"{short} {100 * verdict.diff:+.2f} {verdict.verdict}")
        found += ", ".join(verdicts)
    return (
        "| "
        + " | ".join([*row, found, f"{run.results['time']['train_s'] / len(seeds):.0f}"])
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--runs", type=Path, default=Path("runs/itaml_table1"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seed", type=int, default=1000)
    parser.add_argument("--methods", nargs="*", default=["itaml", *COMPARATORS])
    parser.add_argument("--smoke", action="store_true", help="the sample, 1 epoch, few settings")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/itaml_table1.md"),
        help="not written by --smoke",
    )  # fmt: skip
    args = parser.parse_args()
    if args.smoke:  # one of each kind
        args.methods = [m for m in args.methods if m in ("itaml", "ewc", "gem", "icarl", "fomaml")]

    stream = cljax.streams.SplitMNIST(
        data_dir=args.data_dir, sample=args.smoke, pixels="normalised"
    ).build()
    epochs, seeds, few = (1, 2, slice(1)) if args.smoke else (EPOCHS, args.seeds, slice(None))
    shared = {"net": NET, "batch_size": 64 if args.smoke else BATCH, "epochs": epochs}
    folder = args.runs / ("smoke" if args.smoke else "full")
    rows, tried = [], []

    def tune(name: str, base: dict, grid: dict, kept: str):
        where = folder / "tune" / named(kept)
        found = tuned(name, base, grid, stream, where, args.tuning_seed, shared)
        for setting in found:
            value = "diverged" if setting.mean is None else f"{100 * setting.mean:.2f}"
            tried.append(f"| {kept} | {sweep.label(setting.setting)} | {value} |")
            print(tried[-1], flush=True)
        return found[0]

    def report(name: str, label: str, options: dict, **extra) -> None:
        where = folder / "report" / named(f"{name}-{label}")
        method = make(name, **options)
        run = cljax.run(method, stream, seeds=seeds, out=where, **shared, **extra)
        rows.append(row_of(name, label, run))
        print(rows[-1], flush=True)

    if "itaml" in args.methods:
        for label, options in AS_THEY_ARE.items():
            report("itaml", f"itaml {label}, own", options)
        for mode, loss in itertools.product(MODES[few], LOSSES[:2] if args.smoke else LOSSES):
            found = []
            for optimizer, (_, rates) in list(OPTIMIZERS.items())[few]:
                base = itaml_settings(mode, loss, optimizer)
                kept = f"itaml {mode}, {loss}, {optimizer}"
                best = tune("itaml", base, {"lr": rates[few]}, kept)
                found.append((best.mean or 0.0, {**base, **best.setting}))
            _, options = max(found, key=lambda scored: scored[0])
            label = f"itaml {mode}, {loss}: {options['optimizer']} {options['lr']:g}"
            report("itaml", label, options)
    for name in [name for name in COMPARATORS if name in args.methods]:
        base, grid = COMPARATORS[name]
        best = tune(name, base, {option: values[few] for option, values in grid.items()}, name)
        generic = GENERIC.get(name, "logits")
        memory = (
            "2000 examples" if name in MEMORY else "all examples" if name == "oracle" else "none"
        )
        label = f"{SHOWN.get(name, name)}, {CHECKED[name]}, memory {memory}: "
        label += sweep.label(best.setting)
        evaluations = protocols(CONTINUUM, predictor=generic, generic=generic)
        report(name, label, {**base, **best.setting}, evaluations=evaluations)
    if args.smoke:
        return
    left = [name for name in COMPARATORS if name not in args.methods]
    quoted = sources()["itaml-table1"].cells
    for name in NOT_RUN:
        number = quoted[name, "split-mnist"]["accuracy"].mean
        rows.append(f"| {name} | not run | not run | not run | not run | {100 * number:.2f} | - |")
    kept = ""
    if args.out.exists():
        kept = "## Reading" + args.out.read_text().partition("## Reading")[2]
    text = [
        "# iTAML's Table 1 on MNIST", "",
        f"Made by `python experiments/itaml_table1.py --data-dir DIR`: split-mnist, {NET}, batch "
        f"{BATCH}, {epochs} epochs a task, {seeds} seeds, percent with 95 % t-intervals over all "
        f"test images after the last task; a continuum has {CONTINUUM} examples. Beside the "
        f"published number: its difference from each protocol, and the verdict of equivalence "
        "within 1.5 points. Only iTAML adapts its model before a class is predicted; the others "
        "answer with the model that they have, among the outputs of the inferred or given task."
        + (f" Not run: {', '.join(left)}." if left else ""),
        "",
        "| method | per sample | continuum, task inferred | task accuracy | task given | published "
        "| training s a seed |",
        "| --- | --- | --- | --- | --- | --- | --- |", *rows, "",
        "## Settings tried, on validation images", "",
        "RA of the headline protocol (iTAML: task inferred; the others: per sample), one tuning "
        "seed.", "", "| method | setting | RA |", "| --- | --- | --- |", *tried, "", kept,
    ]  # fmt: skip
    args.out.write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
