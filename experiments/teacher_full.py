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
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from teacher_figures import draw_lengths, draw_multipliers, keep_lengths, lengths, watched
from teacher_tables import LEARNED, Found, line, readouts, write

import cljax
from cljax.data import ImageData
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


def recipe_of(args: argparse.Namespace, method: str, options: dict[str, Any]) -> cljax.Recipe:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--experiment", type=int, choices=STREAMS, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="rows of these labels alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/teacher_full"))
    parser.add_argument("--smoke", action="store_true", help="ResNet-8, noise, few updates")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    args = parser.parse_args()
    cljax.keep_freed_memory()
    if args.smoke:  # compiling is most of it
        jax.config.update("jax_disable_most_optimizations", True)
    stream = stream_of(args)
    lr = cljax.recipe("sgd", STREAMS[args.experiment]).method_options["lr"]
    known: dict[str, tuple[str, dict[str, Any]]] = {LEARNED: ("teacher", {})}
    known |= {name: (name, {}) for name in BASELINES if name != "hat"}
    known["sgd x 0.1"] = ("sgd", {"lr": lr / 10})
    if args.smoke:
        args.out, args.only = args.runs, args.only or [LEARNED, "multitask", "lwf"]
        print("noise in place of CIFAR, ResNet-8 in place of ResNet-32", flush=True)
    for label in args.only or ():
        cljax.errors.check_known("row", label, known)

    found: dict[str, Found] = {}
    more: list[str] = []
    for label, (method, options) in known.items():
        if args.only and label not in args.only:
            continue
        began, recipe = time.perf_counter(), recipe_of(args, method, options)
        kept = args.runs / (f"{args.experiment}-{label.replace(' ', '-')}" + "-smoke" * args.smoke)
        seeds = 1 if args.smoke else args.seeds
        run = cljax.run(
            recipe, stream, seeds=seeds, readout=True, eval_every=5 if args.smoke else 50, out=kept
        )
        took = time.perf_counter() - began
        found[label] = readouts([run])
        print(label, *line(found[label]), f"{took:.0f} s in all", sep=" | ", flush=True)
        out = args.out / f"teacher_full_{args.experiment}.md"
        if label == LEARNED:
            keep_lengths(run)
            episodes = lengths(kept)
            if episodes is not None:
                path = out.with_name(f"{out.stem}_lengths.png")
                draw_lengths(episodes, run.config["method"]["options"], path)
                more += [f"![lengths of episodes]({path.name})", ""]
            counts = watched(recipe, kept, [(seed, seed) for seed in range(seeds)], stream)
            path = out.with_name(f"{out.stem}_multipliers.png")
            more += [*draw_multipliers(counts, path), "", f"![multipliers]({path.name})", ""]
        write(
            out, f"The multi-task teacher at the published size, experiment {args.experiment}",
            f"Made by `python experiments/teacher_full.py --data-dir DIR --experiment "
            f"{args.experiment}`: {run.config['stream']['name']}, {run.config['net']}, "
            f"{seeds} seeds, on {jax.devices()[0].device_kind}.",
            found, more,
        )  # fmt: skip


if __name__ == "__main__":
    main()
