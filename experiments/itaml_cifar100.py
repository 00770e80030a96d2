"""iTAML on CIFAR-100 with ResNet-18(1/3), beside the published 76.6 to 78.3 % (10 tasks of 10).

    python experiments/itaml_cifar100.py --data-dir DIR --dtype bfloat16      # on an accelerator
    python experiments/itaml_cifar100.py --data-dir DIR --one-session         # what a CPU can do
    python experiments/itaml_cifar100.py --data-dir DIR --smoke

The full run is 70 epochs a task, about 5.5 PFLOP a seed (a third more with the logging pass): hours
on an accelerator, days on two cores. `--one-session` trains the first task for one epoch at full
width, on a CPU one compiled update at a time (gradients of convolutions are slow inside compiled
loops there), and times it; `--smoke` walks the whole course with 20 classes and a small network.
Every run is a folder, so the script goes on where it stopped. `--out FILE.md` adds the table to a
file of results, and to the JSON file beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common import (
    ABSENT,
    Cell,
    Report,
    Table,
    add,
    arguments,
    device,
    metric,
    number,
    of_each,
    printed,
)

import cljax
from cljax.references.published import sources
from cljax.stats import equivalence
from cljax.streams.base import first_tasks

COLUMNS = ("accuracy_no_update", "accuracy_task_agnostic", "task_accuracy", "accuracy_task_aware")
PUBLISHED = (0.7663, 0.7779, 0.7824)  # the paper's three figures for one setting
FLOPS_PER_IMAGE = 193e6 * 6  # forward and backward


def one_session(args: argparse.Namespace, net: str) -> list[Table | str]:
    """The first task, one epoch, full width: the paper's mode as one gradient."""
    source = cljax.streams.make(args.stream, data_dir=args.data_dir).build()
    stream = first_tasks(source, 1)
    method = cljax.ITAML(lr=0.1, mode="paper", algebra="one-gradient", capacity=2000)
    began = time.perf_counter()
    run = cljax.run(method, stream, seeds=1, net=net, batch_size=128, epochs=1)
    took, spent = time.perf_counter() - began, run.results["time"]
    images = run.results["cost"]["examples"]
    rate = images * FLOPS_PER_IMAGE / spent["train_s"] / 1e9
    row = [
        net, device(), images, number(spent["compile_s"], ".1f"), number(spent["train_s"], ".1f"),
        number(images / spent["train_s"], ".0f"), number(rate, ".0f"),
        number(spent["eval_s"], ".1f"), number(took, ".1f"),
        metric(run.results["metrics"][COLUMNS[0]], "std", ABSENT),
    ]  # fmt: skip
    columns = ["network", "device", "images", "compile s", "train s", "images/s", "GFLOP/s",
               "test s", "whole s", "accuracy"]  # fmt: skip
    return [
        "## One session of one epoch", "",
        "Paper's mode as one gradient, SGD 0.1, batch 128; GFLOP/s by 1.16 GFLOP an image, the "
        "pass for BatchNorm's running statistics not counted.", "",
        Table(columns, [printed(row)]),
    ]  # fmt: skip


def target_of(run: cljax.Run, stream: str) -> Cell | None:
    """The paper's figures, and the verdict against the one that its table has."""
    target = sources()["itaml-cifar100"].cells.get(("itaml", stream), {}).get("accuracy")
    if target is None:
        return None
    text, value = of_each([100 * figure for figure in PUBLISHED], between=" / ")
    if len(run.results["seeds"]) == 1:
        return Cell(text, value)
    verdict = equivalence(run.metric(COLUMNS[1]), target, 0.02)
    return Cell(
        f"{text}; {100 * verdict.diff:+.2f} {verdict.verdict}",
        {"published": 100 * target.mean, "difference": 100 * verdict.diff,
         "verdict": verdict.verdict, "accepted": verdict.accepted, "figures": value},
    )  # fmt: skip


def courses(args: argparse.Namespace, net: str) -> list[Table | str]:
    """All tasks, a row a variant and loss."""
    few, rows = 1 if args.smoke else None, []
    for variant in args.variants[:few]:
        for loss in args.losses[:few]:
            recipe = cljax.recipe("itaml", args.stream, "itaml", variant)
            recipe = recipe.replace(data_dir=args.data_dir, loss_outputs=loss, net=net)
            if args.epochs:
                recipe = recipe.replace(epochs=args.epochs)
            if args.smoke:
                recipe = recipe.replace(
                    net="resnet18-third:2,3,4,5", epochs=1, batch_size=32, classes=8,
                    classes_per_task=2, samples_per_task=64, capacity=40, val=0.1,
                    entries="diagonal-last",
                )  # fmt: skip
            seeds = 1 if args.smoke else args.seeds
            folder = f"{args.stream}-{variant}-{loss}-{args.dtype}" + "-smoke" * args.smoke
            run = cljax.run(recipe, seeds=seeds, out=args.runs / folder)
            cells, spent = run.results["metrics"], run.results["time"]
            row = [
                variant, loss, *(metric(cells.get(c), "std", ABSENT) for c in COLUMNS),
                None if args.smoke else target_of(run, args.stream),
                number((spent["train_s"] + spent["eval_s"]) / seeds / 3600),
            ]  # fmt: skip
            rows.append(printed(row))
    columns = ["variant", "loss", "per sample", "continuum, task inferred", "task accuracy",
               "task given", "published", "hours a seed"]  # fmt: skip
    return [f"## {args.stream}, {net}", "", Table(columns, rows)]


def main() -> None:
    parser = arguments(__doc__, smoke="20 classes, a small network", seeds=3, runs="itaml_cifar100")
    parser.add_argument("--stream", default="cifar100-10x10")
    parser.add_argument("--variants", nargs="*", default=["released", "paper"])
    parser.add_argument("--losses", nargs="*", default=["own", "seen"])
    parser.add_argument("--net", default="resnet18-third:21,42,85,170")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's 70")
    parser.add_argument("--one-session", action="store_true")
    parser.add_argument("--out", type=Path, help="a Markdown file that the table is added to")
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory(large=True)

    net = args.net + (":bfloat16" if args.dtype == "bfloat16" else "")
    parts = one_session(args, net) if args.one_session else courses(args, net)
    if args.out is not None and not args.smoke:
        command = "python experiments/itaml_cifar100.py --data-dir DIR"
        command += " --one-session" * args.one_session
        command += f" --dtype {args.dtype}" * (args.dtype != "float32")
        add(args.out, Report("iTAML on CIFAR-100", command, f", on {device()}.", parts))


if __name__ == "__main__":
    main()
