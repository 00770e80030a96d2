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
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import Cell, Report, Table, arguments, metric, number, percent, printed, write

import cljax
from cljax import sweep
from cljax.methods import CHECKED, make
from cljax.methods.adapted import protocols
from cljax.references.published import sources
from cljax.stats import equivalence
from cljax.streams import Stream

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
Row = Sequence[Any]
GENERIC = {"icarl": "nearest-mean"}  # the predictor of methods whose headline is not "logits"


def itaml_settings(mode: str, loss: str, optimizer: str) -> dict:
    fixed, _ = OPTIMIZERS[optimizer]
    made = {"mode": mode, "loss_outputs": loss, **SCRIPT, **fixed}
    if mode == "paper" and optimizer == "sgd" and loss != "seen-frozen":
        made["algebra"] = "one-gradient"
    return made


def named(text: str) -> str:
    return re.sub(r"\W+", "-", text)


def published(name: str, run: cljax.Run) -> Cell | None:
    """The published number, and the difference and verdict of each protocol."""
    source = sources()["itaml-table1"].cells.get((name, "split-mnist"))
    if source is None:
        return None
    target, protocols = source["accuracy"], {}
    for column in COLUMNS:
        values = run.results["metrics"].get(column, {"values": [None]})["values"]
        if column != "task_accuracy" and None not in values and len(run.results["seeds"]) > 1:
            verdict = equivalence(run.metric(column), target, MARGIN)
            short = column.removeprefix("accuracy_").replace("_", "-")
            protocols[short] = {"difference": 100 * verdict.diff, "verdict": verdict.verdict}
    said = (
        f"{short} {one['difference']:+.2f} {one['verdict']}" for short, one in protocols.items()
    )
    value = {"published": 100 * target.mean, "protocols": protocols}
    return Cell(": ".join(filter(None, [f"{100 * target.mean:.2f}", ", ".join(said)])), value)


class Setup(NamedTuple):
    """What all methods share."""

    stream: Stream
    folder: Path
    tuning_seed: int
    seeds: int
    smoke: bool
    run: dict[str, Any]  # network, batch size and epochs

    @property
    def few(self) -> slice:
        """Of settings: one in the smoke test."""
        return slice(1) if self.smoke else slice(None)


def setup_of(args: argparse.Namespace) -> Setup:
    stream = cljax.streams.SplitMNIST(
        data_dir=args.data_dir, sample=args.smoke, pixels="normalised"
    ).build()
    epochs, batch = (1, 64) if args.smoke else (EPOCHS, BATCH)
    run = {"net": NET, "batch_size": batch, "epochs": epochs}
    folder = args.runs / ("smoke" if args.smoke else "full")
    return Setup(stream, folder, args.tuning_seed, args.seeds, args.smoke, run)


def tuned(setup: Setup, name: str, base: dict, grid: dict, label: str) -> tuple[Any, list[Row]]:
    """The best setting of a method on validation images by the headline's RA, and all tried."""
    recipe = cljax.recipes.Recipe(name, "split-mnist", method_options=base)
    seeds = [setup.tuning_seed]
    plan = sweep.plan(recipe, setup.stream, sweep.grid(**grid), seeds=seeds, **setup.run)
    done = sweep.run(plan, setup.folder / "tune" / named(label))
    if done.exit_code:
        raise SystemExit(done.exit_code)
    rows = [
        printed([label, sweep.label(one.setting),
                 "diverged" if one.mean is None else percent(one.mean)])
        for one in done.settings
    ]  # fmt: skip
    return done.settings[0], rows


def reported(setup: Setup, name: str, label: str, options: dict, **extra: Any) -> Row:
    """The row of a method, tested once with the reported seeds."""
    out = setup.folder / "report" / named(f"{name}-{label}")
    method = make(name, **options)
    run = cljax.run(method, setup.stream, seeds=setup.seeds, out=out, **setup.run, **extra)
    cells, seconds = run.results["metrics"], run.results["time"]["train_s"] / setup.seeds
    return printed(
        [label, *(metric(cells.get(column)) for column in COLUMNS), published(name, run),
         number(seconds, ".0f")]
    )  # fmt: skip


def itaml_rows(setup: Setup) -> tuple[list[Row], list[Row]]:
    """iTAML as released and printed, then each mode and loss tuned; and the settings tried."""
    rows = [
        reported(setup, "itaml", f"itaml {label}, own", options)
        for label, options in AS_THEY_ARE.items()
    ]
    tried = []
    for mode, loss in itertools.product(MODES[setup.few], LOSSES[: 2 if setup.smoke else None]):
        found = []
        for optimizer, (_, rates) in list(OPTIMIZERS.items())[setup.few]:
            base = itaml_settings(mode, loss, optimizer)
            label = f"itaml {mode}, {loss}, {optimizer}"
            best, settings = tuned(setup, "itaml", base, {"lr": rates[setup.few]}, label)
            tried += settings
            found.append((best.mean or 0.0, {**base, **best.setting}))
        _, options = max(found, key=lambda scored: scored[0])
        label = f"itaml {mode}, {loss}: {options['optimizer']} {options['lr']:g}"
        rows.append(reported(setup, "itaml", label, options))
    return rows, tried


def comparator_row(setup: Setup, name: str) -> tuple[Row, list[Row]]:
    """A comparator, tuned; and the settings tried."""
    base, grid = COMPARATORS[name]
    grid = {option: values[setup.few] for option, values in grid.items()}
    best, tried = tuned(setup, name, base, grid, name)
    generic = GENERIC.get(name, "logits")
    memory = "2000 examples" if name in MEMORY else "all examples" if name == "oracle" else "none"
    label = f"{SHOWN.get(name, name)}, {CHECKED[name]}, memory {memory}: "
    label += sweep.label(best.setting)
    evaluations = protocols(CONTINUUM, predictor=generic, generic=generic)
    options = {**base, **best.setting}
    return reported(setup, name, label, options, evaluations=evaluations), tried


def main() -> None:
    parser = arguments(
        __doc__, smoke="the sample, 1 epoch, few settings", seeds=5, runs="itaml_table1",
        out="itaml_table1.md",
    )  # fmt: skip
    parser.add_argument("--tuning-seed", type=int, default=1000)
    parser.add_argument("--methods", nargs="*", default=["itaml", *COMPARATORS])
    args = parser.parse_args()
    if args.smoke:  # one of each kind, on the sample
        args.methods = [m for m in args.methods if m in ("itaml", "ewc", "gem", "icarl", "fomaml")]
        args.seeds, args.data_dir = 2, None

    setup = setup_of(args)
    rows, tried = itaml_rows(setup) if "itaml" in args.methods else ([], [])
    for name in [name for name in COMPARATORS if name in args.methods]:
        row, settings = comparator_row(setup, name)
        rows, tried = [*rows, row], [*tried, *settings]
    if not args.smoke:
        left = [name for name in COMPARATORS if name not in args.methods]
        write(args.out, report(rows, tried, left, args.seeds))


def report(rows: Sequence[Row], tried: Sequence[Row], left: Sequence[str], seeds: int) -> Report:
    """The report; ``left`` are comparators that were not run."""
    quoted = sources()["itaml-table1"].cells
    not_run = [
        [name, *["not run"] * 4, percent(quoted[name, "split-mnist"]["accuracy"].mean), None]
        for name in NOT_RUN
    ]
    about = (
        f": split-mnist, {NET}, batch {BATCH}, {EPOCHS} epochs a task, {seeds} seeds, percent with "
        "95 % t-intervals over all test images after the last task; a continuum has "
        f"{CONTINUUM} examples. Beside the published number: its difference from each protocol, "
        "and the verdict of equivalence within 1.5 points. Only iTAML adapts its model before a "
        "class is predicted; the others answer with the model that they have, among the outputs "
        "of the inferred or given task." + (f" Not run: {', '.join(left)}." if left else "")
    )
    columns = ["method", "per sample", "continuum, task inferred", "task accuracy", "task given",
               "published", "training s a seed"]  # fmt: skip
    parts = [
        Table(columns, [*rows, *not_run]), "",
        "## Settings tried, on validation images", "",
        "RA of the headline protocol (iTAML: task inferred; the others: per sample), one tuning "
        "seed.", "",
        Table(["method", "setting", "RA"], tried),
    ]  # fmt: skip
    command = "python experiments/itaml_table1.py --data-dir DIR"
    return Report("iTAML's Table 1 on MNIST", command, about, parts)


if __name__ == "__main__":
    main()
