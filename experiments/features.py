"""Closed forms on features of a frozen network: half of CIFAR-100 first, then the other half.

    python experiments/features.py --data-dir DIR
    python experiments/features.py --smoke

A small network learns 50 classes jointly, with all their training images. Its features of the
other 50 classes (``cljax.streams.encoded``) then come as 10 tasks of 5 classes, in one pass, in
batches of 32: to methods with closed forms, and to gradient descent on a linear head, with and
without replay. ``iid`` is the bound of such a head: the same pass over all tasks mixed. Every
method tries up to six settings, on a tenth of each class's training images that no task learns
from, with one seed that is not among the reported ones; every value tried is printed. Classes are
split by the order of 1993 (mnemonics training). Every run is a folder, so the script goes on where
it stopped. The tables go to experiments/results/features.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Report,
    Table,
    arguments,
    difference,
    metric,
    number,
    percent,
    printed,
    write,
)
from lamaml_table3 import made_up

import cljax
from cljax import stats, sweep
from cljax.streams import CIFAR100, Stream, encoded, save_class_order
from cljax.streams.classes import order_1993

NET, TINY_NET, HEAD = "cnn:32,64,128:128", "cnn:4,4:8", "mlp:"
HALF, EPOCHS, TUNING_SEED, LANES = 50, 15, 1000, 64
# A method, and up to six settings, by rows of the table.
GRIDS: dict[str, tuple[cljax.Method, list[dict[str, Any]]]] = {
    "ncm": (cljax.NCM(), sweep.grid(normalize=[False, True])),
    "slda, streaming": (cljax.SLDA(), sweep.grid(shrinkage=[1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3])),
    "slda, pooled": (
        cljax.SLDA(covariance="pooled"),
        sweep.grid(shrinkage=[1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3]),
    ),
    "ranpac": (cljax.RanPAC(projections=1000), [{}]),
    "ranpac, ridge given": (
        cljax.RanPAC(projections=1000),
        sweep.grid(ridge=[1.0, 10.0, 1e2, 1e3, 1e4, 1e5]),
    ),
    "fecam": (
        cljax.FeCAM(),
        sweep.grid(normalize=[False, True], diagonal=[1.0, 3.0, 10.0]),
    ),
    "finetune, linear head": (
        cljax.Finetune(),
        sweep.grid(lr=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
    ),
    "er, linear head": (
        cljax.ER(capacity=500, replay_size=32),
        sweep.grid(lr=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
    ),
    "iid, linear head": (
        cljax.IID(),
        sweep.grid(lr=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
    ),
}
# What stands beside one lane: all 64 lanes of a method as one program.
IN_LANES = {
    "ncm": cljax.NCM(),
    "slda, streaming": cljax.SLDA(),
    "slda, pooled": cljax.SLDA(covariance="pooled"),
    "ranpac, 200 projections": cljax.RanPAC(projections=200, ridge=100.0),
    "fecam": cljax.FeCAM(),
}


def pretrained(args: argparse.Namespace, folder: Path) -> cljax.Run:
    """The network after one task of the first half of the classes."""
    source = CIFAR100(
        classes=HALF, classes_per_task=HALF, class_order="1993", augment="crop-flip", val=0.0,
        data_dir=args.data_dir,
    )  # fmt: skip
    stream = source.build(made_up()) if args.smoke else source.build()
    epochs = 2 if args.smoke else EPOCHS
    drops = (1,) if args.smoke else (10, 13)
    method = cljax.FixedRep(lr=1e-3, optimizer="adam", milestones=drops, decay=0.3)
    return cljax.run(
        method, stream, seeds=1, net=TINY_NET if args.smoke else NET, batch_size=128,
        epochs=epochs, entries="diagonal-last", out=folder / "pretrained",
    )  # fmt: skip


def features_of(args: argparse.Namespace, run: cljax.Run, folder: Path) -> Stream:
    """The second half of the classes as features of the run's network, in tasks of 5."""
    order = folder / "second-half-first.json"
    folder.mkdir(parents=True, exist_ok=True)
    save_class_order(order, np.roll(order_1993(100), HALF).tolist())
    source = CIFAR100(
        classes=10 if args.smoke else HALF, classes_per_task=5, class_order=str(order),
        val=0.2 if args.smoke else 0.1, data_dir=args.data_dir,
    )  # fmt: skip
    stream = source.build(made_up()) if args.smoke else source.build()
    model = run.made.net(HALF)
    return encoded(stream, model, run.variables(), cache=folder / "cache")


def tuned(
    name: str, stream: Stream, folder: Path, common: Mapping[str, Any], *, smoke: bool
) -> tuple[cljax.Method, list[Sequence[Any]]]:
    """The setting that is best on validation rows, and all that were tried, the best first."""
    method, settings = GRIDS[name]
    if smoke or len(settings) == 1:
        return method.replace(**settings[0]), []
    plan = sweep.plan(method, stream, settings, seeds=[TUNING_SEED], **common)
    done = sweep.run(plan, folder / "tuning" / name)
    if done.exit_code:
        raise cljax.errors.Interrupted(f"interrupted and kept in {done.path}; start it again.")
    rows = [
        printed([name, sweep.label(s.setting), percent(s.mean), "*" if i == 0 else ""])
        for i, s in enumerate(done.settings)
    ]
    return method.replace(**done.best().setting), rows


def row_of(name: str, run: cljax.Run) -> Sequence[Any]:
    """Accuracies, and what one seed costs."""
    results, cost = run.results, run.results["cost"]
    accuracies = (metric(results["metrics"].get(m), absent="-") for m in ("RA", "LA", "BTI", "AIA"))
    seconds = results["time"]["train_s"] / len(results["seeds"])
    size = sum(cost["state_bytes"].values())
    return printed([
        name, *accuracies, size, cost["gradient_evaluations"], number(seconds, ".2f"),
    ])  # fmt: skip


def lanes_of(stream: Stream, seeds: int, folder: Path) -> list[Sequence[Any]]:
    """Seconds of one lane, and of many as one program, each once compiled."""
    rows = []
    for name, method in IN_LANES.items():
        seconds = []
        for count in (1, seeds):
            run = cljax.run(
                method, stream, seeds=count, net=HEAD, batch_size=32, lanes="vmap",
                entries="diagonal-last", out=folder / "lanes" / f"{name}-{count}",
            )  # fmt: skip
            seconds.append(run.results["time"]["train_s"])
        one, many = seconds
        ratio = seeds * one / many
        rows.append(printed([name, number(one), number(many), number(ratio, ".1f")]))
    return rows


def main() -> None:
    parser = arguments(
        __doc__, smoke="made-up images, 2 tasks, 2 seeds", seeds=5, runs="features",
        out="features.md",
    )  # fmt: skip
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory()
    folder, seeds = args.runs / ("smoke" if args.smoke else "full"), 2 if args.smoke else args.seeds
    network = pretrained(args, folder)
    stream = features_of(args, network, folder)
    common: dict[str, Any] = {"net": HEAD, "batch_size": 32}
    rows, tuning, runs = [], [], {}
    for name in GRIDS:
        method, tried = tuned(name, stream, folder, common, smoke=args.smoke)
        runs[name] = cljax.run(
            method, stream, seeds=seeds, entries="lower", out=folder / "runs" / name, **common
        )
        tuning += tried
        rows.append(row_of(name, runs[name]))
    against = {name: run.metric("RA") for name, run in runs.items()}
    pairs = [
        printed([name, difference(stats.paired(values, against["ncm"]))])
        for name, values in against.items()
        if name != "ncm"
    ]
    lanes = lanes_of(stream, 4 if args.smoke else LANES, folder)
    if args.smoke:
        return
    joint = network.results["metrics"]["RA"]["mean"]
    spent = network.results["time"]["total_s"]
    about = (
        f": {seeds} seeds; percent with 95 % t-intervals. The network `{NET}` learned {HALF} "
        f"classes of CIFAR-100 in {EPOCHS} epochs of Adam, {spent:.0f} s, to {100 * joint:.2f} % "
        f"on their tests; its {stream.train_x.shape[1]} features (SHA-256 "
        f"{stream.manifest['encoder_sha256'].item()[:12]}) of the other {HALF} come as 10 tasks of "
        "5 classes, single head, class-incremental, one pass in batches of 32. A seed draws the "
        "order of each task's images and the tenth that validates. Settings are chosen on that "
        f"tenth with seed {TUNING_SEED}, of up to 6 a method. Bytes are the method's state: "
        "statistics, or network, optimiser and replay memory, without the frozen network."
    )
    columns = ["method", "RA", "LA", "BTI", "AIA", "bytes of state", "gradient evaluations",
               "training s a seed"]  # fmt: skip
    columns_of_lanes = ["method", "1 lane, s", f"{LANES} lanes, s", "throughput, times"]
    parts = [
        Table(columns, rows), "", "## Differences of RA from ncm, in points, paired over seeds", "",
        Table(["method", "less ncm"], pairs), "", "## Settings tried, on validation images", "",
        Table(["method", "setting", "RA", "chosen"], tuning), "",
        f"## {LANES} lanes as one program", "",
        "Seconds of all updates and tests, compilation apart; ranpac's with a given ridge.", "",
        Table(columns_of_lanes, lanes),
    ]  # fmt: skip
    command = "python experiments/features.py --data-dir DIR"
    numbers = {"accuracy on the first half": 100 * joint}
    write(args.out, Report("Features of a frozen network", command, about, parts, numbers))


if __name__ == "__main__":
    main()
