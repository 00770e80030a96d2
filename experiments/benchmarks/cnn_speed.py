"""La-MAML's network for CIFAR-100: gradients, several sets of weights, and a meta-step, timed.

    python experiments/benchmarks/cnn_speed.py [--net cnn:160,160,160:320,320] [--torch PY]
    python experiments/benchmarks/cnn_speed.py --smoke

One process, float32, images of 32x32, 20 a batch: forward and backward, the same in a compiled
loop, a Hessian-vector product, four sets of weights by vmap against one; and La-MAML's meta-step:
five inner steps of two images each, meta-batches of twenty, second order. Beside each stands what
it must compute and move (``engine.work``) and which share of the machine's GEMM peak it reaches. On
CPUs freed memory is kept (``engine.allocator``), as the command line has it. ``--torch`` names a
Python with PyTorch, which times the same batch and the same meta-step by nested autograd, as the
released code has it, with as many threads as cores; both start from one
file of weights and must agree in the meta-loss and its slopes. The table goes to
experiments/results/cnn_speed.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import CORES, Timed, gemm_peak, in_pytorch, timed

from cljax import resolve
from cljax.engine.allocator import keep_freed_memory
from cljax.engine.work import counted
from cljax.losses import cross_entropy
from cljax.methods.algebra.look_ahead import LookAhead, meta_loss
from cljax.types import Examples, Variables

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, number, printed, write

BATCH, CHUNK, STEPS, CLASSES, SETS, LOOP = 20, 2, 5, 100, 4, 4
RATE, CLIP = 0.1, 1.0


def examples() -> tuple[np.ndarray, np.ndarray]:
    """[20, 32, 32, 3] and [20]: the meta-batch, whose first ten are the current ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, 32, 32, 3), dtype=np.float32)
    return x, rng.integers(0, CLASSES, BATCH).astype(np.int32)


class InJax(NamedTuple):
    """A network and the functions of it that are timed."""

    params: Any
    alpha: Any
    sets: Any  # several of the parameters
    x: Any
    y: Any
    gradient: Callable[..., Any]  # of (params, x, y), as the next two
    loop: Callable[..., Any]
    hessian_vector: Callable[..., Any]
    several: Callable[..., Any]  # (sets, x, y)
    meta: Callable[..., Any]  # (params, alpha) -> loss and its slopes


def in_jax(net: str) -> InJax:
    model = resolve.net(net)(CLASSES)
    x, y = map(jnp.asarray, examples())
    params = jax.jit(model.init)(jax.random.key(0), x).params
    real = jnp.ones(BATCH, bool)
    batch = Examples(x, y, jnp.zeros(BATCH, jnp.int32))
    cut = lambda a: a[: STEPS * CHUNK].reshape(STEPS, CHUNK, *a.shape[1:])
    inner = jax.tree.map(cut, (batch, real))

    def losses(params: Any, state: Any, examples: Any, mask: Any) -> Any:
        logits = model.apply(Variables(params, {}), examples.x, True)[0].logits
        return jnp.where(mask, cross_entropy(logits, examples.y), 0.0), state

    def meta(params: Any, alpha: Any) -> Any:
        return meta_loss(
            params, alpha, {}, inner, (batch, real), loss_fn=losses,
            how=LookAhead(2, CLIP, inner_relu=False),
        )[0]  # fmt: skip

    def gradient(params: Any, x: Any, y: Any) -> Any:
        batch = Examples(x, y, jnp.zeros_like(y))
        return jax.grad(lambda p: jnp.mean(losses(p, {}, batch, jnp.ones_like(y, bool))[0]))(params)

    def loop(params: Any, x: Any, y: Any) -> Any:
        down = lambda _, p: jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient(p, x, y))
        return jax.lax.fori_loop(0, LOOP, down, params)

    def hessian_vector(params: Any, x: Any, y: Any) -> Any:
        dot = lambda p: sum(
            jnp.vdot(g, jax.lax.stop_gradient(a))
            for g, a in zip(*map(jax.tree.leaves, (gradient(p, x, y), params)), strict=True)
        )
        return jax.grad(dot)(params)

    return InJax(
        params,
        jax.tree.map(lambda a: jnp.full_like(a, RATE), params),
        jax.tree.map(lambda a: jnp.stack([a] * SETS), params),
        x,
        y,
        gradient,
        loop,
        hessian_vector,
        jax.vmap(gradient, in_axes=(0, None, None)),
        jax.value_and_grad(meta, argnums=(0, 1)),
    )


def save(params: Any, path: str) -> None:
    """The batch, and the parameters in PyTorch's layouts: [out, in, k, k], and rows by channel,
    row, column."""
    arrays, channels = {}, None
    for i, (kernel, bias) in enumerate(layers(params)):
        kernel = np.asarray(kernel)
        if kernel.ndim == 4:
            arrays[f"w{i}"], channels = kernel.transpose(3, 2, 0, 1), kernel.shape[-1]
        else:
            if channels is not None:  # the first dense layer
                side = int((kernel.shape[0] // channels) ** 0.5)
                kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3)
                kernel, channels = kernel.reshape(-1, kernel.shape[-1]), None
            arrays[f"w{i}"] = kernel.T
        arrays[f"b{i}"] = np.asarray(bias)
    x, y = examples()
    np.savez(path, x=x, y=y, **arrays)


def layers(params: Any) -> list[tuple[Any, Any]]:
    """Kernel and bias of each layer, from the first to the head."""
    names = sorted((n for n in params if n != "head"), key=lambda n: (n[0] != "C", n))
    return [(params[name]["kernel"], params[name]["bias"]) for name in (*names, "head")]


def check(of: InJax, torch: dict[str, Any]) -> None:
    """Stops unless both compute the same meta-loss and slopes."""
    value, slopes = jax.jit(of.meta)(of.params, of.alpha)
    norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(s)) ** 0.5 for s in slopes]
    np.testing.assert_allclose([float(value), *norms], torch["meta"], rtol=1e-3)


def torch_times(python: str, of: InJax, repeats: int) -> dict[str, Any]:
    """The same in PyTorch, which must compute the same meta-loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        save(of.params, path)
        torch = in_pytorch(
            python, "cnn", weights=path, rate=RATE, clip=CLIP, steps=STEPS, chunk=CHUNK,
            repeats=repeats,
        )  # fmt: skip
    check(of, torch)
    return torch


class Taken(NamedTuple):
    """What was timed: operations and bytes moved by the count of the traced program."""

    name: str
    time: Timed
    flops: float
    moved: float


def measured(name: str, repeats: int, fn: Callable[..., Any], *values: Any, loop: int = 1) -> Taken:
    """Times a function; ``loop`` is how often it does what is counted."""
    program = jax.jit(fn).lower(*values).compile()
    taken = timed(lambda: jax.block_until_ready(program(*values)), repeats)
    return Taken(name, Timed(*(t / loop for t in taken)), *counted(fn, *values))


def all_of(args: argparse.Namespace) -> tuple[dict[str, Taken], str | None]:
    """All that is timed, and PyTorch's version."""
    of, repeats = in_jax(args.net), args.repeats
    torch = torch_times(args.torch, of, repeats) if args.torch else None
    data = (of.params, of.x, of.y)
    time = lambda name, fn, *values: measured(f"JAX: {name}", repeats, fn, *values)
    gradient = time("forward and backward", of.gradient, *data)
    name = "JAX: the same with a step, in a compiled loop"
    looped = measured(name, max(repeats // 3, 1), of.loop, *data, loop=LOOP)
    found = {
        "gradient": gradient,
        "loop": looped._replace(flops=gradient.flops, moved=gradient.moved),
        "hvp": time("Hessian-vector product", of.hessian_vector, *data),
        "sets": time(f"{SETS} sets of weights by vmap", of.several, of.sets, of.x, of.y),
        "meta": time("meta-step", of.meta, of.params, of.alpha),
    }
    for key, what in (("gradient", "gradient"), ("meta", "meta-step")) if torch else ():
        name = found[key].name.replace("JAX", "PyTorch")
        found[f"{key} torch"] = found[key]._replace(name=name, time=Timed(*torch[what]))
    return found, torch["version"] if torch else None


def ratios(found: dict[str, Taken]) -> tuple[list[str], dict[str, float]]:
    """What sets of weights cost, and PyTorch against JAX: sentences and numbers."""
    best = {key: taken.time.best for key, taken in found.items()}
    ratio = best["sets"] / best["gradient"]
    lines = [f"{SETS} sets of weights cost {ratio:.1f} times one."]
    numbers = {f"{SETS} sets of weights, times one": ratio}
    for what, name in (("gradient", "forward and backward"), ("meta", "the meta-step")):
        if f"{what} torch" in best:
            ratio = best[f"{what} torch"] / best[what]
            numbers[f"PyTorch / JAX, {name}"] = ratio
            lines.append(f"PyTorch takes {ratio:.1f} times as long as JAX for {name}.")
    return lines, numbers


def report(args: argparse.Namespace) -> Report:
    device = jax.devices()[0]
    peak = gemm_peak(CORES, seconds=0.5) if device.platform == "cpu" else None
    found, version = all_of(args)
    rows = [
        printed([
            one.name, *(number(1e3 * time, ".1f") for time in one.time),
            number(one.flops / 1e9), number(one.moved / 1e6, ".0f"),
            number(one.flops / one.time.best / 1e9, ".0f"),
            number(one.moved / one.time.best / 1e9, ".1f"),
            number(peak and 100 * one.flops / one.time.best / peak, ".0f", " %"),
        ])
        for one in found.values()
    ]  # fmt: skip
    machine = (
        f"{device.device_kind}, {CORES} cores"
        + (f"; float32 GEMM peak {peak / 1e9:.0f} GFLOP/s" if peak else "")
        + f"; JAX {jax.__version__}"
        + (f", PyTorch {version}, {CORES} threads" if version else "")
        + f". `{args.net}`, batches of {BATCH}, {args.repeats} repeats; rates are of the best."
    )
    columns = ["what", "median ms", "best ms", "CPU ms", "GFLOP", "MB moved", "GFLOP/s", "GB/s",
               "of peak"]  # fmt: skip
    lines, numbers = ratios(found)
    command = "python experiments/benchmarks/cnn_speed.py "
    command += f"--net {args.net} --repeats {args.repeats}"
    command += " --torch PY" * bool(args.torch)
    parts = [machine, "", Table(columns, rows), "", *lines]
    return Report("Speed of La-MAML's convolutional network", command, ".", parts, numbers)


def main() -> None:
    parser = arguments(
        __doc__, smoke="small widths, one repeat", data_dir=False, out="cnn_speed.md"
    )
    parser.add_argument("--net", default="cnn:160,160,160:320,320")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    args = parser.parse_args()
    if args.smoke:
        args.net, args.repeats = "cnn:4,4,4:8", 1
    keep_freed_memory(large=True)
    made = report(args)
    print("\n".join(part for part in made.parts if isinstance(part, str)))
    if not args.smoke:
        write(args.out, made)


if __name__ == "__main__":
    main()
