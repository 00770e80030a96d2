"""What checkpoints cost: the same run with one every 5 seconds, and with none.

    python experiments/benchmarks/checkpoint_overhead.py --data-dir DIR
    python experiments/benchmarks/checkpoint_overhead.py --smoke

La-MAML on mnist-rotations, 20 tasks of 1000 images, five seeds, whole processes in turn, medians.
The table goes to experiments/results/checkpoint_overhead.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path

import timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", default="5s")
    parser.add_argument("--smoke", action="store_true", help="the sample, 4 tasks, one repeat")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/checkpoint_overhead.md")
    )
    args = parser.parse_args()
    if args.smoke:
        flags, repeats = ["--sample", "--num-tasks", "4", "--seeds", "2"], 1
    else:
        flags, repeats = ["--data-dir", args.data_dir, "--seeds", "5"], args.repeats
    walls: dict[str, list[timing.Timing]] = {"never": [], args.every: []}
    for repeat in range(repeats):
        for every, found in walls.items():
            extra = ["--checkpoint-every", every]
            found.append(timing.run("lamaml", "mnist-rotations", flags + extra))
            print(f"repeat {repeat}, {every}: {found[-1].wall_s:.1f} s", flush=True)
    median = {every: statistics.median(t.wall_s for t in found) for every, found in walls.items()}
    overhead = 100 * (median[args.every] / median["never"] - 1)
    print(f"overhead {overhead:+.1f} %")
    if args.smoke:
        return
    rows = [
        f"| {every} | {median[every]:.1f} | {min(t.wall_s for t in found):.1f} to "
        f"{max(t.wall_s for t in found):.1f} |"
        for every, found in walls.items()
    ]
    text = [
        "# What checkpoints cost", "",
        "Made by `python experiments/benchmarks/checkpoint_overhead.py --data-dir DIR` on "
        f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}: "
        f"La-MAML, mnist-rotations, five seeds, whole processes in turn, medians of {repeats}.", "",
        "| a checkpoint every | seconds | range |", "| --- | --- | --- |", *rows, "",
        f"Overhead of one every {args.every}: {overhead:+.1f} % of the run's time.", "",
    ]  # fmt: skip
    args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
