"""What checkpoints cost: the same run with one every 5 seconds, and with none.

    python experiments/benchmarks/checkpoint_overhead.py --data-dir DIR
    python experiments/benchmarks/checkpoint_overhead.py --smoke

La-MAML on mnist-rotations, 20 tasks of 1000 images, five seeds, whole processes in turn, medians.
The table goes to experiments/results/checkpoint_overhead.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from pathlib import Path

import timing

sys.path.append(str(Path(__file__).parents[1]))
from common import Cell, Report, Table, arguments, number, write


def main() -> None:
    parser = arguments(
        __doc__, smoke="the sample, 4 tasks, one repeat", out="checkpoint_overhead.md"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", default="5s")
    args = parser.parse_args()
    if args.smoke:
        flags, repeats = ["--sample", "--num-tasks", "4", "--seeds", "2"], 1
    else:
        flags, repeats = ["--data-dir", args.data_dir, "--seeds", "5"], args.repeats
    walls: dict[str, list[float]] = {"never": [], args.every: []}
    for repeat in range(repeats):
        for every, found in walls.items():
            extra = ["--checkpoint-every", every]
            found.append(timing.run("lamaml", "mnist-rotations", flags + extra).wall_s)
            print(f"repeat {repeat}, {every}: {found[-1]:.1f} s", flush=True)
    median = {every: statistics.median(found) for every, found in walls.items()}
    overhead = 100 * (median[args.every] / median["never"] - 1)
    print(f"overhead {overhead:+.1f} %")
    if args.smoke:
        return
    rows = [
        [every, number(median[every], ".1f"),
         Cell(f"{min(found):.1f} to {max(found):.1f}", {"min": min(found), "max": max(found)})]
        for every, found in walls.items()
    ]  # fmt: skip
    about = (
        f" on {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}: "
        f"La-MAML, mnist-rotations, five seeds, whole processes in turn, medians of {repeats}."
    )
    parts = [
        Table(["a checkpoint every", "seconds", "range"], rows), "",
        f"Overhead of one every {args.every}: {overhead:+.1f} % of the run's time.",
    ]  # fmt: skip
    command = "python experiments/benchmarks/checkpoint_overhead.py --data-dir DIR"
    numbers = {"overhead, %": overhead}
    write(args.out, Report("What checkpoints cost", command, about, parts, numbers))


if __name__ == "__main__":
    main()
