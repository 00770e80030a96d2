"""What a run costs as it grows: in tasks, memory slots, seeds and network width, one at a time.

    python experiments/benchmarks/growth.py [--repeats 3]
    python experiments/benchmarks/growth.py --smoke

La-MAML in its low-rank form on rotated digits of the sample that cljax ships: 10 tasks of 200
images, 200 memory slots, one seed and two layers of 100 units, of which one number is doubled at a
time. Each run is a process of its own, cold. Training seconds of a seed are those of its thread;
peak memory is the process's. A cost that grows as it should has a factor of two from row to row
where it is to be linear, and of one where it is to be flat. The table goes to
experiments/results/growth.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import timing

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, device, number, printed, write

BASE: dict[str, int] = {"tasks": 10, "memory slots": 200, "seeds": 1, "width": 100}
GROWN = {
    "tasks": (5, 10, 20),
    "memory slots": (100, 200, 400, 800),
    "seeds": (1, 2, 4, 8),
    "width": (50, 100, 200, 400),
}
COLUMNS = ("what grows", "to", "training s a seed", "factor", "testing s a seed",
           "whole process s", "peak MB")  # fmt: skip


def measured(sizes: dict[str, int], repeats: int) -> list[timing.Timing]:
    width = sizes["width"]
    options = [
        "--sample", "--samples-per-task", "200", "--algebra", "low-rank",
        "--num-tasks", str(sizes["tasks"]), "--capacity", str(sizes["memory slots"]),
        "--net", f"mlp:{width},{width}",
    ]  # fmt: skip
    options += ["--seed", "0"] if sizes["seeds"] == 1 else ["--seeds", str(sizes["seeds"])]
    return [timing.run("lamaml", "mnist-rotations", options) for _ in range(repeats)]


def rows_of(what: str, values: tuple[int, ...], repeats: int) -> list[Any]:
    """A row for each value, the medians of its runs."""
    rows, before = [], None
    for value in values:
        sizes = BASE | {what: value}
        taken = measured(sizes, repeats)
        median = lambda field, taken=taken: statistics.median(getattr(t, field) for t in taken)
        train = median("train_s") / sizes["seeds"]
        rows.append(printed([
            what, number(value, "d"), number(train), number(before and train / before),
            number(median("eval_s") / sizes["seeds"]), number(median("wall_s"), ".1f"),
            number(median("peak_mb"), ".0f"),
        ]))  # fmt: skip
        before = train
    return rows


def report(args: argparse.Namespace) -> Report:
    grown = {k: v[:2] for k, v in GROWN.items()} if args.smoke else GROWN
    rows = [row for what, values in grown.items() for row in rows_of(what, values, args.repeats)]
    base = ", ".join(f"{value} {what}" for what, value in BASE.items())
    head = (
        f"{device()}, {timing.CORES} cores. By default {base}; one of them grows. Medians of "
        f"{args.repeats} cold processes; `factor` is training against the row above."
    )
    command = f"python experiments/benchmarks/growth.py --repeats {args.repeats}"
    return Report("Growth of a run's cost", command, ".", [head, "", Table(list(COLUMNS), rows)])


def main() -> None:
    parser = arguments(__doc__, smoke="two sizes, one repeat", data_dir=False, out="growth.md")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.repeats = 1 if args.smoke else args.repeats
    made = report(args)
    if not args.smoke:
        write(args.out, made)


if __name__ == "__main__":
    main()
