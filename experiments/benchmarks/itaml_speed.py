"""How long iTAML takes on MNIST: the whole command, and an update against the tasks seen.

    python experiments/benchmarks/itaml_speed.py --data-dir DIR
    python experiments/benchmarks/itaml_speed.py --smoke

The command is `cljax run itaml split-mnist --seed 0`, a new process each time, compiled programs
not kept; medians over the repeats. An update is one mini-batch of 256 on one core, its examples
spread over the tasks as in a run (the current one's and 2000 exemplars'); in a mini-batch of s
tasks the general update takes s steps, so its cost may grow with them, and its memory may not. The
table goes to experiments/results/itaml_speed.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing

import cljax
from cljax import resolve, tree
from cljax.types import Batch, Clock

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write

NET, SIZE, INNER = "mlp:400,400:pytorch:no-head-bias", 256, 20
MODES = {
    "paper, one gradient": {"mode": "paper", "algebra": "one-gradient"},
    "paper, SGD": {"mode": "paper"},
    "paper, RAdam": {"mode": "paper", "optimizer": "radam"},
    "released, momentum": {"mode": "released", "optimizer": "momentum", "weight_decay": 1e-3},
    "released, RAdam": {"mode": "released", "optimizer": "radam"},
}


def batch_of(seen: int, spec) -> Batch:
    rng = np.random.default_rng(0)
    share = 0 if seen == 1 else 2000 / 14_000
    old = rng.integers(0, max(seen - 1, 1), SIZE)
    task = np.where(rng.random(SIZE) < share, old, seen - 1).astype(np.int32)
    x = jnp.asarray(rng.normal(size=(SIZE, *spec.example.shape)), jnp.float32)
    clock = Clock(jnp.int32(seen - 1), *(jnp.int32(0),) * 2, jnp.bool_(True), jnp.bool_(False))
    task = jnp.asarray(task)
    return Batch(x, task * 2, task, jnp.ones(SIZE, bool), jnp.full(SIZE, -1), clock)


def update_times(options: dict, spec, repeats: int) -> tuple[list[float], int]:
    """Milliseconds an update with 1 to 5 tasks seen, and bytes of the state."""
    method = cljax.ITAML(lr=0.01, **options)
    learner = method.bind(resolve.net(NET)(spec.num_classes), spec)
    state = learner.init(jax.random.key(0))

    def many(state, batch):
        return jax.lax.fori_loop(0, INNER, lambda i, s: learner.update(s, batch, ())[0], state)

    run = jax.jit(many, compiler_options={"xla_cpu_multi_thread_eigen": False})
    found = []
    for seen in range(1, 6):
        batch = batch_of(seen, spec)
        jax.block_until_ready(run(state, batch))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(run(state, batch))
            times.append((time.perf_counter() - start) / INNER * 1e3)
        found.append(statistics.median(times))
    return found, tree.size(state)


def main() -> None:
    parser = arguments(__doc__, smoke="the sample, once, two modes", out="itaml_speed.md")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    repeats, modes = (1, list(MODES)[:2]) if args.smoke else (args.repeats, list(MODES))
    data = ["--sample", "--epochs", "1"] if args.smoke else ["--data-dir", args.data_dir]
    runs = [timing.run("itaml", "split-mnist", ["--seed", "0", *data]) for _ in range(repeats)]
    took = [run.wall_s for run in runs]
    middle = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in ("wall_s", "compile_s", "train_s", "eval_s")
    }
    whole = (
        "`cljax run itaml split-mnist --seed 0`, whole process, nothing kept from before: median "
        f"{middle['wall_s']:.1f} s of {len(took)} ({', '.join(f'{s:.1f}' for s in took)}); "
        f"compiling {middle['compile_s']:.1f} s, training {middle['train_s']:.1f} s and tests "
        f"{middle['eval_s']:.1f} s of threads; at most {max(run.peak_mb for run in runs):.0f} MB."
    )
    print(whole, flush=True)
    stream, rows = cljax.streams.SplitMNIST(sample=True).build(), []
    for name in modes:
        times, size = update_times(MODES[name], stream.spec(SIZE), repeats)
        rows.append(printed([name, *map(number, times), number(size / 1e6, ".1f")]))
    if args.smoke:
        return
    columns = ["update", "1 task seen, ms", "2", "3", "4", "5", "state, MB"]
    command = "python experiments/benchmarks/itaml_speed.py --data-dir DIR"
    parts, numbers = (
        [whole, "", Table(columns, rows)],
        {"whole process, median s": middle["wall_s"]},
    )
    about = f", on {os.cpu_count()} cores."
    write(args.out, Report("iTAML's speed on MNIST", command, about, parts, numbers))


if __name__ == "__main__":
    main()
