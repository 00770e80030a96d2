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
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lamaml_table1 import COST_HEAD, TABLE_HEAD, cost_of, reading_of, row_of

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


def reduced(recipe: cljax.Recipe, net: str, samples: int) -> cljax.Recipe:
    """The recipe with a smaller network, fewer images a task and at most two glances."""
    glances = recipe.method_options.get("glances")
    if recipe.method == "meta-bgd":
        net += ":xavier-normal"
    fewer = {} if glances is None else {"glances": min(glances, GLANCES)}
    return recipe.replace(net=net, samples_per_task=samples, **fewer)


def changes(published: cljax.Recipe, small: cljax.Recipe) -> str:
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


def ordered(runs: Mapping[str, cljax.Run]) -> list[str]:
    """What the pairs say of each step of the published order, a row each."""
    pairs = {(pair.a, pair.b): pair for pair in Study("RA", {}, 0, runs).pairs()}
    lines = []
    for a, b in zip(ORDER, ORDER[1:], strict=False):
        pair, sign = (pairs[a, b], 1) if (a, b) in pairs else (pairs.get((b, a)), -1)
        if pair is None:
            continue
        found = "undecided"
        if pair.p_holm is not None and pair.p_holm < LEVEL:
            found = "confirmed" if sign * pair.test.diff > 0 else "refuted"
        lines.append(f"| {a} > {b} | {found} |")
    return lines


def differences(runs: Mapping[str, cljax.Run], metric: str) -> list[str]:
    lines = []
    for a, b, test, p_holm in Study(metric, {}, 0, runs).pairs():
        interval = "-"
        if test.ci95 is not None:
            interval = f"[{100 * test.ci95[0]:+.2f}, {100 * test.ci95[1]:+.2f}]"
        p = "-" if p_holm is None else f"{p_holm:.3g}"
        dz = "-" if test.effect_size is None else f"{test.effect_size:.2f}"
        lines.append(f"| {a} - {b} | {100 * test.diff:+.2f} | {interval} | {p} | {dz} | {test.n} |")
    return lines


WORK_HEAD = (
    "| method | TFLOP | training s, summed over threads | GFLOP/s | whole run s, all seeds | "
    "peak memory of the device so far, GB |\n| --- | --- | --- | --- | --- | --- |"
)


def work_of(run: cljax.Run, recipe: cljax.Recipe, stream: Stream) -> str:
    """Operations of one seed's updates, counted in the traced program, and how fast they went."""
    spec, seeds = stream.spec(recipe.batch_size), len(run.results["seeds"])
    method = method_of(recipe.method, **recipe.method_options)
    learner = method.bind(net_of(recipe.net)(stream.num_classes), spec)
    updates = run.results["cost"]["examples"] / recipe.batch_size
    flops = updates * of_update(learner, spec).flops
    spent = run.results["time"]
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    row = [
        recipe.method, f"{flops / 1e12:.3g}", f"{spent['train_s'] / seeds:.1f}",
        f"{flops * seeds / spent['train_s'] / 1e9:.3g}", f"{spent['total_s']:.0f}",
        "-" if peak is None else f"{peak / 1e9:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--recipe", choices=("cpu_small", "full"), default="cpu_small")
    parser.add_argument("--stream", choices=STREAMS, default="cifar100-20x5")
    parser.add_argument("--passes", choices=ROWS, default="single")
    parser.add_argument("--variant", choices=("reference", "paper"), default="reference")
    parser.add_argument("--rates", choices=("published", "tuned"), default="published")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--net", help="instead of the recipe's")
    parser.add_argument("--lanes", default="auto", help="how seeds are run, as of cljax run")
    parser.add_argument("--lowering", default="auto", help="of convolutions: auto, patches or xla")
    parser.add_argument("--runs", type=Path, default=Path("runs/lamaml_table3"))
    parser.add_argument("--smoke", action="store_true", help="made-up images, 2 tasks, 2 seeds")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    args = parser.parse_args()
    cljax.keep_freed_memory()

    small, tuned = args.smoke or args.recipe == "cpu_small", args.rates == "tuned"
    if tuned and not small:
        parser.error("--rates tuned goes with --recipe cpu_small alone.")
    methods = args.methods or (SMALL if small else ROWS[args.passes])
    seeds = 2 if args.smoke else args.seeds
    source = f"lamaml-table3-{args.passes}"
    runs: dict[str, cljax.Run] = {}
    lines, costs, works, said = [], [], [], []
    shown: Stream | None = None
    for method in methods:
        published = recipe = cljax.recipe(method, args.stream, source, args.variant)
        stream = None
        if args.smoke:
            recipe = reduced(recipe, TINY_NET, 40)
            options = {**recipe.stream_options, "classes": 10, "val": 0.2}
            stream = cljax.streams.make("cifar100-20x5", **options).build(made_up())
        elif small:
            recipe = reduced(recipe, NET, SAMPLES)
        if tuned:
            recipe = recipe.replace(**TUNED.get(method, {}))
        if args.net:
            recipe = replace(recipe, net=args.net)
        if args.lowering != "auto":
            recipe = replace(recipe, net=f"{recipe.net}:{args.lowering}")
        said.append(f"- {method}: {changes(published, recipe)}")
        print(said[-1], flush=True)
        if stream is None:
            recipe = recipe.replace(data_dir=args.data_dir)
        name = "smoke" if args.smoke else f"{args.recipe}-{args.variant}-{args.passes}"
        own = method + "-tuned" * (tuned and method in TUNED)
        folder = args.runs / f"{name}-{args.stream}" / own
        run = cljax.run(recipe, stream, seeds=seeds, out=folder, lanes=args.lanes)
        runs[method] = run
        lines.append(row_of(run, method, args.stream, source, MARGIN))
        costs.append(cost_of(run, method, args.stream))
        shown = stream or shown or cljax.streams.make(args.stream, **recipe.stream_options).build()
        works.append(work_of(run, recipe, shown))
        print(lines[-1], flush=True)
    text = [TABLE_HEAD.format(whose="published"), *lines, ""]
    for metric in ("RA", "LA", "BTI") if len(runs) > 1 and seeds > 1 else ():
        asked = {m: run for m, run in runs.items() if metric in run.results["metrics"]}
        text += [
            f"## {metric}: differences in points, paired over seeds", "",
            "| pair | difference | 95 % interval | p (Holm) | dz | seeds |",
            "| --- | --- | --- | --- | --- | --- |", *differences(asked, metric), "",
        ]  # fmt: skip
        if metric == "RA":
            text += ["| published order of RA | here |", "| --- | --- |", *ordered(runs), ""]
    text += ["## Cost of one seed", "", COST_HEAD, *costs, "", WORK_HEAD, *works, ""]
    text += ["## Changes to the recipes", "", *said, ""]
    print("\n".join(text))
    if args.smoke or args.methods:
        return
    command = f"python experiments/lamaml_table3.py --data-dir DIR --recipe {args.recipe}"
    command += f" --stream {args.stream}" * (args.stream != "cifar100-20x5")
    command += f" --passes {args.passes}" * (args.passes != "single")
    command += f" --variant {args.variant}" * (args.variant != "reference")
    command += " --rates tuned" * tuned
    title = [
        f"# La-MAML's Table 3: {args.stream}, {args.passes} pass, {args.recipe}", "",
        f"Made by `{command}`: {seeds} seeds, each with a class order of its own; percent with "
        f"95 % t-intervals. {'Not the published size, so there is no verdict.' if small else ''}"
        f"{'' if small else 'Margin of equivalence 2 points.'} On {jax.devices()[0].device_kind}.",
        "",
    ]  # fmt: skip
    size = (
        args.recipe + "_tuned" * tuned if small else f"{args.stream}_{args.passes}_{args.variant}"
    )
    path = args.out / f"lamaml_table3_{size}.md"
    path.write_text("\n".join(title + text) + reading_of(path))


if __name__ == "__main__":
    main()
