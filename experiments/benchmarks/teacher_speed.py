"""What a window of the multi-task teacher's meta-training costs: time, memory, operations.

    python experiments/benchmarks/teacher_speed.py [--nets mlp conv resnet32] [--repeats 5]
    python experiments/benchmarks/teacher_speed.py --smoke

A window is S inner steps of E episodes, its meta-gradient, and Adam's step on the rule. For the two
small networks with S = 5 and 17, and for ResNet-32 with S = 5: seconds to compile, temporaries by
the compiled program's own analysis, windows and inner steps a second. An inner step must take

    3 F(b) student's gradient + 3 F(2b) teacher's + 2 F(2b) features of both + 2 F(2b) of the
    student's features backward + 3 G the rule forward and backward  =  17 F(b) + 3 G

floating-point operations, F(n) a forward pass of n images and G one of the rule, both as XLA counts
them, b new images a step and as many old ones; how close it comes is by the machine's matrix
products. Then the temporaries of ResNet-32's window as a compiled loop, which is what accelerators
run, with steps kept or recomputed (``remat``); and the time of a window at the beginning and at the
end of episodes of 50, 200 and 500 inner steps, which truncation keeps flat. On CPUs the
convolutional networks' steps are unrolled where their layers ask for it. The table goes to
experiments/results/teacher_speed.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from mnemonics_speed import compiled, median_ms
from timing import gemm_peak

import cljax
from cljax import resolve
from cljax.nets.transfer import convolves
from cljax.types import Variables
from cljax.update_rules import lstm_gate
from cljax.update_rules.curriculum import Level
from cljax.update_rules.windows import EpisodeBatch, Shown, StudentTeacher, window

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, device, number, printed, write

CLASSES = 10


class Problem(NamedTuple):
    """A network, its images, and the sizes of its recipe."""

    net: str
    shape: tuple[int, ...]
    batch: int  # b
    lanes: int  # E
    hidden: int
    hidden_norm: int


PROBLEMS = {
    "mlp": Problem("mlp:32,8", (14, 14, 1), 64, 4, 16, 8),
    "conv": Problem("conv:8,16,8:group", (8, 8, 3), 32, 4, 16, 8),
    "resnet32": Problem("resnet32:group", (32, 32, 3), 64, 1, 64, 32),
}
TINY = {
    "mlp": Problem("mlp:8,4", (8, 8, 1), 4, 2, 4, 4),
    "conv": Problem("conv:2,4,4:group", (8, 8, 3), 4, 2, 4, 4),
    "resnet32": Problem("resnet8:2,4,4:group", (8, 8, 3), 2, 1, 4, 4),
}


def parts(problem: Problem, longest: int, **how: bool) -> tuple[StudentTeacher, Any]:
    """What stays the same in a window, and variables of the network."""
    model = resolve.net(problem.net)(CLASSES)
    variables = model.init(jax.random.key(0), jnp.zeros((2, *problem.shape)))
    example = jax.ShapeDtypeStruct(problem.shape, jnp.float32)
    gate = lstm_gate(
        model, example, hidden=problem.hidden, hidden_norm=problem.hidden_norm
    )  # fmt: skip
    slow = jax.default_backend() == "cpu" and convolves(model, example)
    return StudentTeacher(
        model, gate, 0.1, problem.batch, longest, **{"no_loop": slow, **how}
    ), variables


def step_of(problem: Problem, steps: int, longest: int, at: int = 0, **how: bool):
    """A step of meta-training, and arguments: episodes at their inner step ``at``."""
    pair, variables = parts(problem, longest, **how)
    adam = optax.adam(1e-3)
    theta = pair.gate.init(jax.random.key(1))
    spread = lambda tree: jax.tree.map(
        lambda a: jnp.broadcast_to(a[None], (problem.lanes, *a.shape)), tree
    )
    params, none = spread(variables.params), jnp.full(problem.lanes, at, jnp.int32)
    lanes = EpisodeBatch(
        params, params, spread(pair.gate.start()), none, jnp.zeros(problem.lanes, bool)
    )  # fmt: skip
    shape = (steps, problem.lanes, 2 * problem.batch)
    x = jax.random.normal(jax.random.key(2), (*shape, *problem.shape))
    y = jax.random.randint(jax.random.key(3), shape, 0, CLASSES)
    shown = Shown(x, y, jnp.ones((*shape, CLASSES), bool))

    def step(theta, opt_state, lanes, shown):
        level = Level(jnp.asarray(1e9), jnp.asarray(steps, jnp.int32))
        grads, seen = window(pair, theta, lanes, shown, level, jnp.asarray(1.0))
        updates, opt_state = adam.update(grads, opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state, seen.lanes, seen.losses

    return step, (theta, adam.init(theta), lanes, shown)


def counted(function, *args: Any) -> float:
    """Floating-point operations of a function, as XLA counts them before it optimises."""
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return float((analysis or {}).get("flops", float("nan")))


def least_flops(problem: Problem) -> tuple[float, float, float]:
    """F(b), G, and what an inner step of one episode must take."""
    pair, variables = parts(problem, 500)
    x = jnp.zeros((problem.batch, *problem.shape))
    forward = lambda params, x: pair.model.apply(Variables(params, {}), x, False)[0].features
    tape = pair.model.tape
    assert tape is not None
    seen = jax.tree.map(jnp.zeros_like, tape(Variables(variables.params, {}), x)[1])
    theta, carry = pair.gate.init(jax.random.key(1)), pair.gate.start()
    rule = lambda theta, params, seen, carry: pair.gate.apply(theta, params, params, seen, carry)
    passed = counted(forward, variables.params, x)
    ruled = counted(rule, theta, variables.params, seen, carry)
    return passed, ruled, 17 * passed + 3 * ruled


def cost_table(
    problems: dict[str, Problem], windows: tuple[int, ...], repeats: int, peak: float
) -> Table:
    """Time, memory and operations of a window of each network; ResNet-32's once."""
    rows = []
    for name, problem in problems.items():
        passed, ruled, least = least_flops(problem)
        large = name == "resnet32"
        for steps in windows[:1] if large else windows:
            function, inputs = step_of(problem, steps, 500)
            program, took = compiled(function, inputs)
            size = program.memory_analysis().temp_size_in_bytes / 1e6
            seconds = median_ms(program, inputs, 1 if large else repeats) / 1e3
            work = steps * problem.lanes * least
            rows.append(printed([
                problem.net, problem.lanes, problem.batch, steps, number(took, ".1f"),
                number(size, ".1f"), number(1 / seconds),
                number(steps * problem.lanes / seconds, ".1f"), number(passed, ".3g"),
                number(ruled, ".3g"), number(work / 1e9, ".3g"), number(work / seconds / peak),
            ]))  # fmt: skip
    columns = ["network", "E", "b", "S", "compiling, s", "temporaries, MB", "windows/s",
               "inner steps/s, all episodes", "F(b)", "G", "GFLOP a window",
               "part of the machine's best"]  # fmt: skip
    return Table(columns, rows)


def memory_table(problem: Problem, windows: tuple[int, ...]) -> Table:
    """Temporaries of a window as a compiled loop."""
    rows = []
    for steps in windows:
        sizes = []
        for remat in (False, True):
            function, inputs = step_of(problem, steps, 500, no_loop=False, remat=remat)
            analysis = compiled(function, inputs)[0].memory_analysis()
            sizes.append(number(analysis.temp_size_in_bytes / 1e6, ".0f"))
        rows.append(printed([steps, *sizes]))
    return Table(["S", "steps kept", "steps recomputed"], rows)


def length_table(problem: Problem, steps: int, repeats: int) -> Table:
    """Time of the first and the last window of episodes."""
    rows = []
    for longest in (50, 200, 500):
        times = []
        for at in (0, longest - steps):
            function, inputs = step_of(problem, steps, longest, at)
            times.append(median_ms(compiled(function, inputs)[0], inputs, 4 * repeats))
        rows.append(printed([longest, *map(number, times)]))
    return Table(["episode", "its first window", "its last"], rows)


def main() -> None:
    parser = arguments(__doc__, smoke="tiny networks, once", data_dir=False, out="teacher_speed.md")
    parser.add_argument("--nets", nargs="*", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory()
    problems, windows = PROBLEMS, (5, 17)
    if args.smoke:
        problems, args.repeats, windows = TINY, 1, (2, 3)

    cores = os.cpu_count() or 1
    peak = gemm_peak(cores, seconds=0.2 if args.smoke else 2.0)
    on = f"{device()}, {cores} cores, {peak / 1e9:.0f} GFLOP/s in matrix products of NumPy"
    print(on, flush=True)
    chosen = {name: problems[name] for name in args.nets}
    parts: list[Table | str] = [cost_table(chosen, windows, args.repeats, peak), ""]
    if "resnet32" in args.nets:
        large = problems["resnet32"]
        parts += [f"Temporaries of {large.net}'s window as a compiled loop, MB:", "",
                  memory_table(large, windows), ""]  # fmt: skip
    small, steps = problems["mlp"], windows[0]
    parts += [
        f"{small.net}, S = {steps}: milliseconds of a window in an episode of so many inner steps.",
        "", length_table(small, steps, args.repeats),
    ]  # fmt: skip
    if not args.smoke:
        about = (
            f", on {on}; medians of {args.repeats}, ResNet-32 once. F(b) and G in operations, "
            "forward passes of b images and of the rule; an inner step of one episode must take "
            "17 F(b) + 3 G."
        )
        command = f"python experiments/benchmarks/teacher_speed.py --repeats {args.repeats}"
        title = "A window of the multi-task teacher's meta-training"
        write(args.out, Report(title, command, about, parts))


if __name__ == "__main__":
    main()
