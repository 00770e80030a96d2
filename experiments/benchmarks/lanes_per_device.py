"""Lanes a second on one device: 1, 8, 64 and 256 lanes of La-MAML in one vmapped program.

    python experiments/benchmarks/lanes_per_device.py [--lanes 1,8,64,256]
    python experiments/benchmarks/lanes_per_device.py --smoke

Each number of lanes is a sweep of ``alpha_init`` over seeds on mnist-rotations (the sample),
without its compilation. The memory is the device's peak where it tells. The table goes to
experiments/results/lanes_per_device.md and the plot beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax

import cljax
from cljax.engine.learn import learn


def measured(num: int, stream: cljax.streams.Stream, policy: str) -> tuple[float, float, int]:
    """Seconds of training and testing, of compilation, and the device's peak of memory."""
    method = cljax.LaMAML(alpha_lr=0.3, capacity=200, algebra="low-rank")
    methods = [method.replace(alpha_init=0.05 + 0.1 * i / num) for i in range(num)]
    began = time.perf_counter()
    history = learn(
        methods, cljax.nets.mlp(100, 100)(10), stream, list(range(num)),
        cljax.Training(batch_size=10, lanes=policy, entries="diagonal-last"),
        running=cljax.Running(segment_seconds=5.0),
    )  # fmt: skip
    assert history is not None
    total = time.perf_counter() - began
    stats = jax.devices()[0].memory_stats() or {}
    compiled = history.time["compile_s"]
    return total - compiled, compiled, stats.get("peak_bytes_in_use", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lanes", default="1,8,64,256")
    parser.add_argument("--policy", default="vmap", choices=["vmap", "map", "threads"])
    parser.add_argument("--smoke", action="store_true", help="1 and 2 lanes of 2 small tasks")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    args = parser.parse_args()
    counts = [1, 2] if args.smoke else [int(n) for n in args.lanes.split(",")]
    small = {"num_tasks": 2, "samples_per_task": 60} if args.smoke else {}
    stream = cljax.streams.MNISTRotations(sample=True, **small).build()
    rows, speeds = [], []
    for num in counts:
        seconds, compiled, peak = measured(num, stream, args.policy)
        speeds.append(num / seconds)
        memory = f"{peak / 2**20:.0f}" if peak else "-"
        rows.append(f"| {num} | {seconds:.1f} | {compiled:.1f} | {speeds[-1]:.2f} | {memory} |")
        print(rows[-1], flush=True)
    if args.smoke:
        return
    device = jax.devices()[0]
    text = [
        "# Lanes on one device", "",
        f"Made by `python experiments/benchmarks/lanes_per_device.py --lanes {args.lanes} "
        f"--policy {args.policy}` on {device.device_kind}: La-MAML, mnist-rotations on the sample, "
        "tested on the diagonal and in the last row.", "",
        "| lanes | seconds | compilation | lanes a second | peak memory, MiB |",
        "| --- | --- | --- | --- | --- |", *rows, "",
    ]  # fmt: skip
    (args.out / "lanes_per_device.md").write_text("\n".join(text))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(counts, speeds, "o-", color="#0072B2")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("lanes in one program")
    ax.set_ylabel("lanes a second")
    ax.set_title(device.device_kind, fontsize=9)
    cljax.plot.save(ax, args.out / "lanes_per_device.png")


if __name__ == "__main__":
    main()
