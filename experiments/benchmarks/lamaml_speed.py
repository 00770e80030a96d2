"""La-MAML on MNIST rotations: how long the whole command takes, and what it must compute.

    python experiments/benchmarks/lamaml_speed.py [--data-dir DIR] [--repeats 3] [--out FILE.md]
        [--torch PY]

Times `cljax run lamaml mnist-rotations` as whole processes, from start to results written, on
full MNIST with 10 000 test images a task: one seed by the general path, one by the low-rank
form, five seeds; with a cold and a warm compilation cache; and one seed of 5, 10 and 20 tasks
for growth. Beside them: the arithmetic the run needs, the machine's measured GEMM peak and, with a
Python that has PyTorch, a plain loop of the same updates there, without tests.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import CORES, gemm_peak, in_pytorch, run

import cljax
from cljax.methods.algebra.first_order import meta_gradients
from cljax.types import Examples

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, over_repeats, printed, write

# The authors' PyTorch code, one thread, one seed, evaluation included, by the kind of processor.
REFERENCE_S = {"AVX-512": 170, "AVX2": 272}
UPDATES, SHOWN = 10_000, 100  # meta-updates of a seed; batches that PyTorch's loop is timed on


def flops(num_tasks: int = 20, batches: int = 100, glances: int = 5, inner: int = 10) -> float:
    """Multiply-adds count two. Rows: one inner example and 10 + 10 of the meta-batch a step."""
    layers, rows = (784 * 100, 100 * 100, 100 * 10), 1 + 20
    forward = backward_weights = 2 * rows * sum(layers)
    backward_inputs = 2 * rows * sum(layers[1:])  # the first layer's input needs no gradient
    step = forward + backward_weights + backward_inputs
    return float(step * inner * glances * batches * num_tasks)


def kind() -> str:
    """The widest vectors of this processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    return "AVX-512" if "avx512f" in flags else "AVX2"


def pytorch_loop(python: str, data_dir: str | None, num_batches: int) -> dict[str, Any]:
    """A plain loop of La-MAML's updates in PyTorch, on meta-batches and weights of ours.

    Returns:
      Its ``version``, ``threads`` and ``seconds`` for all of a seed's updates, by threads.

    Raises:
      AssertionError: if its first meta-loss is not ours.
    """
    stream = cljax.streams.MNISTRotations(data_dir=data_dir, sample=data_dir is None).build()
    plan = cljax.streams.plan(stream, 0, 10)
    rng = np.random.default_rng(0)
    rows = plan.index[:num_batches]
    replayed = np.stack([rng.choice(plan.index[: 10 * (i + 1)].ravel(), 10)
                         for i in range(num_batches)])  # fmt: skip
    chosen = np.concatenate([replayed, rows], axis=1)
    tasks = jnp.zeros(chosen.size, jnp.int32)
    shown = stream.transform.apply(
        stream.transform.tables, jnp.asarray(stream.train_x)[chosen.ravel()], tasks
    )
    x, y = np.asarray(shown).reshape(*chosen.shape, -1), np.asarray(stream.train_y)[chosen]
    model = cljax.nets.mlp(100, 100)(10)
    params = model.init(jax.random.key(0), shown[:1]).params
    arrays = {
        f"{kind}{i}": np.asarray(params[f"Dense_{i}"][name])
        for i in range(3)
        for kind, name in (("w", "kernel"), ("b", "bias"))
    }
    examples = Examples(jnp.asarray(x[0]), jnp.asarray(y[0]), tasks[: len(x[0])])
    mask = jnp.ones(len(x[0]), bool)
    inner = jax.tree.map(lambda a: a[10:, None], (examples, mask))
    ours = meta_gradients(
        params, jax.tree.map(lambda p: jnp.full_like(p, 0.1), params), {}, inner, (examples, mask),
        loss_fn=cljax.losses.classification_loss(model, stream.spec(10)),
    ).loss  # fmt: skip
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/weights.npz", x=x, y=y, size=10, **arrays)
        for threads in sorted({1, CORES}):
            made = in_pytorch(
                python, "lamaml", weights=f"{folder}/weights.npz", rate=0.1, clip=2.0, glances=5,
                threads=threads,
            )  # fmt: skip
            assert abs(made["first"] - float(ours)) < 1e-4, (made["first"], float(ours))
            seconds[threads] = made["seconds"][0] * UPDATES / (5 * num_batches)
    return {"version": made["version"], "seconds": seconds}


def row_of(
    name: str, options: list[str], work: float, repeats: int, cache: str | None = None
) -> Sequence[Any]:
    """A row of a run that needs ``work`` floating-point operations in its meta-updates."""
    timings = [run("lamaml", "mnist-rotations", options, cache) for _ in range(repeats)]
    middle = sorted(timings, key=lambda t: t.wall_s)[len(timings) // 2]
    return printed([
        name, over_repeats([timing.wall_s for timing in timings]),
        number(middle.compile_s, ".1f"), number(middle.train_s, ".1f"),
        number(middle.eval_s, ".1f"), number(work / middle.train_s / 1e9, ".0f"),
        number(middle.peak_mb, ".0f"),
    ])  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, smoke="2 tasks of the sample, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    args = parser.parse_args()

    shared = ["--data-dir", args.data_dir] if args.data_dir and not args.smoke else []
    shared += ["--num-tasks", "2", "--samples-per-task", "100"] if args.smoke else []
    repeats, num_tasks, batches = (1, 2, 10) if args.smoke else (args.repeats, 20, 100)
    peak, work = gemm_peak(CORES), flops(num_tasks, batches)
    machine = [
        f"{platform.processor() or platform.machine()}, {CORES} cores, Python "
        f"{platform.python_version()}; float32 GEMM peak {peak / 1e9:.0f} GFLOP/s on all cores.",
        f"One seed needs {work / 1e12:.3f} TFLOP in its meta-updates: {work / peak:.1f} s at that "
        f"peak. On a processor with {kind()}, as this one, the authors' code took "
        f"{REFERENCE_S[kind()]} s.",
    ]
    if args.torch:
        shown = 5 if args.smoke else SHOWN
        peer = pytorch_loop(args.torch, args.data_dir, shown)
        loops = ", ".join(f"{s:.0f} s with threads={n}" for n, s in peer["seconds"].items())
        machine.append(
            f"A plain loop of the same updates in PyTorch {peer['version']}, without tests, takes "
            f"{loops} (from the first {shown} batches)."
        )
    print("\n".join(machine), flush=True)
    enough = ["--entries", "diagonal-last"]  # all that RA, LA and BTI need
    forms = {form: [*shared, "--algebra", form] for form in ("general", "low-rank")}
    counts = {"one seed": (["--seed", "0"], 1), "five seeds": (["--seeds", "5"], 5)}
    rows = [
        row_of(f"{count}, {form}", [*options, *seeds], n * work, repeats)
        for count, (seeds, n) in counts.items()
        for form, options in forms.items()
    ]
    rows += [
        row_of(f"{count}, {form}, diagonal and last row", [*forms[form], *counts[count][0],
                *enough], counts[count][1] * work, repeats)
        for count, form in (
            ("one seed", "low-rank"), ("five seeds", "general"), ("five seeds", "low-rank"),
        )
    ]  # fmt: skip
    one = {form: [*options, "--seed", "0"] for form, options in forms.items()}
    with tempfile.TemporaryDirectory() as cache:
        for options in one.values():
            run("lamaml", "mnist-rotations", options, cache)
        rows += [
            row_of(f"one seed, {form}, warm cache", options, work, repeats, cache)
            for form, options in one.items()
        ]
    for tasks in () if args.smoke else (5, 10):
        options = [*one["low-rank"], "--num-tasks", str(tasks)]
        rows.append(
            row_of(f"one seed, low-rank, {tasks} tasks", options, work * tasks / 20, repeats)
        )
    if args.out:
        columns = ["run", "whole process s (median, range)", "compile s", "train s",
                   "evaluation s", "train GFLOP/s a thread", "peak MB"]  # fmt: skip
        parts = [*machine, "", Table(columns, rows)]
        command = "python experiments/benchmarks/lamaml_speed.py"
        write(args.out, Report("Speed of La-MAML on MNIST rotations", command, ".", parts))


if __name__ == "__main__":
    main()
