"""64 lanes of La-MAML as one sweep, against the same lanes as separate processes.

    python experiments/benchmarks/sweep_throughput.py [--singles 8]
    python experiments/benchmarks/sweep_throughput.py --smoke

The sweep: 8 settings x 8 seeds on mnist-rotations (the sample in the package), one process, from
start to the table written. The others: ``cljax run`` of single lanes, one process after another,
each with an empty compilation cache; some are timed and their median stands for all. The table
goes to experiments/results/sweep_throughput.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, write

RATES = {"alpha_init": ["0.05", "0.1", "0.15", "0.2"], "alpha_lr": ["0.1", "0.3"]}


def swept(flags: list[str], seeds: int) -> tuple[float, float]:
    """Seconds of the whole sweep, and how many cores it kept busy."""
    over = [f"--over={name}={','.join(values)}" for name, values in RATES.items()]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cljax", "sweep", "lamaml", "mnist-rotations", *flags]
        command += [*over, "--seeds", str(seeds), "--on", "test", "--out", f"{folder}/sweep"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    if status:
        sys.exit("the sweep failed")
    return wall, (used.ru_utime + used.ru_stime) / wall


def main() -> None:
    parser = arguments(
        __doc__, smoke="2 tasks, 2 seeds, 2 single lanes", data_dir=False,
        out="sweep_throughput.md",
    )  # fmt: skip
    parser.add_argument("--singles", type=int, default=8, help="single lanes that are timed")
    args = parser.parse_args()
    flags = ["--sample", "--entries", "diagonal-last"]
    flags += ["--num-tasks", "2", "--samples-per-task", "60"] if args.smoke else []
    seeds, singles = (2, 2) if args.smoke else (8, args.singles)
    settings = [(a, b) for a in RATES["alpha_init"] for b in RATES["alpha_lr"]]
    walls = []
    for i in range(singles):
        a, b = settings[i % len(settings)]
        rates = ["--alpha-init", a, "--alpha-lr", b, "--seed", str(i % seeds)]
        walls.append(timing.run("lamaml", "mnist-rotations", flags + rates).wall_s)
        print(f"single lane {i}: {walls[-1]:.1f} s", flush=True)
    lanes = len(settings) * seeds
    wall, busy = swept(flags, seeds)
    single = statistics.median(walls)
    ratio = single * lanes / wall
    print(f"{lanes} lanes in {wall:.1f} s, {busy:.2f} cores busy; {ratio:.2f} times the throughput")
    if args.smoke:
        return
    about = (
        f" on {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}: "
        f"La-MAML, mnist-rotations on the sample, {len(settings)} settings x {seeds} seeds, tested "
        "on the diagonal and in the last row, cold compilation caches."
    )
    spread = f"{min(walls):.1f} to {max(walls):.1f}"
    rows = [
        [f"one sweep of {lanes} lanes", number(wall, ".1f"), number(wall / lanes), number(busy)],
        [f"single processes (median of {singles}: {spread})",
         number(single * lanes, ".0f", f" for {lanes}"), number(single), None],
    ]  # fmt: skip
    parts = [
        Table(["what", "seconds", "seconds a lane", "cores busy"], rows), "",
        f"Throughput of a lane in the sweep: {ratio:.2f} times that of single processes.",
    ]  # fmt: skip
    numbers = {"throughput of a lane, times that of single processes": ratio}
    command = "python experiments/benchmarks/sweep_throughput.py"
    write(args.out, Report("A sweep against single processes", command, about, parts, numbers))


if __name__ == "__main__":
    main()
