"""The multi-task teacher's experiments at the published size, for an accelerator.

    python experiments/teacher_full.py --data-dir DIR --experiment 1
    python experiments/teacher_full.py --smoke [--experiment 2]

ResNet-32 with GroupNorm, CIFAR, recipes ``paper``: experiment 1 learns classes 5 to 9 of CIFAR-10
after 0 to 4, experiment 2 classes of CIFAR-100 that meta-training did not see. HAT is missing, for
its masks do not fit residual networks. Pretraining alone is 39 000 steps of 128 images, and
meta-training thousands of windows: hours on an accelerator, weeks on two cores. ``--smoke`` walks
the whole course on a CPU with ResNet-8 of few channels and images made of noise. Every row is a
folder of its own, so the script goes on where it stopped. The table, readouts and pictures go to
experiments/results/teacher_full_N*.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np
from common import Report, Table, arguments, device, printed
from teacher_figures import draw_lengths, draw_multipliers, keep_lengths, lengths, watched
from teacher_tables import LEARNED, Readouts, cells, readouts, write_readouts

import cljax
from cljax.data import ImageData
from cljax.recipes import Recipe
from cljax.recipes.teacher import BASELINES
from cljax.streams.base import Stream

STREAMS = {1: "cifar10-5-5", 2: "cifar10-5-cifar100-5"}
TINY_NET = "resnet8:4,4,8:group"
TINY = {
    "episodes": 4, "windows": 4, "longest": 4, "truncation": 2, "truncation_cap": 2, "hidden": 4,
    "hidden_norm": 4,
}  # fmt: skip


def noise(classes: int) -> ImageData:
    """Images of CIFAR's shape about a mean of each class, for the smoke test."""
    rng = np.random.default_rng(classes)
    means = rng.integers(60, 196, (classes, 1, 1, 3))

    def images(each: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.tile(np.arange(classes, dtype=np.int32), each)
        x = means[y] + rng.integers(-50, 50, (len(y), 32, 32, 3))
        return x.clip(0, 255).astype(np.uint8), y

    return ImageData(*images(20), *images(4), "noise", "none", f"noise-{classes}")


def recipe_of(args: argparse.Namespace, method: str, options: dict[str, Any]) -> Recipe:
    recipe = cljax.recipe(method, STREAMS[args.experiment], source="teacher", variant="paper")
    recipe = recipe.replace(data_dir=args.data_dir, **options)
    if args.smoke:
        recipe = recipe.replace(net=TINY_NET, batch_size=8)
        recipe = recipe.replace(**(TINY if method == "teacher" else {}))
    return recipe


def stream_of(args: argparse.Namespace) -> Stream | None:
    """The smoke test's stream; None: the recipe's."""
    if not args.smoke:
        return None
    images = {"data": noise(10)} | ({"hundred": noise(100)} if args.experiment == 2 else {})
    return cljax.streams.make(
        STREAMS[args.experiment], steps=10, pretrain_steps=5, **images
    ).build()


def parsed() -> argparse.Namespace:
    parser = arguments(
        __doc__, smoke="ResNet-8, noise, few updates", seeds=5, runs="teacher_full", out=""
    )
    parser.add_argument("--experiment", type=int, choices=STREAMS, default=1)
    parser.add_argument("--only", nargs="*", help="rows of these labels alone")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.out, args.only = 1, args.runs, args.only or [LEARNED, "multitask", "lwf"]
        print("noise in place of CIFAR, ResNet-8 in place of ResNet-32", flush=True)
    return args


def rows(experiment: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> method and options."""
    lr = cljax.recipe("sgd", STREAMS[experiment]).method_options["lr"]
    return {
        LEARNED: ("teacher", {}),
        **{name: (name, {}) for name in BASELINES if name != "hat"},
        "sgd x 0.1": ("sgd", {"lr": lr / 10}),
    }


def pictures(
    args: argparse.Namespace, recipe: Recipe, run: cljax.Run, stream: Stream | None
) -> list[Table | str]:
    """Draws what the learned rule's training and multipliers were; what the report says of it."""
    assert run.path is not None
    name, parts = f"teacher_full_{args.experiment}", []
    keep_lengths(run)
    episodes = lengths(run.path)
    if episodes is not None:
        path = args.out / f"{name}_lengths.png"
        draw_lengths(episodes, run.config["method"]["options"], path)
        parts += [f"![lengths of episodes]({path.name})", ""]
    seeds = [(seed, seed) for seed in range(args.seeds)]
    path = args.out / f"{name}_multipliers.png"
    multipliers = draw_multipliers(watched(recipe, run.path, seeds, stream), path)
    return [*parts, multipliers, "", f"![multipliers]({path.name})"]


def main() -> None:
    args = parsed()
    cljax.runtime.keep_freed_memory()
    if args.smoke:  # compiling is most of it
        jax.config.update("jax_disable_most_optimizations", True)
    stream, known = stream_of(args), rows(args.experiment)
    for label in args.only or ():
        cljax.errors.check_known("row", label, known)

    found: dict[str, Readouts] = {}
    more: list[Table | str] = []
    command = f"python experiments/teacher_full.py --data-dir DIR --experiment {args.experiment}"
    title = f"The multi-task teacher at the published size, experiment {args.experiment}"
    for label, (method, options) in known.items():
        if args.only and label not in args.only:
            continue
        began, recipe = time.perf_counter(), recipe_of(args, method, options)
        out = args.runs / (f"{args.experiment}-{label.replace(' ', '-')}" + "-smoke" * args.smoke)
        every = 5 if args.smoke else 50
        run = cljax.run(recipe, stream, seeds=args.seeds, readout=True, eval_every=every, out=out)
        took = time.perf_counter() - began
        found[label] = readouts([run])
        printed([label, *cells(found[label]), f"{took:.0f} s in all"])
        if label == LEARNED:
            more = pictures(args, recipe, run, stream)
        about = (
            f": {run.config['stream']['name']}, {run.config['net']}, {args.seeds} seeds, on "
            f"{device()}."
        )
        path = args.out / f"teacher_full_{args.experiment}.md"
        write_readouts(path, Report(title, command, about, ()), found, more)


if __name__ == "__main__":
    main()
