"""A training step of a residual network: time in JAX, and of the same network in PyTorch.

    python experiments/benchmarks/resnet_speed.py [--net resnet32:linear] [--batch 128] [--torch PY]
    python experiments/benchmarks/resnet_speed.py --smoke

A step is forward, backward and the SGD update of one batch of 32x32 images, float32 unless the
network's name says bfloat16; the compilation is apart. The same step is timed in a compiled loop,
and of four sets of weights by ``vmap``. A second table has the 3x3 convolution of each stage by
itself: ``lax.conv_general_dilated`` and ``cljax.nets.convolve``, in and out of a loop, with one
kernel and four. On CPUs freed memory is kept (``engine.allocator``, as the command line has it).
``--torch`` names a Python with PyTorch, which then times ResNet-18(1/3) or ResNet-32
(``--net resnet32:linear``) with as many threads as cores. The tables go to experiments/results, a
file a network.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import CORES, Timed, gemm_peak, in_pytorch, timed

from cljax import resolve
from cljax.engine.allocator import keep_freed_memory
from cljax.engine.work import counted
from cljax.losses import cross_entropy
from cljax.nets.convolve import convolve
from cljax.types import Variables

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write

# By network: widths, and (image size, width) of the 3x3 convolutions.
STAGES = {
    "resnet32": ((16, 32, 64), ((32, 16), (16, 32), (8, 64))),
    "resnet18-third": ((21, 42, 85, 170), ((32, 21), (32, 42), (16, 85), (8, 170))),
}
CLASSES, LOOP, SETS, FEW = 100, 2, 4, 16


def training_steps(net: str, batch: int, repeats: int) -> tuple[list[tuple[str, Timed]], float]:
    """A training step by itself, in a loop and of several sets of weights; seconds of compiling."""
    model = resolve.net(net)(CLASSES)
    x = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    y = jnp.arange(batch) % CLASSES
    variables = jax.jit(model.init)(jax.random.key(0), x)
    several = jax.tree.map(lambda a: jnp.stack([a] * SETS), variables)

    def loss(params: Any, model_state: Any) -> tuple[Any, Any]:
        output, model_state = model.apply(Variables(params, model_state), x, True)
        return jnp.mean(cross_entropy(output.logits, y)), model_state

    def step(variables: Variables) -> Variables:
        grads, model_state = jax.grad(loss, has_aux=True)(*variables)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables.params, grads)
        return Variables(params, model_state)

    loop = lambda variables: jax.lax.fori_loop(0, LOOP, lambda _, v: step(v), variables)
    found, compiling = [], 0.0
    for name, fn, first, steps in (
        ("JAX", step, variables, 1),
        ("JAX, in a compiled loop", loop, variables, LOOP),
        (f"JAX, each of {SETS} sets of weights", jax.vmap(step), several, SETS),
    ):
        start = time.perf_counter()
        compiled = jax.jit(fn).lower(first).compile()
        compiling = compiling or time.perf_counter() - start
        taken = timed(lambda go=compiled, at=first: jax.block_until_ready(go(at)), repeats, 1)
        found.append((name, Timed(*(t / steps for t in taken))))
    return found, compiling


def flops(net: str) -> float:
    """Of the forward pass of one image, of convolutions and products."""
    model = resolve.net(net)(CLASSES)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return counted(lambda v, x: model.apply(v, x, False)[0].logits, variables, x).flops


def by_xla(x: Any, kernel: Any) -> Any:
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order)


def rates(size: int, width: int, args: argparse.Namespace) -> list[float]:
    """FLOP/s of a 3x3 convolution with both gradients: XLA's and ours, alone and in a loop, and
    ours with several kernels. Slow ones are timed with few images."""
    kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width)) / 3 / width**0.5

    def rate(convolved: Callable[..., Any], batch: int, loop: int = 1, sets: int = 1) -> float:
        x = jax.random.normal(jax.random.key(0), (batch, size, size, width))
        loss = lambda x, kernel: jnp.sum(jnp.sin(convolved(x, kernel)))
        down = lambda pair: jax.tree.map(
            lambda a, g: a - 0.01 * g, pair, jax.grad(loss, (0, 1))(*pair)
        )
        once = down if loop == 1 else lambda p: jax.lax.fori_loop(0, loop, lambda _, p: down(p), p)
        program = jax.jit(once if sets == 1 else jax.vmap(once))
        stacked = lambda a: a if sets == 1 else jnp.stack([a] * sets)
        pair = stacked(x), stacked(kernel)
        taken = timed(lambda: jax.block_until_ready(program(pair)), args.repeats, 1)
        return 6 * kernel.size * size**2 * batch * loop * sets / taken.best

    ours = lambda x, kernel: convolve(x, kernel, 1, 1)
    few = min(FEW, args.batch)
    return [
        rate(by_xla, args.batch), rate(by_xla, few, LOOP),
        rate(ours, args.batch), rate(ours, args.batch, LOOP), rate(ours, args.batch, 1, SETS),
    ]  # fmt: skip


def torch_times(args: argparse.Namespace, stages: Any) -> dict[str, Any]:
    """The same step and convolutions in PyTorch, of a network with as many parameters."""
    kind, _, given = args.net.removesuffix(":linear").partition(":")
    widths = tuple(int(w) for w in given.split(",") if w) or STAGES[kind][0]
    torch = in_pytorch(
        args.torch, "resnet", kind=kind, widths=widths, classes=CLASSES, stages=stages,
        batch=args.batch, repeats=args.repeats,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params = jax.eval_shape(resolve.net(args.net)(CLASSES).init, jax.random.key(0), x).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == torch["parameters"]
    return torch


def step_table(args: argparse.Namespace, steps: list[tuple[str, Timed]], work: float) -> Table:
    own = steps[0][1].best
    rows = [
        printed([
            name, *(number(1e3 * seconds, ".0f") for seconds in taken),
            number(args.batch / taken.best, ".0f"), number(work / taken.best / 1e9, ".0f"),
            number(taken.best / own),
        ])
        for name, taken in steps
    ]  # fmt: skip
    columns = ["training step", "median ms", "best ms", "CPU ms", "images/s", "GFLOP/s",
               "time, JAX = 1"]  # fmt: skip
    return Table(columns, rows)


def convolution_table(args: argparse.Namespace, stages: Any, torch: Any) -> Table:
    rows = []
    for i, (size, width) in enumerate(stages):
        each = rates(size, width, args)
        if torch:
            work = 6 * 9 * width**2 * size**2 * args.batch
            each += [work / Timed(*taken).best for taken in torch["convolutions"][i]]
        rows.append(printed([f"{size}x{size}, {width}", *(number(r / 1e9, ".1f") for r in each)]))
    columns = ["size, width", "XLA", "XLA, in a loop", "JAX", "JAX, in a loop",
               f"JAX, {SETS} kernels"]  # fmt: skip
    return Table(columns + (["PyTorch", "channels_last"] if torch else []), rows)


def report(args: argparse.Namespace) -> Report:
    device, forward = jax.devices()[0], flops(args.net)
    stages = STAGES[args.net.partition(":")[0]][1]
    peak = ""
    if device.platform == "cpu":
        peak = f"; float32 GEMM peak {gemm_peak(CORES) / 1e9:.0f} GFLOP/s"
    torch = torch_times(args, stages) if args.torch else None
    version = f", PyTorch {torch['version']}, {CORES} threads" if torch else ""
    steps, compiling = training_steps(args.net, args.batch, args.repeats)
    steps += [(f"PyTorch, {k}", Timed(*t)) for k, t in (torch["steps"] if torch else {}).items()]
    parts = [
        f"{device.device_kind}, {CORES} cores{peak}; JAX {jax.__version__}{version}.",
        f"`{args.net}`, batches of {args.batch}, 32x32 images, {CLASSES} outputs. An image needs "
        f"{forward / 2e6:.0f} M multiply-adds forward, so {3 * forward / 1e9:.2f} GFLOP a training "
        f"step (2 operations, 3 passes). Of {args.repeats} steps; rates and ratios are of the "
        f"best. Compilation took {compiling:.1f} s.", "",
        step_table(args, steps, 3 * forward * args.batch), "",
        "A 3x3 convolution alone, forward and both gradients (and a sine), GFLOP/s at best; "
        f"XLA's in a loop with {FEW} images:", "",
        convolution_table(args, stages, torch),
    ]  # fmt: skip
    command = f"python experiments/benchmarks/resnet_speed.py --net {args.net} --batch {args.batch}"
    command += f" --repeats {args.repeats}" + (" --torch PY" if args.torch else "")
    return Report(f"Speed of {args.net}", command, ".", parts)


def main() -> None:
    parser = arguments(__doc__, smoke="small widths, 2 images, one repeat", data_dir=False, out="")
    parser.add_argument("--net", default="resnet32:linear")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    args = parser.parse_args()
    if args.smoke:
        args.net, args.batch, args.repeats = "resnet18-third:2,3,4,5", 2, 1
    if args.torch and not re.fullmatch(r"resnet18-third(:[\d,]+)?|resnet32:linear", args.net):
        parser.error("--torch times resnet18-third and resnet32:linear in float32 only")
    keep_freed_memory(large=True)
    made = report(args)
    if not args.smoke:
        write(args.out / f"{args.net.partition(':')[0]}_speed.md", made)


if __name__ == "__main__":
    main()
