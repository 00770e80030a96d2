"""La-MAML's Table 3: tasks with heads of their own on CIFAR-100 and TinyImageNet.

    python experiments/lamaml_table3.py --data-dir DIR --recipe cpu_small
    python experiments/lamaml_table3.py --data-dir DIR --recipe full [--passes multiple]
    python experiments/lamaml_table3.py --smoke

``full`` is the published size, for an accelerator, with the values of the released script:
``--stream tinyimagenet-40x5`` for the other half of the table, ``--methods`` for some rows.
``cpu_small`` is a smaller CIFAR-100 for two cores: a thinner network, 500 images a task and at most
two glances, with the published rates of the full size, or with ``--rates tuned`` those that
``lamaml_table3_tune.py`` chose on validation images. ``--smoke`` has made-up images.

Every seed has its own class order, validation images and initial weights, the same for every
method, so methods are paired over seeds: differences in RA with 95 % intervals, p after Holm's
correction, and what they say of the published order La-MAML > Sync > C-MAML > ER. Every row is a
run folder, so the script goes on where it stopped. The tables go to
experiments/results/lamaml_table3_*.md, between the title and the section `Reading`, which is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from common import Cell, Report, Table, arguments, device, markdown, number, percent, write
from lamaml_table1 import accuracy_table, cost_of, cost_table, row_of

import cljax
from cljax.data import ImageData, digest
from cljax.engine.work import of_update
from cljax.recipes.lamaml_table3 import STREAMS
from cljax.resolve import method as method_of
from cljax.resolve import net as net_of
from cljax.streams import Stream
from cljax.sweep.compare import Study

SMALL = ("lamaml", "sync-lamaml", "cmaml", "er", "agem")
SINGLE = ("lamaml", "sync-lamaml", "cmaml", "la-er", "meta-bgd", "mer", "gem", "agem", "icarl-ti",
          "er")  # fmt: skip
ROWS = {"single": SINGLE, "multiple": tuple(m for m in SINGLE if m != "mer") + ("iid",)}
ORDER = ("lamaml", "sync-lamaml", "cmaml", "er")  # of RA, as published
MARGIN, LEVEL = 0.02, 0.05
# What lamaml_table3_tune.py chose for cpu_small; where nothing stands here, the published values.
TUNED: dict[str, dict[str, Any]] = {
    "lamaml": {"alpha_init": 0.2, "alpha_lr": 0.8},
    "sync-lamaml": {"alpha_lr": 0.1},
    "er": {"lr": 0.1, "replay_size": 10},
}
NET, TINY_NET, SAMPLES, GLANCES = "cnn:20,20,20:40,40", "cnn:4,4,4:8", 500, 2


def reduced(recipe: cljax.recipes.Recipe, net: str, samples: int) -> cljax.recipes.Recipe:
    """The recipe with a smaller network, fewer images a task and at most two glances."""
    glances = recipe.method_options.get("glances")
    if recipe.method == "meta-bgd":
        net += ":xavier-normal"
    fewer = {} if glances is None else {"glances": min(glances, GLANCES)}
    return recipe.replace(net=net, samples_per_task=samples, **fewer)


def changes(published: cljax.recipes.Recipe, small: cljax.recipes.Recipe) -> str:
    """What a recipe reduces, in words."""
    parts = [f"{published.net} -> {small.net}"] if published.net != small.net else []
    before = {"samples_per_task": 2250, **published.method_options}
    for name, value in {**small.stream_options, **small.method_options}.items():
        if name in before and before[name] != value:
            parts.append(f"{name} {before[name]} -> {value}")
    return "; ".join(parts) or "none"


def made_up() -> ImageData:
    """Noise around a grey level for each of 100 classes, in the form of CIFAR-100."""
    rng = np.random.default_rng(0)
    arrays = []
    for each in (20, 4):
        y = np.repeat(np.arange(100, dtype=np.int32), each)
        noise = rng.integers(0, 56, (len(y), 32, 32, 3))
        arrays += [(noise + 2 * y[:, None, None, None]).astype(np.uint8), y]
    return ImageData(*arrays, "made up", "none", digest(*arrays))


def ordered(runs: Mapping[str, cljax.Run]) -> Table:
    """What the pairs say of each step of the published order."""
    pairs = {(pair.a, pair.b): pair for pair in Study("RA", {}, 0, runs).pairs()}
    rows = []
    for a, b in zip(ORDER, ORDER[1:], strict=False):
        pair, sign = (pairs[a, b], 1) if (a, b) in pairs else (pairs.get((b, a)), -1)
        if pair is None:
            continue
        found = "undecided"
        if pair.p_holm is not None and pair.p_holm < LEVEL:
            found = "confirmed" if sign * pair.test.diff > 0 else "refuted"
        rows.append([f"{a} > {b}", found])
    return Table(["published order of RA", "here"], rows)


def differences(runs: Mapping[str, cljax.Run], metric: str) -> Table:
    """Differences of a metric between all pairs of methods, paired over seeds."""
    rows = []
    for a, b, test, p_holm in Study(metric, {}, 0, runs).pairs():
        interval = None
        if test.ci95 is not None:
            low, high = (100 * end for end in test.ci95)
            interval = Cell(f"[{low:+.2f}, {high:+.2f}]", {"low": low, "high": high})
        rows.append([f"{a} - {b}", percent(test.diff, "+.2f"), interval, number(p_holm, ".3g"),
                     number(test.effect_size), test.n])  # fmt: skip
    return Table(["pair", "difference", "95 % interval", "p (Holm)", "dz", "seeds"], rows)


def work_of(run: cljax.Run, recipe: cljax.recipes.Recipe, stream: Stream) -> Sequence[Any]:
    """Operations of one seed's updates, counted in the traced program, and how fast they went."""
    spec, seeds = stream.spec(recipe.batch_size), len(run.results["seeds"])
    method = method_of(recipe.method, **recipe.method_options)
    learner = method.bind(net_of(recipe.net)(stream.num_classes), spec)
    updates = run.results["cost"]["examples"] / recipe.batch_size
    flops = updates * of_update(learner, spec).flops
    spent = run.results["time"]
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return [
        recipe.method, number(flops / 1e12, ".3g"), number(spent["train_s"] / seeds, ".1f"),
        number(flops * seeds / spent["train_s"] / 1e9, ".3g"), number(spent["total_s"], ".0f"),
        number(peak and peak / 1e9),
    ]  # fmt: skip


class Results(NamedTuple):
    """The runs by method, and a row of each table for each of them."""

    runs: dict[str, cljax.Run]
    accuracy: list[Sequence[Any]]
    cost: list[Sequence[Any]]
    work: list[Sequence[Any]]
    changes: list[str]


def parsed() -> argparse.Namespace:
    parser = arguments(
        __doc__, smoke="made-up images, 2 tasks, 2 seeds", recipes=("cpu_small", "full"), seeds=8,
        runs="lamaml_table3", out="",
    )  # fmt: skip
    parser.add_argument("--stream", choices=STREAMS, default="cifar100-20x5")
    parser.add_argument("--passes", choices=ROWS, default="single")
    parser.add_argument("--variant", choices=("reference", "paper"), default="reference")
    parser.add_argument("--rates", choices=("published", "tuned"), default="published")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--net", help="instead of the recipe's")
    parser.add_argument("--lanes", default="auto", help="how seeds are run, as of cljax run")
    args = parser.parse_args()
    args.small = args.smoke or args.recipe == "cpu_small"
    if args.rates == "tuned" and not args.small:
        parser.error("--rates tuned goes with --recipe cpu_small alone.")
    if args.smoke:
        args.seeds = 2
    return args


def recipe_of(args: argparse.Namespace, published: cljax.recipes.Recipe) -> cljax.recipes.Recipe:
    """The published recipe as the arguments change it."""
    recipe = published
    if args.small:
        size = (TINY_NET, 40) if args.smoke else (NET, SAMPLES)
        recipe = reduced(recipe, *size)
    if args.rates == "tuned":
        recipe = recipe.replace(**TUNED.get(recipe.method, {}))
    if args.net:
        recipe = replace(recipe, net=args.net)
    return recipe


def run_all(args: argparse.Namespace) -> Results:
    """Runs the methods, or reads back what was run."""
    source = f"lamaml-table3-{args.passes}"
    results, shown = Results({}, [], [], [], []), None
    for method in args.methods or (SMALL if args.small else ROWS[args.passes]):
        published = cljax.recipe(method, args.stream, source, args.variant)
        recipe, stream = recipe_of(args, published), None
        results.changes.append(f"- {method}: {changes(published, recipe)}")
        print(results.changes[-1], flush=True)
        if args.smoke:
            options = {**recipe.stream_options, "classes": 10, "val": 0.2}
            stream = cljax.streams.make("cifar100-20x5", **options).build(made_up())
        else:
            recipe = recipe.replace(data_dir=args.data_dir)
        name = "smoke" if args.smoke else f"{args.recipe}-{args.variant}-{args.passes}"
        own = method + "-tuned" * (args.rates == "tuned" and method in TUNED)
        folder = args.runs / f"{name}-{args.stream}" / own
        run = cljax.run(recipe, stream, seeds=args.seeds, out=folder, lanes=args.lanes)
        results.runs[method] = run
        results.accuracy.append(row_of(run, method, args.stream, source, MARGIN))
        results.cost.append(cost_of(run, method, args.stream))
        shown = stream or shown or cljax.streams.make(args.stream, **recipe.stream_options).build()
        results.work.append(work_of(run, recipe, shown))
    return results


def parts_of(results: Results) -> list[Table | str]:
    """The tables of the report."""
    parts = [accuracy_table(results.accuracy, "published"), ""]
    seeds = len(next(iter(results.runs.values())).results["seeds"])
    for metric in ("RA", "LA", "BTI") if len(results.runs) > 1 and seeds > 1 else ():
        asked = {m: run for m, run in results.runs.items() if metric in run.results["metrics"]}
        parts += [f"## {metric}: differences in points, paired over seeds", "",
                  differences(asked, metric), ""]  # fmt: skip
        if metric == "RA":
            parts += [ordered(results.runs), ""]
    columns = ["method", "TFLOP", "training s, summed over threads", "GFLOP/s",
               "whole run s, all seeds", "peak memory of the device so far, GB"]  # fmt: skip
    return [
        *parts, "## Cost of one seed", "", cost_table(results.cost), "",
        Table(columns, results.work), "",
        "## Changes to the recipes", "", *results.changes,
    ]  # fmt: skip


def main() -> None:
    args = parsed()
    cljax.runtime.keep_freed_memory()
    parts = parts_of(run_all(args))
    print("\n".join(line for part in parts for line in markdown(part)))
    if args.smoke or args.methods:
        return
    tuned = args.rates == "tuned"
    command = f"python experiments/lamaml_table3.py --data-dir DIR --recipe {args.recipe}"
    command += f" --stream {args.stream}" * (args.stream != "cifar100-20x5")
    command += f" --passes {args.passes}" * (args.passes != "single")
    command += f" --variant {args.variant}" * (args.variant != "reference")
    command += " --rates tuned" * tuned
    verdict = "Not the published size, so there is no verdict."
    about = (
        f": {args.seeds} seeds, each with a class order of its own; percent with 95 % "
        f"t-intervals. {verdict if args.small else 'Margin of equivalence 2 points.'} "
        f"On {device()}."
    )
    size = f"{args.stream}_{args.passes}_{args.variant}"
    size = args.recipe + "_tuned" * tuned if args.small else size
    title = f"La-MAML's Table 3: {args.stream}, {args.passes} pass, {args.recipe}"
    write(args.out / f"lamaml_table3_{size}.md", Report(title, command, about, parts))


if __name__ == "__main__":
    main()
