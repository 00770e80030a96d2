"""How long `cljax report` takes, and how large its pages are.

    python experiments/benchmarks/report_speed.py
    python experiments/benchmarks/report_speed.py --smoke

First the README's run, La-MAML on 20 tasks of rotated digits with 5 seeds, then 20 runs of other
rates with 2 seeds each, compared on one page; the sample that cljax ships. Each report is a process
of its own with nothing kept from before: seconds by the clock and of processor, medians over the
repeats. The table goes to experiments/results/report_speed.md.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cljax

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write


def reported(folders: list[Path], page: Path) -> tuple[float, float]:
    """Seconds of the command by the clock, and of processor."""
    command = [sys.executable, "-m", "cljax", "report", *map(str, folders), "--out", str(page)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit("cljax report failed.")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main() -> None:
    parser = arguments(
        __doc__, smoke="three small runs, once", data_dir=False, out="report_speed.md"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    tasks, images, seeds, runs = (3, 50, 2, 2) if args.smoke else (20, 1000, 5, 20)
    repeats, rows = 1 if args.smoke else args.repeats, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        large = cljax.streams.MNISTRotations(
            sample=True, num_tasks=tasks, samples_per_task=images
        ).build()  # fmt: skip
        small = cljax.streams.MNISTRotations(sample=True, num_tasks=5, samples_per_task=100).build()
        options = {"net": "mlp:100,100", "batch_size": 10}
        cljax.run(cljax.LaMAML(), large, seeds=seeds, out=root / "one", **options)
        for i in range(runs):
            method = cljax.LaMAML(alpha_init=0.05 + 0.01 * i)
            cljax.run(method, small, seeds=2, out=root / f"run{i:02}", **options)
        pages = {
            f"one run, {tasks} tasks, {seeds} seeds": [root / "one"],
            f"{runs} runs, 5 tasks, 2 seeds each": sorted(root.glob("run*")),
        }
        for what, folders in pages.items():
            page = root / "page.html"
            took = [reported(folders, page) for _ in range(repeats)]
            wall, busy = (statistics.median(column) for column in zip(*took, strict=True))
            size = number(page.stat().st_size / 1e6)
            rows.append(printed([what, number(wall, ".1f"), number(busy, ".1f"), size]))
    if not args.smoke:
        about = f", on {os.cpu_count()} cores; medians of {repeats} processes."
        table = Table(["page about", "seconds", "of processor", "MB"], rows)
        command = "python experiments/benchmarks/report_speed.py"
        write(args.out, Report("What a report takes", command, about, [table]))


if __name__ == "__main__":
    main()
