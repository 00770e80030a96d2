"""La-MAML on MNIST rotations: how long the whole command takes, and what it must compute.

    python experiments/benchmarks/lamaml_speed.py [--data-dir DIR] [--repeats 3] [--out FILE]

Times `cljax run lamaml mnist-rotations` as whole processes, from start to results written, on
full MNIST with 10 000 test images a task: one seed by the general path, one by the low-rank
form, five seeds; with a cold and a warm compilation cache; and one seed of 5, 10 and 20 tasks
for growth. Beside them: the arithmetic the run needs, and the machine's measured GEMM peak.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

from timing import gemm_peak, run

REFERENCE_S = 170  # the authors' PyTorch code, one thread, one seed, evaluation included


def flops(num_tasks: int = 20, batches: int = 100, glances: int = 5, inner: int = 10) -> float:
    """Multiply-adds count two. Rows: one inner example and 10 + 10 of the meta-batch a step."""
    layers, rows = (784 * 100, 100 * 100, 100 * 10), 1 + 20
    forward = backward_weights = 2 * rows * sum(layers)
    backward_inputs = 2 * rows * sum(layers[1:])  # the first layer's input needs no gradient
    step = forward + backward_weights + backward_inputs
    return float(step * inner * glances * batches * num_tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    parser.add_argument("--smoke", action="store_true", help="2 tasks of the sample, once")
    args = parser.parse_args()

    data = ["--data-dir", args.data_dir] if args.data_dir and not args.smoke else []
    size = ["--num-tasks", "2", "--samples-per-task", "100"] if args.smoke else []
    repeats, num_tasks, batches = (1, 2, 10) if args.smoke else (args.repeats, 20, 100)
    cores = len(os.sched_getaffinity(0))
    peak = gemm_peak(cores)
    work = flops(num_tasks, batches)
    lines = [
        f"{platform.processor() or platform.machine()}, {cores} cores, Python "
        f"{platform.python_version()}; float32 GEMM peak {peak / 1e9:.0f} GFLOP/s on all cores.",
        f"One seed needs {work / 1e12:.3f} TFLOP in its meta-updates: {work / peak:.1f} s at that "
        f"peak. The authors' code took {REFERENCE_S} s.",
        "",
        "| run | whole process s (median, range) | compile s | train s | evaluation s | "
        "train GFLOP/s a thread | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def row(name: str, options: list[str], seeds: int, share: float = 1.0, **kwargs) -> None:
        timings = [
            run("lamaml", "mnist-rotations", [*data, *size, *options], **kwargs)
            for _ in range(repeats)
        ]
        walls = [timing.wall_s for timing in timings]
        middle = sorted(timings, key=lambda t: t.wall_s)[len(timings) // 2]
        rate = work * share * seeds / middle.train_s / 1e9
        lines.append(
            f"| {name} | {statistics.median(walls):.1f} ({min(walls):.1f} to {max(walls):.1f}) | "
            f"{middle.compile_s:.1f} | {middle.train_s:.1f} | {middle.eval_s:.1f} | {rate:.0f} | "
            f"{middle.peak_mb:.0f} |"
        )
        print(lines[-1], flush=True)

    print("\n".join(lines), flush=True)
    general, low_rank = ["--algebra", "general"], ["--algebra", "low-rank"]
    row("one seed, general", ["--seed", "0", *general], 1)
    row("one seed, low-rank", ["--seed", "0", *low_rank], 1)
    row("five seeds, general", ["--seeds", "5", *general], 5)
    row("five seeds, low-rank", ["--seeds", "5", *low_rank], 5)
    enough = ["--entries", "diagonal-last"]  # all that RA, LA and BTI need
    row("one seed, low-rank, diagonal and last row", ["--seed", "0", *low_rank, *enough], 1)
    row("five seeds, general, diagonal and last row", ["--seeds", "5", *general, *enough], 5)
    row("five seeds, low-rank, diagonal and last row", ["--seeds", "5", *low_rank, *enough], 5)
    with tempfile.TemporaryDirectory() as cache:
        run("lamaml", "mnist-rotations", [*data, *size, "--seed", "0", *general], cache)
        run("lamaml", "mnist-rotations", [*data, *size, "--seed", "0", *low_rank], cache)
        row("one seed, general, warm cache", ["--seed", "0", *general], 1, cache=cache)
        row("one seed, low-rank, warm cache", ["--seed", "0", *low_rank], 1, cache=cache)
    if not args.smoke:
        for tasks in (5, 10):
            options = ["--seed", "0", *low_rank, "--num-tasks", str(tasks)]
            row(f"one seed, low-rank, {tasks} tasks", options, 1, tasks / 20)
    if args.out:
        command = "python experiments/benchmarks/lamaml_speed.py"
        title = f"# Speed of La-MAML on MNIST rotations\n\nMade by `{command}`.\n\n"
        args.out.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
