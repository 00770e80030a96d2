"""How long every method compiles, worst first: its quick start, cold, in a process of its own.

    python experiments/benchmarks/compile_times.py [--data-dir DIR] [--only NAME,...]
    python experiments/benchmarks/compile_times.py --smoke

For each name in `cljax list methods`, on the first of these streams that it is made for: rotated
digits, split digits (both of the sample that cljax ships), Fashion-MNIST with held classes (which
needs the data). One seed, the method's own network and batches, nothing read from a cache. A run
traces, lowers and compiles all its programs, as many at a time as there are cores, and is stopped
at its first sign of progress. Seconds of processor, of all threads, are less disturbed by others on
the machine than those by the clock. The table goes to experiments/results/compile_times.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import cljax
from cljax import recipes
from cljax.engine.lanes import Event
from cljax.methods import METHODS

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write

STREAMS = ("mnist-rotations", "split-mnist", "fashion-5-5")
HELD = STREAMS[-1]  # not in the sample
NETS = {"lucir": "mlp:100,100:cosine"}  # of methods that ask for a head that is not the default
COMPILED = "/jax/core/compile/backend_compile_duration"
COLUMNS = ("method", "stream", "network", "seconds of processor", "by the clock", "programs",
           "slowest program", "its seconds by the clock")  # fmt: skip


class Stop(Exception):
    """Raised at the first sign of progress."""


def measured(method: str, stream: str, data_dir: str | None) -> dict[str, Any]:
    """Seconds of one run's compilation; for a process that has compiled nothing yet."""
    programs: list[tuple[float, str]] = []
    clocks: list[tuple[float, float]] = []  # by the clock and of processor: when it began, and now

    def heard(event: str, seconds: float, **about: Any) -> None:
        if event == COMPILED and clocks:
            programs.append((seconds, str(about.get("fun_name"))))
            clocks[1:] = [(time.perf_counter(), time.process_time())]

    def told(event: Event) -> None:
        if event.kind == "compile":
            clocks.append((time.perf_counter(), time.process_time()))
        elif event.kind != "note":
            raise Stop

    jax.monitoring.register_event_duration_secs_listener(heard)
    options = {"data_dir": data_dir} if stream == HELD else {"sample": True}
    recipe = recipes.recipe(method, stream).replace(**options)
    recipe = recipe.replace(net=NETS.get(method, recipe.net))
    try:
        cljax.run(recipe, seeds=[0], progress=told)
    except Stop:
        pass
    (wall, processor), (wall_after, processor_after) = clocks
    slowest, name = max(programs)
    return {
        "network": recipe.net, "processor": processor_after - processor,
        "wall": wall_after - wall, "programs": len(programs), "slowest": slowest, "name": name,
    }  # fmt: skip


def row_of(method: str, data_dir: str | None, streams: Sequence[str]) -> Sequence[Any] | None:
    """A row of the table; None for a method that none of the streams suits."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for stream in streams:
        command = [sys.executable, __file__, "--only", method, "--stream", stream]
        command += ["--data-dir", data_dir] if data_dir else []
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
            return printed([
                method, stream, found["network"], number(found["processor"], ".1f"),
                number(found["wall"], ".1f"), found["programs"], found["name"],
                number(found["slowest"], ".1f"),
            ])  # fmt: skip
        if "UserError" not in done.stderr:
            sys.exit(done.stderr)
    return None


def main() -> None:
    parser = arguments(__doc__, smoke="two methods on rotated digits", out="compile_times.md")
    parser.add_argument("--only", help="names of methods, separated by commas")
    parser.add_argument("--stream", help="measure one method on it, here, and print JSON")
    args = parser.parse_args()
    if args.stream is not None:
        print(json.dumps(measured(args.only, args.stream, args.data_dir)))
        return
    streams = STREAMS if args.data_dir else STREAMS[:-1]
    methods = ["er", "finetune"] if args.smoke else list(METHODS)
    methods = args.only.split(",") if args.only else methods
    rows = {name: row_of(name, args.data_dir, streams) for name in methods}
    if not args.smoke:
        made = [row for row in rows.values() if row is not None]
        made.sort(key=lambda row: -row[3].value)
        about = f", on {os.cpu_count()} cores, from the first trace to the last program."
        left = ", ".join(name for name, row in rows.items() if row is None)
        parts = [
            Table(COLUMNS, made),
            *(["", f"Not measured, for want of data: {left}."] * bool(left)),
        ]
        command = "python experiments/benchmarks/compile_times.py"
        write(args.out, Report("How long every method compiles", command, about, parts))


if __name__ == "__main__":
    main()
