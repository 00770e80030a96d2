"""The multi-task teacher's experiments at a size for CPUs: who forgets how much of the old task?

    python experiments/teacher_mini.py --data-dir DIR --experiment 1
    python experiments/teacher_mini.py --data-dir DIR --smoke [--experiment 3]

Experiments: 1 the new task's classes are known, its images are new; 2 new classes; 3 unseen first
weights, by a rule whose episodes start from 16 networks, and by the rules of experiment 1, each of
another seed's network; 4 a new data set and unseen first weights, by the rules of experiments 3 and
1; 5 two new tasks in a row. What is taken from another experiment is made first where it is
missing.

For each method and seed: a linear readout of the old and of the new task, fitted anew on frozen
features, every 50 updates of the new task (the paper's Figures 3 to 5), and at the end with 95 %
intervals; differences to the learned rule are paired over seeds and Holm-corrected. With them the
lengths of episodes in meta-training (Figure 6) and the multipliers of the test (Figure 7). Every
row is a folder of its own, so the script goes on where it stopped. Tables and pictures go to
experiments/results/teacher_mini_N*.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from common import Report, Table, arguments, printed
from teacher_figures import draw_lengths, draw_multipliers, keep_lengths, lengths, watched
from teacher_tables import LEARNED, Readouts, cells, readouts, write_readouts

import cljax
from cljax.recipes.teacher import BASELINES

STREAMS = {
    1: "fashion-5-5", 2: "cifar100-10-5", 3: "fashion-5-5", 4: "fashion-5-mnist-5",
    5: "fashion-4-3-3",
}  # fmt: skip
TITLES = {
    1: "known classes, new images", 2: "new classes", 3: "unseen first weights",
    4: "a new data set", 5: "two new tasks",
}  # fmt: skip
SEEDS = {1: 5, 2: 5, 3: 3, 4: 5, 5: 3}
CHECKPOINTS = 16
ONE_START = f"{LEARNED}, one start"
TINY = {
    "episodes": 4, "windows": 4, "longest": 4, "truncation": 2, "truncation_cap": 2, "target": 4,
    "episodes_at_once": 2, "hidden": 4, "hidden_norm": 4, "rho": 40.0,
}  # fmt: skip


class Row(NamedTuple):
    """What a row runs; where ``of`` is another experiment, it is that one's row."""

    method: str
    options: Mapping[str, Any]
    of: int
    rules: int | None = None  # the experiment whose rules it follows
    shift: int = 0  # of a run's seed to its rule's


def rows(experiment: int) -> dict[str, Row]:
    lr = cljax.recipe("sgd", STREAMS[experiment]).method_options["lr"]
    found = {LEARNED: Row("teacher", {}, experiment)}
    if experiment == 3:
        found[LEARNED] = Row("teacher", {"checkpoints": CHECKPOINTS}, 3)
        found[ONE_START] = Row("teacher", {}, 3, rules=1, shift=1)
    if experiment == 4:  # whose networks are pretrained on other validation splits than 1's
        found[LEARNED] = Row("teacher", {}, 4, rules=3)
        found[ONE_START] = Row("teacher", {}, 4, rules=1)
    of = 1 if experiment == 3 else experiment
    found |= {name: Row(name, {}, of) for name in BASELINES}
    found["sgd x 0.1"] = Row("sgd", {"lr": lr / 10}, of)
    return found


def count(args: argparse.Namespace, experiment: int) -> int:
    """Seeds of an experiment, 0, 1, ..."""
    return 1 if args.smoke else args.seeds or SEEDS[experiment]


def folder(args: argparse.Namespace, experiment: int, label: str) -> Path:
    name = label.replace(",", "").replace(" ", "-")
    return args.runs / (f"{experiment}-{name}" + "-smoke" * args.smoke)


def recipe_of(args: argparse.Namespace, row: Row) -> cljax.recipes.Recipe:
    recipe = cljax.recipe(row.method, STREAMS[row.of], source="teacher", variant="mini")
    recipe = recipe.replace(data_dir=args.data_dir, **row.options)
    if args.smoke:
        recipe = recipe.replace(steps=20, pretrain_steps=20)
        tiny = {**TINY, **({"checkpoints": 2} if row.options.get("checkpoints") else {})}
        recipe = recipe.replace(**(tiny if row.method == "teacher" else {}))
    return recipe


def of_rules(args: argparse.Namespace, row: Row) -> list[tuple[int, int]]:
    """Each seed of a row, and the seed of the rule that it follows."""
    known = count(args, row.of if row.rules is None else row.rules)
    return [(seed, (seed + row.shift) % known) for seed in range(count(args, row.of))]


def made(args: argparse.Namespace, label: str, row: Row) -> list[cljax.Run]:
    """The runs of a row, and before them those that its rules come from."""
    kept, recipe = folder(args, row.of, label), recipe_of(args, row)
    options = {"readout": True, "eval_every": 5 if args.smoke else 50}
    if row.rules is None:
        run = cljax.run(recipe, seeds=count(args, row.of), out=kept, **options)
        if row.method == "teacher":
            keep_lengths(run)
        return [run]
    made(args, LEARNED, rows(row.rules)[LEARNED])
    rule = str(folder(args, row.rules, LEARNED))
    return [
        cljax.run(
            recipe.replace(rule=rule, rule_seed=own), seeds=[seed], out=kept / f"seed-{seed}",
            **options,
        )
        for seed, own in of_rules(args, row)
    ]  # fmt: skip


def pictures(args: argparse.Namespace, row: Row, run: cljax.Run) -> list[Table | str]:
    """Draws what the learned rule's training and multipliers were; what the report says of it."""
    name = args.out / f"teacher_mini_{row.of}"
    source = row.of if row.rules is None else row.rules
    rule, text = folder(args, source, LEARNED), []
    found = lengths(rule)
    if row.rules is None and found is None:
        text += [f"(Episodes' lengths are not drawn: {rule}/lengths.npz is missing.)", ""]
    elif row.rules is None:
        path = name.with_name(f"{name.name}_lengths.png")
        draw_lengths(found, run.config["method"]["options"], path)
        ended = int((found >= 0).sum(axis=1).min())
        late = found[:, max(0, ended - 50) : ended]
        mean = f"{late.mean():.0f}" if late.size else "-"
        text += [
            f"At least {ended} episodes ended in each seed's meta-training; mean length of the "
            f"last fifty: {mean} inner steps.", "",
            f"![lengths of episodes]({path.name})", "",
        ]  # fmt: skip
    counts = watched(recipe_of(args, row), rule, of_rules(args, row))
    path = name.with_name(f"{name.name}_multipliers.png")
    return [
        *text, "Multipliers in the test, all updates of new tasks and all seeds:", "",
        draw_multipliers(counts, path), "", f"![multipliers]({path.name})", "",
    ]  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = arguments(
        __doc__, smoke="few rows, a few updates, one seed", runs="teacher_mini", out=""
    )
    parser.add_argument("--experiment", type=int, choices=STREAMS, default=1)
    parser.add_argument("--seeds", type=int, help="of every experiment that is made")
    parser.add_argument("--only", nargs="*", help="rows of these labels alone")
    args = parser.parse_args()
    if args.smoke:
        args.out = args.runs
        args.only = args.only or [LEARNED, ONE_START, "sgd"]
    return args


def main() -> None:
    args = parsed()
    cljax.runtime.keep_freed_memory()
    if args.smoke:  # compiling is most of it
        jax.config.update("jax_disable_most_optimizations", True)
    args.out.mkdir(parents=True, exist_ok=True)
    known = rows(args.experiment)
    for label in args.only or ():
        if label != ONE_START:
            cljax.errors.check_known("row", label, known)

    found: dict[str, Readouts] = {}
    more: list[Table | str] = []
    config: Mapping[str, Any] = {}
    title = f"The multi-task teacher, experiment {args.experiment}: {TITLES[args.experiment]}"
    command = f"python experiments/teacher_mini.py --data-dir DIR --experiment {args.experiment}"
    for label, row in known.items():
        if args.only and label not in args.only:
            continue
        try:
            runs = made(args, label, row)
        except cljax.errors.Diverged as error:
            print(f"{label} is left out: {error}", file=sys.stderr, flush=True)
            continue
        found[label] = readouts(runs, range(count(args, args.experiment)))
        config = config or runs[0].config
        printed([label, *cells(found[label])])
        if label == LEARNED:
            more = pictures(args, row, runs[0])
        seeds = len(found[label].seeds)
        about = f": {config['stream']['name']}, {config['net']}, {seeds} seeds."
        path = args.out / f"teacher_mini_{args.experiment}.md"
        write_readouts(path, Report(title, command, about, ()), found, more)


if __name__ == "__main__":
    main()
