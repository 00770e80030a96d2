"""PyTorch's part of the benchmarks of CNNs, ResNets and La-MAML: prints its times as JSON.

    python pytorch_side.py cnn|lamaml|resnet SPECIFICATION

Run by a Python that has PyTorch, and need have neither JAX nor cljax. The specification is a JSON
object, the arguments of the function of that name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from timing import CORES, Timed, timed
from torch import nn
from torch.nn import functional as F


def cnn(
    *, weights: str, rate: float, clip: float, steps: int, chunk: int, repeats: int
) -> dict[str, Any]:
    """The batch and La-MAML's meta-step of a network whose weights and batch are in a file."""
    stored = np.load(weights)
    num = sum(name.startswith("w") for name in stored.files)
    params = [torch.tensor(stored[f"{kind}{i}"]) for i in range(num) for kind in "wb"]
    x = torch.tensor(stored["x"].transpose(0, 3, 1, 2).copy())
    y = torch.tensor(stored["y"], dtype=torch.long)

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
    alpha = [torch.full_like(p, rate).requires_grad_() for p in params]

    def meta() -> tuple[Any, Any]:
        fast, total = params, 0.0
        for i in range(steps):
            rows = slice(i * chunk, (i + 1) * chunk)
            grads = torch.autograd.grad(loss(fast, x[rows], y[rows]), fast, create_graph=True)
            fast = [
                p - a * g.clamp(-clip, clip) for p, a, g in zip(fast, alpha, grads, strict=True)
            ]
            total = total + loss(fast, x, y) / steps
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


def lamaml(*, weights: str, rate: float, clip: float, glances: int, threads: int) -> dict[str, Any]:
    """La-MAML's updates of an MLP, first order, an example a step, on batches that are in a file.

    A plain loop, as one writes it: every inner step and every meta-gradient by autograd.
    """
    torch.set_num_threads(threads)
    stored = np.load(weights)
    num = sum(name.startswith("w") for name in stored.files)
    params = [torch.tensor(stored[f"{kind}{i}"]) for i in range(num) for kind in "wb"]
    x, y = torch.tensor(stored["x"]), torch.tensor(stored["y"], dtype=torch.long)
    size = int(stored["size"])  # of the incoming batch, the last rows of each meta-batch

    def loss(params: list[Any], x: Any, y: Any) -> Any:
        for i in range(num):
            x = x @ params[2 * i] + params[2 * i + 1]
            x = F.relu(x) if i < num - 1 else x
        return F.cross_entropy(x, y)

    def glance(params: list[Any], alpha: list[Any], x: Any, y: Any) -> tuple[Any, Any, Any]:
        params, alpha = ([p.detach().requires_grad_() for p in part] for part in (params, alpha))
        fast, total = params, 0.0
        for row in range(len(x) - size, len(x)):
            at = [p.detach().requires_grad_() for p in fast]
            grads = torch.autograd.grad(loss(at, x[row : row + 1], y[row : row + 1]), at)
            fast = [p - a.relu() * g for p, a, g in zip(fast, alpha, grads, strict=True)]
            total = total + loss(fast, x, y) / size
        slopes = torch.autograd.grad(total, params + alpha)
        parts = []
        for part in (slopes[: len(params)], slopes[len(params) :]):
            norm = sum((g**2).sum() for g in part) ** 0.5
            parts.append([g * torch.clamp(clip / (norm + 1e-6), max=1.0) for g in part])
        alpha = [a.detach() - rate * g for a, g in zip(alpha, parts[1], strict=True)]
        moved = [p.detach() - a.relu() * g for p, a, g in zip(params, alpha, parts[0], strict=True)]
        return moved, alpha, total.detach()

    alpha = [torch.full_like(p, rate) for p in params]
    losses = []

    def epoch() -> None:
        nonlocal params, alpha
        for batch, labels in zip(x, y, strict=True):
            for _ in range(glances):
                params, alpha, value = glance(params, alpha, batch, labels)
                losses.append(float(value))

    taken = timed(epoch, 1, warm_up=0)
    return {"version": torch.__version__, "first": losses[0], "seconds": taken}


def conv_bn(fan_in: int, width: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> Any:
    conv = nn.Conv2d(fan_in, width, kernel, stride, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class PooledBlock(nn.Module):
    """A block of ResNet-18(1/3)."""

    def __init__(self, fan_in: int, width: int, project: bool, pool: bool) -> None:
        super().__init__()
        self.first, self.second = conv_bn(fan_in, width), conv_bn(width, width)
        self.shortcut = conv_bn(fan_in, width, 1) if project else None
        self.pool = pool

    def forward(self, x: Any) -> Any:
        y = self.second(F.relu(self.first(x)))
        y = y + (x if self.shortcut is None else F.relu(self.shortcut(x)))
        return F.relu(F.max_pool2d(y, 2, 2) if self.pool else y)


class Third(nn.Module):
    """ResNet-18(1/3)."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        blocks, last = [], widths[0]
        for stage, width in enumerate(widths):
            blocks.append(PooledBlock(last, width, project=stage > 0, pool=False))
            blocks.append(PooledBlock(width, width, project=False, pool=stage in (1, 2)))
            last = width
        self.stem, self.blocks = conv_bn(3, widths[0]), nn.Sequential(*blocks)
        self.head = nn.Linear(last, classes, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3))


class StridedBlock(nn.Module):
    """A block of ResNet-32."""

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
    """ResNet-32 for CIFAR."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        blocks, last = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(5):
                blocks.append(StridedBlock(last, width, 2 if stage and not block else 1))
                blocks.append(nn.ReLU())
                last = width
        self.stem = conv_bn(3, widths[0], bias=False)
        self.blocks, self.head = nn.Sequential(*blocks[:-1]), nn.Linear(last, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def resnet(
    *, kind: str, widths: Sequence[int], classes: int, stages: Sequence[Sequence[int]], batch: int,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """A training step, and each stage's convolution alone, in both memory formats."""
    made: Callable[[], nn.Module] = lambda: (Third if kind == "resnet18-third" else Cifar)(
        widths, classes
    )

    def training(layout: Any) -> Timed:
        network = made().to(memory_format=layout)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
        y = torch.arange(batch) % classes

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
            for size, width in stages
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("cnn", "lamaml", "resnet"))
    parser.add_argument("specification", type=json.loads)
    args = parser.parse_args()
    torch.set_num_threads(CORES)
    print(
        json.dumps(
            {"cnn": cnn, "lamaml": lamaml, "resnet": resnet}[args.what](**args.specification)
        )
    )


if __name__ == "__main__":
    main()
