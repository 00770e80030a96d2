"""La-MAML's Table 1: every row on the three MNIST streams, beside the published numbers.

    python experiments/lamaml_table1.py --data-dir DIR --manifest reference_streams.npz
    python experiments/lamaml_table1.py --smoke

Two versions of each row, 5 seeds. `own`: our angles and permutations, a fresh subset of the images
for each seed, as the papers have it, beside the published numbers. `recorded`: the very angles,
permutations and images on which the authors' code was run once (`--manifest`), beside what it
gave. Rows that the paper names but does not tabulate follow. Every row is a run folder, so the
script goes on where it stopped. The tables go to experiments/results/lamaml_table1.md, between the
title and the section `Reading`, which is kept, and only with all methods and streams.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from common import Cell, Report, Table, arguments, metric, number, percent, printed, write
from scipy.special import stdtrit

import cljax
from cljax.methods import CHECKED
from cljax.references.published import published, sources
from cljax.stats import equivalence

TABLE = ("online", "ewc", "gem", "mer", "cmaml", "sync-lamaml", "lamaml")
NAMED = ("independent", "er", "agem", "la-er", "meta-bgd", "iid")
STREAMS = ("mnist-rotations", "mnist-permutations", "mnist-many-permutations")
MARGIN = 0.015


def against(
    values, source: str, method: str, stream: str, measure: str, margin: float = MARGIN
) -> Cell | None:
    """Target, difference and verdict; None where there is no such number."""
    try:
        target = published(source, method=method, stream=stream)[measure]
    except (cljax.errors.UserError, KeyError):
        return None
    verdict = equivalence(values, target, margin)
    accepted = "accepted" if verdict.accepted else "not accepted"
    std = "" if target.std is None else f" ± {100 * target.std:.2f}"
    text = f"{100 * target.mean:.2f}{std}, {100 * verdict.diff:+.2f}: {verdict.verdict}, {accepted}"
    value = {
        "published": 100 * target.mean,
        "published_std": None if target.std is None else 100 * target.std,
        "difference": 100 * verdict.diff, "verdict": verdict.verdict, "accepted": verdict.accepted,
    }  # fmt: skip
    if target.n == 1 and len(values) > 1:
        # Where one run of the same distribution falls with 95 % probability.
        reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) * (1 + 1 / len(values)) ** 0.5
        low, high = 100 * (values.mean() - reach), 100 * (values.mean() + reach)
        text += f"; one of our runs: {low:.1f} to {high:.1f}"
        value |= {"run_low": float(low), "run_high": float(high)}
    return Cell(text, value)


def row_of(
    run: cljax.Run, method: str, stream: str, source: str, margin: float = MARGIN
) -> Sequence[Any]:
    """A row of ``accuracy_table``, printed."""
    cells = run.results["metrics"]
    comparable = run.config["stream_facts"]["published"]
    beside = [
        against(run.metric(name), source, method, stream, name, margin)
        if comparable and name in cells else None
        for name in ("RA", "BTI")
    ]  # fmt: skip
    measures = (metric(cells.get(name), absent="-") for name in ("RA", "LA", "BTI"))
    return printed([stream, method, CHECKED[method], *measures, *beside])


def accuracy_table(rows: Sequence[Sequence[Any]], whose: str) -> Table:
    """Rows of ``row_of`` beside the numbers of ``whose``."""
    columns = ["stream", "method", "checked", "RA", "LA", "BTI",
               *(f"{name} of {whose}, difference" for name in ("RA", "BTI"))]  # fmt: skip
    return Table(columns, rows)


def cost_of(run: cljax.Run, method: str, stream: str) -> Sequence[Any]:
    """A row of ``cost_table``."""
    cost, seeds, time = run.results["cost"], len(run.results["seeds"]), run.results["time"]
    sizes = {name: size / 1e6 for name, size in cost["state_bytes"].items()}
    total, large = sum(sizes.values()), {name: mb for name, mb in sizes.items() if mb > 1e-3}
    parts = ", ".join(f"{name} {mb:.2f}" for name, mb in large.items())
    flops = cost["flops_analytic"]
    return [
        stream, method, percent(run.metric("RA").mean(), ".1f"),
        number(cost["gradient_evaluations"] / cost["examples"], ".1f"),
        number(flops / 1e12 if flops else None, ".3f"),
        Cell(f"{total:.2f} ({parts})", {"total": total, **large}),
        number(time["train_s"] / seeds, ".1f"), number(time["compile_s"], ".1f"),
    ]  # fmt: skip


def cost_table(rows: Sequence[Sequence[Any]]) -> Table:
    """Rows of ``cost_of``."""
    columns = ["stream", "method", "RA", "gradient evaluations an example", "TFLOP, analytic",
               "state, MB", "training s", "compile s"]  # fmt: skip
    return Table(columns, rows)


def main() -> None:
    parser = arguments(
        __doc__, smoke="2 tasks of the sample, 2 seeds, a stream", seeds=5, runs="lamaml_table1",
        out="lamaml_table1.md",
    )  # fmt: skip
    parser.add_argument("--manifest", help="recorded angles, permutations and indices (.npz)")
    parser.add_argument("--methods", nargs="*", default=[*TABLE, *NAMED])
    parser.add_argument("--streams", nargs="*", default=STREAMS)
    args = parser.parse_args()

    small = {"sample": True, "num_tasks": 2, "samples_per_task": 60}
    seeds, streams = (2, args.streams[:1]) if args.smoke else (args.seeds, args.streams)
    versions = {"own": ({}, "lamaml-table1", "published")}
    if args.manifest:
        recorded = ({"stream_manifest": args.manifest}, "reference-runs", "the authors' code")
        versions["recorded"] = recorded
    parts, costs = [], []
    for version, (options, source, whose) in versions.items():
        rows = []
        for stream in streams:
            for method in args.methods:
                if version == "recorded" and (method, stream) not in sources()[source].cells:
                    continue  # the authors' code was not run on it
                recipe = cljax.recipe(method, stream)
                data = small if args.smoke else {"data_dir": args.data_dir, **options}
                name = re.sub(r"\W+", "-", f"{version}-{method}-{stream}") + "-smoke" * args.smoke
                # 100 tasks are 5050 tests a seed; RA, LA and BTI need 200.
                entries = "diagonal-last" if "many" in stream else recipe.entries
                recipe = recipe.replace(**data, entries=entries)
                run = cljax.run(recipe, seeds=seeds, out=args.runs / name)
                rows.append(row_of(run, method, stream, source))
                if version == "own":
                    costs.append(cost_of(run, method, stream))
        parts += [f"## Streams: {version}", "", accuracy_table(rows, whose), ""]
    for row in costs:
        printed(row)
    whole = set(args.methods) >= {*TABLE, *NAMED} and set(args.streams) >= set(STREAMS)
    if whole and not args.smoke:
        about = (
            f": each pair's recipe, {seeds} seeds, percent with 95 % t-intervals; margin of "
            "equivalence 1.5 points. A gradient evaluation is one backward pass, over whatever "
            "examples it takes. Training seconds are those of a thread."
        )
        command = "python experiments/lamaml_table1.py --data-dir DIR"
        command += " --manifest FILE" * bool(args.manifest)
        parts += ["## Cost of one seed", "", cost_table(costs)]
        write(args.out, Report("La-MAML's Table 1 on MNIST streams", command, about, parts))


if __name__ == "__main__":
    main()
