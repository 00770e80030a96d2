"""La-MAML's Table 2: what an epoch of each method costs, beside the authors' code.

    python experiments/lamaml_table2.py --data-dir DIR
    python experiments/lamaml_table2.py --smoke

Times `cljax run METHOD mnist-rotations --seed 0` (and permutations for the paper's rows) as whole
processes with a cold compilation cache, each pair's recipe, full MNIST, 10 000 test images a task.
`train` is one epoch over the stream, as the paper's Table 2 has it; compilation and evaluation are
apart. The reference seconds are those of the authors' code, one thread, evaluation included. The
second table compares ER and La-MAML at equal compute: ER's replay grows until its gradients see as
many examples as La-MAML's. The tables go to experiments/results/lamaml_table2.md.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Timing, gemm_peak, run
from common import Report, Table, arguments, metric, number, over_repeats, printed, write

import cljax
from cljax.references.published import published

ROWS = ("online", "ewc", "er", "gem", "cmaml", "lamaml", "mer")
BOTH = ("cmaml", "lamaml", "mer")  # also timed on permutations
PAPER = {"mnist-rotations": (45.95, 218.03), "mnist-permutations": (46.13, 227.11)}  # Table 2


def reference_s(method: str, stream: str) -> float | None:
    try:
        return published("reference-runs", method=method, stream=stream)["seconds"].mean
    except (cljax.errors.UserError, KeyError):
        return None


def row(method: str, stream: str, timings: list[Timing]) -> Sequence[Any]:
    middle = sorted(timings, key=lambda t: t.wall_s)[len(timings) // 2]
    walls, cost, theirs = [t.wall_s for t in timings], middle.cost, reference_s(method, stream)
    flops = cost["flops_analytic"]
    return printed([
        stream, method, number(middle.train_s), number(middle.compile_s, ".1f"),
        number(middle.eval_s, ".1f"), over_repeats(walls), number(theirs, ".0f"),
        number(theirs and theirs / statistics.median(walls), ".1f"),
        number(cost["gradient_evaluations"] / cost["examples"], ".0f"),
        number(flops and flops / 1e12, ".3f"),
        number(flops and flops / middle.train_s / 1e9, ".0f"), number(middle.peak_mb, ".0f"),
    ])  # fmt: skip


def equal_compute(data: dict, seeds: int, runs: Path) -> Table:
    """La-MAML, and ER in its setting with more glances or a larger replay, at equal examples."""
    lamaml = cljax.recipe("lamaml", "mnist-rotations").replace(**data)
    batch, glances, replay = 10, 5, 10
    per_batch = glances * (batch + 10 * (replay + batch))  # examples La-MAML's gradients see
    wide = per_batch // glances - batch
    er = lamaml.replace(method="er", method_options={})
    shared = {
        "reservoir_rule": "inclusive", "with_replacement": True, "clip_norm": 2.0, "capacity": 200,
    }  # fmt: skip
    rows = [("lamaml", "recipe", lamaml)]
    for lr in (0.03, 0.1):
        many = er.replace(
            method_options={**shared, "lr": lr, "glances": per_batch // 20, "replay_size": 10}
        )
        large = er.replace(
            method_options={**shared, "lr": lr, "glances": glances, "replay_size": wide}
        )
        rows.append(("er", f"lr {lr}, {per_batch // 20} glances, replay 10", many))
        rows.append(("er", f"lr {lr}, {glances} glances, replay {wide}", large))
    lines = []
    for i, (method, setting, recipe) in enumerate(rows):
        done = cljax.run(recipe, seeds=seeds, entries="diagonal-last", out=runs / f"equal-{i}")
        cells = [metric(done.results["metrics"][name]) for name in ("RA", "BTI")]
        work, train = done.results["cost"]["flops_analytic"], done.results["time"]["train_s"]
        row = [method, setting, number(work / 1e12, ".3f"), number(train / seeds, ".1f"), *cells]
        lines.append(printed(row))
    return Table(["method", "setting", "TFLOP, analytic", "train s", "RA", "BTI"], lines)


def main() -> None:
    parser = arguments(
        __doc__, smoke="2 tasks of the sample, once", runs="lamaml_table2", out="lamaml_table2.md"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    small = {"sample": True, "num_tasks": 2, "samples_per_task": 60}
    flags = ["--sample", "--num-tasks", "2", "--samples-per-task", "60"]
    data = flags if args.smoke else (["--data-dir", args.data_dir] if args.data_dir else [])
    peak = gemm_peak(cores := len(os.sched_getaffinity(0)))
    rows, trained = [], {}
    for stream in PAPER:
        for method in ROWS if stream == "mnist-rotations" else BOTH:
            if args.smoke and method not in BOTH:
                continue
            timings = [
                run(method, stream, [*data, "--seed", "0"])
                for _ in range(1 if args.smoke else args.repeats)
            ]
            trained[method, stream] = statistics.median(t.train_s for t in timings)
            rows.append(row(method, stream, timings))
    numbers = {
        f"MER / La-MAML, {stream}": trained["mer", stream] / trained["lamaml", stream]
        for stream in PAPER
    }
    ratios = [
        f"{name}: {ratio:.2f} here, {mer / lamaml:.2f} in the paper's Table 2."
        for (name, ratio), (lamaml, mer) in zip(numbers.items(), PAPER.values(), strict=True)
    ]
    print("\n".join(ratios))
    runs = args.runs / ("smoke" if args.smoke else "full")
    options = small if args.smoke else {"data_dir": args.data_dir}
    equal = equal_compute(options, 2 if args.smoke else 5, runs)
    if args.smoke:
        return
    about = (
        f": medians of {args.repeats} whole processes, one seed each, on {cores} cores of "
        f"{platform.processor() or platform.machine()} (float32 GEMM peak {peak / 1e9:.0f} "
        f"GFLOP/s on all cores), Python {platform.python_version()}. Seconds, evaluation summed "
        "over threads."
    )
    columns = ["stream", "method", "train (one epoch)", "compile", "evaluation", "whole process",
               "authors' code", "authors' / ours", "gradients an example", "TFLOP, analytic",
               "train GFLOP/s", "peak MB"]  # fmt: skip
    parts = [
        Table(columns, rows), "", *ratios, "",
        "## ER and La-MAML at equal compute, mnist-rotations, 5 seeds", "",
        "Batches of 10, the same network, memory of 200, one pass. TFLOP and training seconds are "
        "of one seed; ER's rates are two of the paper's grid, both shown.", "", equal,
    ]  # fmt: skip
    command = "python experiments/lamaml_table2.py --data-dir DIR"
    title = "La-MAML's Table 2, and cost beside accuracy"
    write(args.out, Report(title, command, about, parts, numbers))


if __name__ == "__main__":
    main()
