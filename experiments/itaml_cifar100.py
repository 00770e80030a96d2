"""iTAML on CIFAR-100 with ResNet-18(1/3), beside the published 76.6 to 78.3 % (10 tasks of 10).

    python experiments/itaml_cifar100.py --data-dir DIR --dtype bfloat16      # on an accelerator
    python experiments/itaml_cifar100.py --data-dir DIR --one-session         # what a CPU can do
    python experiments/itaml_cifar100.py --data-dir DIR --smoke

The full run is 70 epochs a task, about 5.5 PFLOP a seed (a third more with the logging pass): hours
on an accelerator, days on two cores. `--one-session` trains the first task for one epoch at full
width, on a CPU one compiled update at a time (gradients of convolutions are slow inside compiled
loops there), and times it; `--smoke` walks the whole course with 20 classes and a small network.
Every run is a folder, so the script goes on where it stopped. With `--out FILE` the table is kept.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jax

import cljax
from cljax.references.published import sources
from cljax.stats import equivalence
from cljax.streams.base import first_tasks

COLUMNS = ("accuracy_no_update", "accuracy_task_agnostic", "task_accuracy", "accuracy_task_aware")
PUBLISHED = (0.7663, 0.7779, 0.7824)  # the paper's three figures for one setting
FLOPS_PER_IMAGE = 193e6 * 6  # forward and backward


def percent(cell) -> str:
    if cell is None or cell["mean"] is None:
        return "-"
    spread = "" if cell["std"] is None else f" ± {100 * cell['std']:.2f}"
    return f"{100 * cell['mean']:.2f}{spread}"


def one_session(args, net: str) -> list[str]:
    """The first task, one epoch, full width: the paper's mode as one gradient."""
    source = cljax.streams.make(args.stream, data_dir=args.data_dir).build()
    stream = first_tasks(source, 1)
    method = cljax.ITAML(lr=0.1, mode="paper", algebra="one-gradient", capacity=2000)
    began = time.perf_counter()
    run = cljax.run(method, stream, seeds=1, net=net, batch_size=128, epochs=1)
    took, spent = time.perf_counter() - began, run.results["time"]
    images = run.results["cost"]["examples"]
    rate = images * FLOPS_PER_IMAGE / spent["train_s"] / 1e9
    row = (
        f"| {net} | {jax.devices()[0].device_kind} | {images} | {spent['compile_s']:.1f} | "
        f"{spent['train_s']:.1f} | {images / spent['train_s']:.0f} | {rate:.0f} | "
        f"{spent['eval_s']:.1f} | {took:.1f} | {percent(run.results['metrics'][COLUMNS[0]])} |"
    )
    return [
        "## One session of one epoch", "",
        "Paper's mode as one gradient, SGD 0.1, batch 128; GFLOP/s by 1.16 GFLOP an image, the "
        "pass for BatchNorm's running statistics not counted.", "",
        "| network | device | images | compile s | train s | images/s | GFLOP/s | test s | whole s "
        "| accuracy |", "| --- " * 10 + "|", row, "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--stream", default="cifar100-10x10")
    parser.add_argument("--variants", nargs="*", default=["released", "paper"])
    parser.add_argument("--losses", nargs="*", default=["own", "seen"])
    parser.add_argument("--net", default="resnet18-third:21,42,85,170")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's 70")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/itaml_cifar100"))
    parser.add_argument("--one-session", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="20 classes, a small network")
    parser.add_argument("--out", type=Path, help="a Markdown file that the table is added to")
    args = parser.parse_args()
    cljax.keep_freed_memory()

    net = args.net + (":bfloat16" if args.dtype == "bfloat16" else "")
    if args.one_session:
        lines = one_session(args, net)
        print("\n".join(lines))
    else:
        lines = [
            f"## {args.stream}, {net}", "",
            "| variant | loss | per sample | continuum, task inferred | task accuracy | task given "
            "| published | hours a seed |", "| --- " * 8 + "|",
        ]  # fmt: skip
        for variant in args.variants[: 1 if args.smoke else None]:
            for loss in args.losses[: 1 if args.smoke else None]:
                recipe = cljax.recipe("itaml", args.stream, "itaml", variant)
                recipe = recipe.replace(data_dir=args.data_dir, loss_outputs=loss, net=net)
                seeds = args.seeds
                if args.epochs:
                    recipe = recipe.replace(epochs=args.epochs)
                if args.smoke:
                    recipe = recipe.replace(
                        net="resnet18-third:2,3,4,5", epochs=1, batch_size=32, classes=8,
                        classes_per_task=2, samples_per_task=64, capacity=40, val=0.1,
                    )  # fmt: skip
                    seeds = 1
                    recipe = recipe.replace(entries="diagonal-last")
                kept = f"{args.stream}-{variant}-{loss}-{args.dtype}" + "-smoke" * args.smoke
                run = cljax.run(recipe, seeds=seeds, out=args.runs / kept)
                cells, spent = run.results["metrics"], run.results["time"]
                target = "-"
                told = sources()["itaml-cifar100"].cells.get(("itaml", args.stream), {})
                if "accuracy" in told and not args.smoke:
                    target = " / ".join(f"{100 * number:.2f}" for number in PUBLISHED)
                    if seeds > 1:
                        verdict = equivalence(run.metric(COLUMNS[1]), told["accuracy"], 0.02)
                        target += f"; {100 * verdict.diff:+.2f} {verdict.verdict}"
                hours = (spent["train_s"] + spent["eval_s"]) / seeds / 3600
                row = [variant, loss, *(percent(cells.get(c)) for c in COLUMNS), target]
                lines.append("| " + " | ".join([*row, f"{hours:.2f}"]) + " |")
                print(lines[-1], flush=True)
        lines.append("")
    if args.out is not None and not args.smoke:
        old = args.out.read_text() if args.out.exists() else "# iTAML on CIFAR-100\n\n"
        args.out.write_text(old.rstrip("\n") + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
