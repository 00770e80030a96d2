"""La-MAML's network for CIFAR-100: gradients, several sets of weights, and a meta-step, timed.

    python experiments/benchmarks/cnn_speed.py [--net cnn:160,160,160:320,320] [--torch PY]
    python experiments/benchmarks/cnn_speed.py --smoke

One process, float32, images of 32x32, 20 a batch: forward and backward in either lowering, the
same in a compiled loop, a Hessian-vector product, four sets of weights by vmap against one; and
La-MAML's meta-step: five inner steps of two images each, meta-batches of twenty, second order.
Beside each stands what it must compute and move (``engine.work``) and which share of the machine's
GEMM peak it reaches. On CPUs freed memory is kept (``engine.allocator``), as the command line has
it. ``--torch`` names a Python with PyTorch, which times the same batch and the same meta-step by
nested autograd, as the released code has it, with as many threads as cores; both start from one
file of weights and must agree in the meta-loss and its slopes. The table goes to
experiments/results/cnn_speed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from resnet_speed import CORES, Timed, timed

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
    import jax
    import jax.numpy as jnp

    from cljax import resolve
    from cljax.losses import cross_entropy
    from cljax.methods.lamaml import meta_loss
    from cljax.types import Examples, Variables

    model = resolve.net(net)(CLASSES)
    x, y = map(jnp.asarray, examples())
    params = jax.jit(model.init)(jax.random.key(0), x).params
    real = jnp.ones(BATCH, bool)
    batch = Examples(x, y, jnp.zeros(BATCH, jnp.int32))
    cut = lambda a: a[: STEPS * CHUNK].reshape(STEPS, CHUNK, *a.shape[1:])
    inner, mask = jax.tree.map(cut, (batch, real))

    def losses(params: Any, state: Any, examples: Any, mask: Any) -> Any:
        logits = model.apply(Variables(params, {}), examples.x, True)[0].logits
        return jnp.where(mask, cross_entropy(logits, examples.y), 0.0), state

    def meta(params: Any, alpha: Any) -> Any:
        return meta_loss(
            params, alpha, {}, inner, mask, batch, real, loss_fn=losses, order=2,
            inner_clip=CLIP, inner_relu=False,
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
    """The parameters in PyTorch's layouts: [out, in, k, k], and rows by channel, row, column."""
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
    np.savez(path, **arrays)


def layers(params: Any) -> list[tuple[Any, Any]]:
    """Kernel and bias of each layer, from the first to the head."""
    names = sorted((n for n in params if n != "head"), key=lambda n: (n[0] != "C", n))
    return [(params[name]["kernel"], params[name]["bias"]) for name in (*names, "head")]


def in_torch(path: str, repeats: int) -> dict[str, Any]:
    """The batch and the meta-step in PyTorch; ``Timed``s as lists."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(CORES)
    kept = np.load(path)
    num = len(kept.files) // 2
    params = [torch.tensor(kept[f"{kind}{i}"]) for i in range(num) for kind in "wb"]
    x, y = examples()
    x, y = torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y, dtype=torch.long)

    def loss(params: list[Any], x: Any, y: Any) -> Any:
        for i in range(num):
            w, b = params[2 * i : 2 * i + 2]
            if w.ndim == 4:
                x = F.conv2d(x, w, b, stride=2, padding=1)
            else:
                x = F.linear(x.flatten(1), w, b)
            x = F.relu(x) if i < num - 1 else x
        return F.cross_entropy(x, y)

    for p in params:
        p.requires_grad_()
    alpha = [torch.full_like(p, RATE).requires_grad_() for p in params]

    def meta() -> tuple[Any, Any]:
        fast, total = params, 0.0
        for i in range(STEPS):
            rows = slice(i * CHUNK, (i + 1) * CHUNK)
            grads = torch.autograd.grad(loss(fast, x[rows], y[rows]), fast, create_graph=True)
            fast = [
                p - a * g.clamp(-CLIP, CLIP) for p, a, g in zip(fast, alpha, grads, strict=True)
            ]
            total = total + loss(fast, x, y) / STEPS
        return total, torch.autograd.grad(total, params + alpha)

    value, slopes = meta()
    norms = [sum(float((g**2).sum()) for g in part) ** 0.5
             for part in (slopes[: len(params)], slopes[len(params) :])]  # fmt: skip
    return {
        "version": torch.__version__,
        "meta": [float(value), *norms],
        "gradient": timed(lambda: torch.autograd.grad(loss(params, x, y), params), repeats),
        "meta-step": timed(meta, repeats),
    }


def check(of: InJax, torch: dict[str, Any]) -> None:
    """Stops unless both compute the same meta-loss and slopes."""
    import jax

    value, slopes = jax.jit(of.meta)(of.params, of.alpha)
    norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(s)) ** 0.5 for s in slopes]
    np.testing.assert_allclose([float(value), *norms], torch["meta"], rtol=1e-3)


def tables(args: argparse.Namespace) -> list[str]:
    import jax
    from timing import gemm_peak

    from cljax.engine.allocator import keep_freed_memory
    from cljax.engine.work import counted

    keep_freed_memory()  # as the command line has it: a third of the time of several sets
    device, lines = jax.devices()[0], []
    peak = gemm_peak(CORES, seconds=0.5) if device.platform == "cpu" else None
    torch, ways = None, ("patches", "xla")
    made = {way: in_jax(f"{args.net}:{way}") for way in ways}
    first = made["patches"]
    if args.torch:
        with tempfile.TemporaryDirectory() as folder:
            save(first.params, f"{folder}/weights.npz")
            command = [args.torch, "-W", "ignore", __file__, "--in-torch", f"{folder}/weights.npz"]
            command += ["--repeats", str(args.repeats)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        torch = json.loads(done.stdout)
        check(first, torch)
    best: dict[str, float] = {}

    def row(key: str, name: str, taken: Timed, flops: float, moved: float) -> None:
        best[key] = taken.best
        share = "-" if peak is None else f"{100 * flops / taken.best / peak:.0f} %"
        lines.append(
            f"| {name} | {1e3 * taken.median:.1f} | {1e3 * taken.best:.1f} | "
            f"{1e3 * taken.cpu:.1f} | {flops / 1e9:.2f} | {moved / 1e6:.0f} | "
            f"{flops / taken.best / 1e9:.0f} | {moved / taken.best / 1e9:.1f} | {share} |"
        )
        print(lines[-1], flush=True)

    def measured(key: str, name: str, fn: Callable[..., Any], *values: Any) -> None:
        work = counted(fn, *values)
        program = jax.jit(fn).lower(*values).compile()
        taken = timed(lambda: jax.block_until_ready(program(*values)), args.repeats)
        row(key, name, taken, *work)

    for way in ways if not args.quick else ways[:1]:
        of = made[way]
        data = (of.x, of.y)
        measured(f"gradient {way}", f"{way}: forward and backward", of.gradient, of.params, *data)
        work = counted(of.gradient, of.params, *data)
        program = jax.jit(of.loop).lower(of.params, *data).compile()
        taken = timed(lambda p=program, o=of: jax.block_until_ready(p(o.params, o.x, o.y)),
                      max(args.repeats // 3, 1))  # fmt: skip
        each = Timed(*(t / LOOP for t in taken))
        row(f"loop {way}", f"{way}: the same with a step, in a compiled loop", each, *work)
        measured(
            f"hvp {way}", f"{way}: Hessian-vector product", of.hessian_vector, of.params, *data
        )
        measured(
            f"sets {way}", f"{way}: {SETS} sets of weights by vmap", of.several, of.sets, *data
        )
        measured(f"meta {way}", f"{way}: meta-step", of.meta, of.params, of.alpha)
    if torch is not None:
        of = made["patches"]
        work = counted(of.gradient, of.params, of.x, of.y)
        row("gradient torch", "PyTorch: forward and backward", Timed(*torch["gradient"]), *work)
        work = counted(of.meta, of.params, of.alpha)
        row("meta torch", "PyTorch: meta-step", Timed(*torch["meta-step"]), *work)
    head = [
        f"{device.device_kind}, {CORES} cores"
        + (f"; float32 GEMM peak {peak / 1e9:.0f} GFLOP/s" if peak else "")
        + f"; JAX {jax.__version__}"
        + (f", PyTorch {torch['version']}, {CORES} threads" if torch else "")
        + f". `{args.net}`, batches of {BATCH}, {args.repeats} repeats; rates are of the best.",
        "",
        "| what | median ms | best ms | CPU ms | GFLOP | MB moved | GFLOP/s | GB/s | of peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ratios = [
        f"{SETS} sets of weights cost {best[f'sets {way}'] / best[f'gradient {way}']:.1f} times "
        f"one ({way})."
        for way in ways
        if f"sets {way}" in best
    ]
    if torch is not None:
        ratios += [
            f"PyTorch takes {best[f'{what} torch'] / best[f'{what} patches']:.1f} times as long as "
            f"JAX with patches for {name}."
            for what, name in (("gradient", "forward and backward"), ("meta", "the meta-step"))
        ]
    return [*head, *lines, "", *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", default="cnn:160,160,160:320,320")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--torch", metavar="PY", help="a Python that has PyTorch: times it too")
    parser.add_argument("--quick", action="store_true", help="patches only")
    parser.add_argument("--in-torch", metavar="FILE", help="PyTorch's part alone, as JSON")
    parser.add_argument("--smoke", action="store_true", help="small widths, one repeat")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/cnn_speed.md"))
    args = parser.parse_args()
    if args.in_torch:
        print(json.dumps(in_torch(args.in_torch, args.repeats)))
        return
    if args.smoke:
        args.net, args.repeats = "cnn:4,4,4:8", 1
    lines = tables(args)
    print("\n".join(lines))
    if args.smoke:
        return
    command = (
        f"python experiments/benchmarks/cnn_speed.py --net {args.net} --repeats {args.repeats}"
    )
    command += " --torch PY" * bool(args.torch) + " --quick" * args.quick
    title = ["# Speed of La-MAML's convolutional network", "", f"Made by `{command}`.", ""]
    old = args.out.read_text() if args.out.exists() else ""
    reading = "\n" + old[old.index("## Reading") :] if "## Reading" in old else ""
    args.out.write_text("\n".join(title + lines) + "\n" + reading)


if __name__ == "__main__":
    main()
