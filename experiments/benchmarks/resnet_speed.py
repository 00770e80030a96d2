"""A training step of a residual network: time in JAX, and of the same network in PyTorch.

    python experiments/benchmarks/resnet_speed.py [--net resnet18-third] [--batch 128] [--torch PY]
    python experiments/benchmarks/resnet_speed.py --smoke

A step is forward, backward and the SGD update of one batch of 32x32 images, float32 unless the
network's name says bfloat16; the compilation is apart. Variants show where the time goes: another
max-pool, no BatchNorm (which is another network), each stage's convolution alone in two layouts;
and, on CPUs, what is cheap to gain: the C library keeps freed memory (``engine.allocator``, as the
command line has it), and the batch is split over two host devices. ``--torch`` names a Python with
PyTorch, which then times ResNet-18(1/3) or ResNet-32 (``--net resnet32:linear``) with as many
threads as cores. The tables go to experiments/results, a file a network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from timing import CORES, Timed, gemm_peak, in_pytorch, timed

from cljax import resolve
from cljax.engine.allocator import keep_freed_memory
from cljax.losses import cross_entropy
from cljax.nets import residual
from cljax.types import Variables

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write

WIDTHS = (21, 42, 85, 170)
STAGES = ((32, 21), (32, 42), (16, 85), (8, 170))  # of the 3x3 convolutions: image size, width
CLASSES = 100

# What is cheap to gain on a CPU: (label, whether freed memory is kept, host devices).
CHEAP = {
    "kept": ("freed memory kept", True, 1),
    "split": ("batch over two host devices", False, 2),
    "both": ("both", True, 2),
}


def training_step(net: str, batch: int, repeats: int) -> tuple[Timed, float]:
    """A training step in JAX, its batch split over all devices, and the seconds of compiling it."""
    model = resolve.net(net)(CLASSES)
    x = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    y = jnp.arange(batch) % CLASSES
    variables = jax.jit(model.init)(jax.random.key(0), x)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    put = lambda value, *axes: jax.device_put(
        value, jax.NamedSharding(mesh, jax.P(*axes))
    )  # fmt: skip
    x, y, variables = put(x, "batch"), put(y, "batch"), put(variables)

    def loss(params: Any, model_state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        output, model_state = model.apply(Variables(params, model_state), x, True)
        return jnp.mean(cross_entropy(output.logits, y)), model_state

    def step(variables: Variables, x: Any, y: Any) -> Variables:
        grads, model_state = jax.grad(loss, has_aux=True)(*variables, x, y)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables.params, grads)
        return Variables(params, model_state)

    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(variables, x, y).compile()
    compile_s = time.perf_counter() - start

    def once() -> None:
        nonlocal variables
        variables = jax.block_until_ready(compiled(variables, x, y))

    return timed(once, repeats), compile_s


def cheap(kind: str, args: argparse.Namespace) -> Timed:
    """The step in a process of its own, since neither of these can be changed later."""
    _, _, devices = CHEAP[kind]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, __file__, "--in-jax", kind, "--net", args.net]
    command += ["--batch", str(args.batch), "--repeats", str(args.repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return Timed(*json.loads(done.stdout))


def multiply_adds(net: str) -> int:
    """Of the convolutions of one image's forward pass, from the traced program."""
    model = resolve.net(net)(CLASSES)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, False)[0].logits)(variables, x)

    def count(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                kernel = eqn.invars[1].aval
                total += eqn.outvars[0].aval.size * kernel.size // kernel.shape[-1]
            total += sum(count(p.jaxpr) for p in eqn.params.values() if hasattr(p, "jaxpr"))
        return total

    return count(program.jaxpr)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def variants(net: str, batch: int, repeats: int) -> list[tuple[str, Timed]]:
    """A training step with one part replaced; only of networks made of these parts."""

    class Absent(nn.Module):
        param_dtype: Any = None

        @nn.compact
        def __call__(self, x: Any, train: bool, member: Any = None) -> Any:
            self.variable("batch_stats", "none", lambda: jax.numpy.zeros(()))
            return x

    window = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    rows = []
    for what, name, value in (
        ("max-pool as a window reduction", "halve", window),
        ("no BatchNorm (another network)", "BatchNorm", Absent),
    ):
        with replaced(residual, name, value):
            rows.append((what, training_step(net, batch, repeats)[0]))
    return rows


def convolution(size: int, width: int, batch: int, layout: str, repeats: int) -> Timed:
    """A 3x3 convolution, forward and both gradients, in JAX."""
    shape = (batch, size, size, width) if layout == "NHWC" else (batch, width, size, size)
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width))

    def loss(x: Any, kernel: Any) -> Any:
        dims = (layout, "HWIO", layout)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.sum(jnp.sin(y))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return timed(lambda: jax.block_until_ready(grads(x, kernel)), repeats)


def torch_times(args: argparse.Namespace) -> dict[str, Any]:
    """The same step and convolutions in PyTorch, of a network with as many parameters."""
    kind, _, given = args.net.removesuffix(":linear").partition(":")
    default = WIDTHS if kind == "resnet18-third" else (16, 32, 64)
    widths = tuple(int(w) for w in given.split(",") if w) or default
    torch = in_pytorch(
        args.torch, "resnet", kind=kind, widths=widths, classes=CLASSES, stages=STAGES,
        batch=args.batch, repeats=args.repeats,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params = jax.eval_shape(resolve.net(args.net)(CLASSES).init, jax.random.key(0), x).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == torch["parameters"]
    return torch


def steps_of(args: argparse.Namespace, torch: dict[str, Any] | None) -> list[tuple[str, Timed]]:
    """All training steps that are timed; the first two are the plain one."""
    net, batch, repeats = args.net, args.batch, args.repeats
    first, compile_s = training_step(net, batch, repeats)
    again, _ = training_step(net, batch, repeats)
    found = [(f"JAX (compilation {compile_s:.1f} s)", first), ("JAX, once more", again)]
    if net.startswith("resnet18-third"):
        found += [(f"JAX, {name}", taken) for name, taken in variants(net, batch, repeats)]
    if jax.default_backend() == "cpu":
        found += [(f"JAX, {name}", cheap(kind, args)) for kind, (name, *_) in CHEAP.items()]
    steps = torch["steps"] if torch else {}
    return found + [(f"PyTorch, {name}", Timed(*taken)) for name, taken in steps.items()]


def step_table(args: argparse.Namespace, steps: list[tuple[str, Timed]], work: float) -> Table:
    best = min(taken.best for _, taken in steps[:2])
    rows = [
        printed([
            name, *(number(1e3 * seconds, ".0f") for seconds in taken),
            number(args.batch / taken.best, ".0f"), number(work / taken.best / 1e9, ".0f"),
            number(best / taken.best),
        ])
        for name, taken in steps
    ]  # fmt: skip
    columns = ["training step", "median ms", "best ms", "CPU ms", "images/s", "GFLOP/s",
               "speed, JAX = 1"]  # fmt: skip
    return Table(columns, rows)


def convolution_table(args: argparse.Namespace, torch: dict[str, Any] | None) -> Table:
    rows = []
    for i, (size, width) in enumerate(STAGES):
        each = [convolution(size, width, args.batch, lay, args.repeats) for lay in ("NHWC", "NCHW")]
        each += [Timed(*taken) for taken in torch["convolutions"][i]] if torch else []
        work = 6 * 9 * width**2 * size**2 * args.batch
        rates = (number(work / taken.best / 1e9, ".0f") for taken in each)
        rows.append(printed([f"{size}x{size}, {width}", *rates]))
    columns = ["size, width", "JAX NHWC", "JAX NCHW"]
    return Table(columns + (["PyTorch", "channels_last"] if torch else []), rows)


def report(args: argparse.Namespace) -> Report:
    device, macs = jax.devices()[0], multiply_adds(args.net)
    peak = ""
    if device.platform == "cpu":
        peak = f"; float32 GEMM peak {gemm_peak(CORES) / 1e9:.0f} GFLOP/s"
    torch = torch_times(args) if args.torch else None
    version = f", PyTorch {torch['version']}, {CORES} threads" if torch else ""
    parts = [
        f"{device.device_kind}, {CORES} cores{peak}; JAX {jax.__version__}{version}.",
        f"`{args.net}`, batches of {args.batch}, 32x32 images, {CLASSES} outputs. An image needs "
        f"{macs / 1e6:.0f} M multiply-adds forward, so {6 * macs / 1e9:.2f} GFLOP a training step "
        f"(2 operations, 3 passes). Of {args.repeats} steps; rates and ratios are of the best.", "",
        step_table(args, steps_of(args, torch), 6 * macs * args.batch), "",
        "A 3x3 convolution alone, forward and both gradients (and a sine), GFLOP/s at best:", "",
        convolution_table(args, torch),
    ]  # fmt: skip
    command = f"python experiments/benchmarks/resnet_speed.py --net {args.net} --batch {args.batch}"
    command += f" --repeats {args.repeats}" + (" --torch PY" if args.torch else "")
    return Report(f"Speed of {args.net}", command, ".", parts)


def main() -> None:
    parser = arguments(__doc__, smoke="small widths, 2 images, one repeat", data_dir=False, out="")
    parser.add_argument("--net", default="resnet18-third")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    parser.add_argument("--in-jax", choices=CHEAP, help="a variant's step alone, as JSON")
    args = parser.parse_args()
    if args.smoke:
        args.net, args.batch, args.repeats = "resnet18-third:2,3,4,5", 2, 1
    if args.in_jax:
        if CHEAP[args.in_jax][1]:
            keep_freed_memory()
        print(json.dumps(training_step(args.net, args.batch, args.repeats)[0]))
        return
    if args.torch and not re.fullmatch(r"resnet18-third(:[\d,]+)?|resnet32:linear", args.net):
        parser.error("--torch times resnet18-third and resnet32:linear in float32 only")
    made = report(args)
    if not args.smoke:
        write(args.out / f"{args.net.partition(':')[0]}_speed.md", made)


if __name__ == "__main__":
    main()
