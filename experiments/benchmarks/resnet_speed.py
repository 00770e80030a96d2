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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

WIDTHS = (21, 42, 85, 170)
STAGES = ((32, 21), (32, 42), (16, 85), (8, 170))  # of the 3x3 convolutions: image size, width
CLASSES = 100
CORES = len(os.sched_getaffinity(0))


class Timed(NamedTuple):
    """Seconds of a step; ``cpu`` is all threads' time, less disturbed by others on the machine."""

    median: float
    best: float
    cpu: float


def timed(step: Callable[[], Any], repeats: int, warm_up: int = 2) -> Timed:
    taken, spent = [], []
    for _ in range(warm_up + repeats):
        start, cpu = time.perf_counter(), time.process_time()
        step()
        taken.append(time.perf_counter() - start)
        spent.append(time.process_time() - cpu)
    taken, spent = taken[warm_up:], spent[warm_up:]
    return Timed(statistics.median(taken), min(taken), statistics.median(spent))


# What is cheap to gain on a CPU: (label, whether freed memory is kept, host devices).
CHEAP = {
    "kept": ("freed memory kept", True, 1),
    "split": ("batch over two host devices", False, 2),
    "both": ("both", True, 2),
}


def training_step(net: str, batch: int, repeats: int) -> tuple[Timed, float]:
    """A training step in JAX, its batch split over all devices, and the seconds of compiling it."""
    import jax
    import jax.numpy as jnp

    from cljax import resolve
    from cljax.losses import cross_entropy
    from cljax.types import Variables

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
    import jax
    import jax.numpy as jnp

    from cljax import resolve

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
    import flax.linen as nn
    import jax

    from cljax.nets import residual

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
    import jax
    import jax.numpy as jnp

    shape = (batch, size, size, width) if layout == "NHWC" else (batch, width, size, size)
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width))

    def loss(x: Any, kernel: Any) -> Any:
        dims = (layout, "HWIO", layout)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.sum(jnp.sin(y))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return timed(lambda: jax.block_until_ready(grads(x, kernel)), repeats)


def in_torch(kind: str, widths: tuple[int, ...], batch: int, repeats: int) -> dict[str, Any]:
    """The same step and convolutions in PyTorch, in both memory formats; ``Timed``s as lists."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(CORES)

    class Block(nn.Module):
        def __init__(self, fan_in: int, width: int, project: bool, pool: bool) -> None:
            super().__init__()
            self.first, self.second = conv_bn(fan_in, width), conv_bn(width, width)
            self.shortcut = conv_bn(fan_in, width, 1) if project else None
            self.pool = pool

        def forward(self, x: Any) -> Any:
            y = self.second(F.relu(self.first(x)))
            y = y + (x if self.shortcut is None else F.relu(self.shortcut(x)))
            return F.relu(F.max_pool2d(y, 2, 2) if self.pool else y)

    def conv_bn(
        fan_in: int, width: int, kernel: int = 3, stride: int = 1, bias: bool = True
    ) -> Any:
        conv = nn.Conv2d(fan_in, width, kernel, stride, padding=kernel // 2, bias=bias)
        return nn.Sequential(conv, nn.BatchNorm2d(width))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks, last = [], widths[0]
            for stage, width in enumerate(widths):
                blocks.append(Block(last, width, project=stage > 0, pool=False))
                blocks.append(Block(width, width, project=False, pool=stage in (1, 2)))
                last = width
            self.stem, self.blocks = conv_bn(3, widths[0]), nn.Sequential(*blocks)
            self.head = nn.Linear(last, CLASSES, bias=False)

        def forward(self, x: Any) -> Any:
            x = self.blocks(F.relu(self.stem(x)))
            return self.head(x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3))

    class Plain(nn.Module):
        def __init__(self, fan_in: int, width: int, stride: int) -> None:
            super().__init__()
            self.first = conv_bn(fan_in, width, stride=stride, bias=False)
            self.second = conv_bn(width, width, bias=False)
            short = conv_bn(fan_in, width, 1, stride=stride, bias=False)
            self.shortcut = short if stride > 1 else None

        def forward(self, x: Any) -> Any:
            y = self.second(F.relu(self.first(x)))
            return y + (x if self.shortcut is None else self.shortcut(x))

    class Cifar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks, last = [], widths[0]
            for stage, width in enumerate(widths):
                for block in range(5):
                    blocks.append(Plain(last, width, 2 if stage and not block else 1))
                    blocks.append(nn.ReLU())
                    last = width
            self.stem = conv_bn(3, widths[0], bias=False)
            self.blocks, self.head = nn.Sequential(*blocks[:-1]), nn.Linear(last, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))

    made = Network if kind == "resnet18-third" else Cifar

    def training(layout: Any) -> Timed:
        network = made().to(memory_format=layout)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
        y = torch.arange(batch) % CLASSES

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

        return timed(step, repeats)

    def convolution(size: int, width: int, layout: Any) -> Timed:
        x = torch.randn(batch, width, size, size).to(memory_format=layout).requires_grad_()
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False).to(memory_format=layout)
        return timed(lambda: torch.autograd.grad(conv(x).sin().sum(), (x, conv.weight)), repeats)

    layouts = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last")}
    return {
        "version": torch.__version__,
        "parameters": sum(p.numel() for p in made().parameters()),
        "steps": {name: training(layout) for name, layout in layouts.items()},
        "convolutions": [
            [convolution(size, width, layout) for layout in layouts.values()]
            for size, width in STAGES
        ],
    }


def same_parameters(net: str, number: int) -> bool:
    import jax

    from cljax import resolve

    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params = jax.eval_shape(resolve.net(net)(CLASSES).init, jax.random.key(0), x).params
    return sum(leaf.size for leaf in jax.tree.leaves(params)) == number


def tables(args: argparse.Namespace) -> list[str]:
    import jax
    from timing import gemm_peak

    device = jax.devices()[0]
    macs, batch = multiply_adds(args.net), args.batch
    work = 6 * macs * batch
    peak = (
        f"; float32 GEMM peak {gemm_peak(CORES) / 1e9:.0f} GFLOP/s"
        if device.platform == "cpu"
        else ""
    )
    first, compile_s = training_step(args.net, batch, args.repeats)
    torch = None
    if args.torch:
        command = [args.torch, "-W", "ignore", __file__, "--in-torch", "--net", args.net]
        command += ["--batch", str(batch), "--repeats", str(args.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        torch = json.loads(done.stdout)
        assert same_parameters(args.net, torch["parameters"]), torch["parameters"]
    again, _ = training_step(args.net, batch, args.repeats)
    best = min(first.best, again.best)
    lines = [
        f"{device.device_kind}, {CORES} cores{peak}; JAX {jax.__version__}"
        + (f", PyTorch {torch['version']}, {CORES} threads" if torch else "") + ".",
        f"`{args.net}`, batches of {batch}, 32x32 images, {CLASSES} outputs. An image needs "
        f"{macs / 1e6:.0f} M multiply-adds forward, so {6 * macs / 1e9:.2f} GFLOP a training step "
        f"(2 operations, 3 passes). Of {args.repeats} steps; rates and ratios are of the best.",
        "",
        "| training step | median ms | best ms | CPU ms | images/s | GFLOP/s | speed, JAX = 1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip

    def row(name: str, taken: Timed) -> None:
        lines.append(
            f"| {name} | {1e3 * taken.median:.0f} | {1e3 * taken.best:.0f} | "
            f"{1e3 * taken.cpu:.0f} | {batch / taken.best:.0f} | {work / taken.best / 1e9:.0f} | "
            f"{best / taken.best:.2f} |"
        )

    row(f"JAX (compilation {compile_s:.1f} s)", first)
    row("JAX, once more", again)
    if args.net.startswith("resnet18-third"):
        for name, taken in variants(args.net, batch, args.repeats):
            row(f"JAX, {name}", taken)
    for kind, (name, *_) in CHEAP.items() if device.platform == "cpu" else ():
        row(f"JAX, {name}", cheap(kind, args))
    for name, taken in torch["steps"].items() if torch else ():
        row(f"PyTorch, {name}", Timed(*taken))
    lines += [
        "",
        "A 3x3 convolution alone, forward and both gradients (and a sine), GFLOP/s at best:",
        "",
        "| size, width | JAX NHWC | JAX NCHW |" + (" PyTorch | channels_last |" if torch else ""),
        "| --- | --- | --- |" + (" --- | --- |" if torch else ""),
    ]
    for i, (size, width) in enumerate(STAGES):
        both = [convolution(size, width, batch, lay, args.repeats) for lay in ("NHWC", "NCHW")]
        both += [Timed(*taken) for taken in torch["convolutions"][i]] if torch else []
        rates = [f"{6 * 9 * width**2 * size**2 * batch / t.best / 1e9:.0f}" for t in both]
        lines.append(f"| {size}x{size}, {width} | {' | '.join(rates)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", default="resnet18-third")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    parser.add_argument("--in-torch", action="store_true", help="PyTorch's part alone, as JSON")
    parser.add_argument("--in-jax", choices=CHEAP, help="a variant's step alone, as JSON")
    parser.add_argument("--smoke", action="store_true", help="small widths, 2 images, one repeat")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    args = parser.parse_args()
    if args.smoke:
        args.net, args.batch, args.repeats = "resnet18-third:2,3,4,5", 2, 1
    if args.in_torch:
        kind, _, given = args.net.removesuffix(":linear").partition(":")
        default = WIDTHS if kind == "resnet18-third" else (16, 32, 64)
        widths = tuple(int(w) for w in given.split(",") if w) or default
        print(json.dumps(in_torch(kind, widths, args.batch, args.repeats)))
        return
    if args.in_jax:
        from cljax.engine.allocator import keep_freed_memory

        if CHEAP[args.in_jax][1]:
            keep_freed_memory()
        print(json.dumps(training_step(args.net, args.batch, args.repeats)[0]))
        return
    if args.torch and not re.fullmatch(r"resnet18-third(:[\d,]+)?|resnet32:linear", args.net):
        parser.error("--torch times resnet18-third and resnet32:linear in float32 only")
    command = f"python experiments/benchmarks/resnet_speed.py --net {args.net} --batch {args.batch}"
    command += f" --repeats {args.repeats}" + (" --torch PY" if args.torch else "")
    lines = tables(args)
    print("\n".join(lines))
    if args.smoke:
        return
    title = [f"# Speed of {args.net}", "", f"Made by `{command}`.", ""]
    out = args.out / f"{args.net.partition(':')[0]}_speed.md"
    old = out.read_text() if out.exists() else ""
    reading = "\n" + old[old.index("## Reading") :] if "## Reading" in old else ""
    out.write_text("\n".join(title + lines) + "\n" + reading)


if __name__ == "__main__":
    main()
