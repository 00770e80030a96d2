"""Lanes a second on one device: 1, 8, 64 and 256 lanes of La-MAML in one vmapped program.

    python experiments/benchmarks/lanes_per_device.py [--lanes 1,8,64,256]
    python experiments/benchmarks/lanes_per_device.py --smoke

Each number of lanes is a sweep of ``alpha_init`` over seeds on mnist-rotations (the sample),
without its compilation. The memory is the device's peak where it tells. The table goes to
experiments/results/lanes_per_device.md and the plot beside it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
from matplotlib.figure import Figure

import cljax
from cljax import plot
from cljax.engine.learn import learn

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, device, number, printed, write


def measured(num: int, stream: cljax.streams.Stream, policy: str) -> tuple[float, float, int]:
    """Seconds of training and testing, of compilation, and the device's peak of memory."""
    method = cljax.LaMAML(alpha_lr=0.3, capacity=200, algebra="low-rank")
    methods = [method.replace(alpha_init=0.05 + 0.1 * i / num) for i in range(num)]
    began = time.perf_counter()
    history = learn(
        methods, cljax.nets.mlp(100, 100)(10), stream, list(range(num)),
        cljax.engine.options.Training(batch_size=10, lanes=policy, entries="diagonal-last"),
        running=cljax.Running(segment_seconds=5.0),
    )  # fmt: skip
    assert history is not None
    total = time.perf_counter() - began
    stats = jax.devices()[0].memory_stats() or {}
    compiled = history.time["compile_s"]
    return total - compiled, compiled, stats.get("peak_bytes_in_use", 0)


def draw(counts: list[int], speeds: list[float], path: Path) -> None:
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(counts, speeds, "o-", color="#0072B2")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("lanes in one program")
    ax.set_ylabel("lanes a second")
    ax.set_title(device(), fontsize=9)
    plot.save(ax, path)


def main() -> None:
    parser = arguments(__doc__, smoke="1 and 2 lanes of 2 small tasks", data_dir=False, out="")
    parser.add_argument("--lanes", default="1,8,64,256")
    parser.add_argument("--policy", default="vmap", choices=["vmap", "map", "threads"])
    args = parser.parse_args()
    counts = [1, 2] if args.smoke else [int(n) for n in args.lanes.split(",")]
    small = {"num_tasks": 2, "samples_per_task": 60} if args.smoke else {}
    stream = cljax.streams.MNISTRotations(sample=True, **small).build()
    rows, speeds = [], []
    for num in counts:
        seconds, compiled, peak = measured(num, stream, args.policy)
        speeds.append(num / seconds)
        row = [num, number(seconds, ".1f"), number(compiled, ".1f"), number(speeds[-1]),
               number(peak / 2**20 if peak else None, ".0f")]  # fmt: skip
        rows.append(printed(row))
    if args.smoke:
        return
    command = f"python experiments/benchmarks/lanes_per_device.py --lanes {args.lanes} "
    command += f"--policy {args.policy}"
    about = (
        f" on {device()}: La-MAML, mnist-rotations on the sample, tested on the diagonal and in "
        "the last row."
    )
    columns = ["lanes", "seconds", "compilation", "lanes a second", "peak memory, MiB"]
    report = Report("Lanes on one device", command, about, [Table(columns, rows)])
    write(args.out / "lanes_per_device.md", report)
    draw(counts, speeds, args.out / "lanes_per_device.png")


if __name__ == "__main__":
    main()
