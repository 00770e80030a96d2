"""La-MAML's Table 1: every row on the three MNIST streams, beside the published numbers.

    python experiments/lamaml_table1.py --data-dir DIR --manifest reference_streams.npz
    python experiments/lamaml_table1.py --smoke

Two versions of each row, 5 seeds. `own`: our angles and permutations, a fresh subset of the images
for each seed, as the papers have it, beside the published numbers. `recorded`: the very angles,
permutations and images on which the authors' code was run once (`--manifest`), beside what it
gave. Rows that the paper names but does not tabulate follow. Every row is a run folder, so the
script goes on where it stopped. The tables go to experiments/results/lamaml_table1.md, between the
title and the section `Reading`, which is kept.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from scipy.special import stdtrit

import cljax
from cljax.methods import CHECKED
from cljax.references.published import published, sources
from cljax.stats import equivalence

TABLE = ("online", "ewc", "gem", "mer", "cmaml", "sync-lamaml", "lamaml")
NAMED = ("independent", "er", "agem", "la-er", "meta-bgd", "iid")
STREAMS = ("mnist-rotations", "mnist-permutations", "mnist-many-permutations")
MARGIN = 0.015


def percent(summary) -> str:
    if summary is None:  # it has no meaning for this method
        return "-"
    text = f"{100 * summary['mean']:.2f}"
    if summary["ci95"] is None:
        return text
    return f"{text} [{100 * summary['ci95'][0]:.2f}, {100 * summary['ci95'][1]:.2f}]"


def against(
    values, source: str, method: str, stream: str, metric: str, margin: float = MARGIN
) -> str:
    """Target, difference and verdict, or a dash where there is no such number."""
    try:
        target = published(source, method=method, stream=stream)[metric]
    except (cljax.errors.UserError, KeyError):
        return "-"
    verdict = equivalence(values, target, margin)
    accepted = "accepted" if verdict.accepted else "not accepted"
    std = "" if target.std is None else f" ± {100 * target.std:.2f}"
    text = f"{100 * target.mean:.2f}{std}, {100 * verdict.diff:+.2f}: {verdict.verdict}, {accepted}"
    if target.n == 1 and len(values) > 1:
        # Where one run of the same distribution falls with 95 % probability.
        reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) * (1 + 1 / len(values)) ** 0.5
        low, high = values.mean() - reach, values.mean() + reach
        text += f"; one of our runs: {100 * low:.1f} to {100 * high:.1f}"
    return text


def row_of(run: cljax.Run, method: str, stream: str, source: str, margin: float = MARGIN) -> str:
    cells = run.results["metrics"]
    comparable = run.config["stream_facts"]["published"]
    row = [stream, method, CHECKED[method], *(percent(cells.get(m)) for m in ("RA", "LA", "BTI"))]
    for metric in ("RA", "BTI"):
        if comparable and metric in cells:
            row.append(against(run.metric(metric), source, method, stream, metric, margin))
        else:
            row.append("-")
    return "| " + " | ".join(row) + " |"


TABLE_HEAD = (
    "| stream | method | checked | RA | LA | BTI | RA of {whose}, difference | "
    "BTI of {whose}, difference |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
COST_HEAD = (
    "| stream | method | RA | gradient evaluations an example | TFLOP, analytic | state, MB | "
    "training s | compile s |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def reading_of(path: Path) -> str:
    """The section `Reading` of a results file, which is written by hand."""
    old = path.read_text() if path.exists() else ""
    return old[old.index("## Reading") :] if "## Reading" in old else ""


def cost_of(run: cljax.Run, method: str, stream: str) -> str:
    cost, seeds = run.results["cost"], len(run.results["seeds"])
    state = cost["state_bytes"]
    named = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in state.items() if size > 1000)
    time = run.results["time"]
    row = [
        stream, method, f"{run.metric('RA').mean() * 100:.1f}",
        f"{cost['gradient_evaluations'] / cost['examples']:.1f}",
        "-" if not cost["flops_analytic"] else f"{cost['flops_analytic'] / 1e12:.3f}",
        f"{sum(state.values()) / 1e6:.2f} ({named})",
        f"{time['train_s'] / seeds:.1f}", f"{time['compile_s']:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--manifest", help="recorded angles, permutations and indices (.npz)")
    parser.add_argument("--runs", type=Path, default=Path("runs/lamaml_table1"))
    parser.add_argument("--methods", nargs="*", default=[*TABLE, *NAMED])
    parser.add_argument("--streams", nargs="*", default=STREAMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--smoke", action="store_true", help="2 tasks of the sample, 2 seeds, a stream"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/lamaml_table1.md"),
        help="written only with all methods and streams, and not by --smoke",
    )  # fmt: skip
    args = parser.parse_args()

    small = {"sample": True, "num_tasks": 2, "samples_per_task": 60}
    seeds, streams = (2, args.streams[:1]) if args.smoke else (args.seeds, args.streams)
    versions = {"own": ({}, "lamaml-table1", "published")}
    if args.manifest:
        recorded = ({"stream_manifest": args.manifest}, "reference-runs", "the authors' code")
        versions["recorded"] = recorded
    lines, costs = [], []
    for version, (options, source, whose) in versions.items():
        lines += [f"## Streams: {version}", "", TABLE_HEAD.format(whose=whose)]
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
                lines.append(row_of(run, method, stream, source))
                if version == "own":
                    costs.append(cost_of(run, method, stream))
                print(lines[-1], flush=True)
        lines.append("")
    lines += ["## Cost of one seed", "", COST_HEAD, *costs, ""]
    print("\n".join(costs))
    whole = set(args.methods) >= {*TABLE, *NAMED} and set(args.streams) >= set(STREAMS)
    if args.smoke or not whole:
        return
    title = (
        "# La-MAML's Table 1 on MNIST streams\n\n"
        "Made by `python experiments/lamaml_table1.py --data-dir DIR --manifest FILE`: each pair's "
        f"recipe, {seeds} seeds, percent with 95 % t-intervals; margin of equivalence 1.5 points. "
        "A gradient evaluation is one backward pass, over whatever examples it takes. Training "
        "seconds are those of a thread.\n\n"
    )
    reading = reading_of(args.out)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(title + "\n".join(lines) + reading)


if __name__ == "__main__":
    main()
