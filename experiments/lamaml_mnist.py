"""La-MAML's family on the three MNIST streams, beside the published numbers and the authors' code.

    python experiments/lamaml_mnist.py --data-dir DIR --manifest reference_streams.npz
    python experiments/lamaml_mnist.py --smoke

Two versions of each row, 5 seeds: `recorded`, the exact angles, permutations and images on which
the authors' code was run here (`--stream-manifest`); and `own`, our angles and permutations with a
fresh subset of the images for each seed, as the papers have it. Every row is a run folder, so the
script goes on where it stopped. The table goes to experiments/results/lamaml_mnist.md.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from scipy.special import stdtrit

import cljax
from cljax.published import published
from cljax.stats import equivalence

METHODS = ("lamaml", "cmaml", "sync-lamaml")
STREAMS = ("mnist-rotations", "mnist-permutations", "mnist-many-permutations")
MARGIN = 0.015


def percent(summary) -> str:
    text = f"{100 * summary['mean']:.2f}"
    if summary["ci95"] is None:
        return text
    return f"{text} [{100 * summary['ci95'][0]:.2f}, {100 * summary['ci95'][1]:.2f}]"


def against(values, source: str, method: str, stream: str, metric: str) -> str:
    """Target, difference and verdict, or a dash where there is no such number."""
    try:
        target = published(source, method=method, stream=stream)[metric]
    except (cljax.errors.UserError, KeyError):
        return "-"
    verdict = equivalence(values, target, MARGIN)
    accepted = "accepted" if verdict.accepted else "not accepted"
    text = f"{100 * target.mean:.2f}, {100 * verdict.diff:+.2f}: {verdict.verdict}, {accepted}"
    if target.n == 1 and len(values) > 1:
        # Where one run of the same distribution falls with 95 % probability.
        reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) * (1 + 1 / len(values)) ** 0.5
        low, high = values.mean() - reach, values.mean() + reach
        text += f"; one of our runs: {100 * low:.1f} to {100 * high:.1f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--manifest", help="recorded angles, permutations and indices (.npz)")
    parser.add_argument("--runs", type=Path, default=Path("runs/lamaml_mnist"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="2 tasks of the sample, 2 seeds")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/lamaml_mnist.md"))
    args = parser.parse_args()

    small = {"sample": True, "num_tasks": 2, "samples_per_task": 60}
    seeds = 2 if args.smoke else args.seeds
    versions = {"own": {}} | (
        {"recorded": {"stream_manifest": args.manifest}} if args.manifest else {}
    )
    lines = []
    for version, options in sorted(versions.items(), reverse=True):
        lines += [
            f"## Streams: {version}", "",
            "| stream | method | RA | LA | BTI | RA published, difference | BTI published, "
            "difference | RA of the authors' code, difference | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for stream in STREAMS:
            if version == "recorded" and stream == "mnist-many-permutations":
                continue  # the authors' code was not run on it
            for method in METHODS:
                recipe = cljax.recipe(method, stream, "lamaml", "reference")
                data = small if args.smoke else {"data_dir": args.data_dir, **options}
                out = args.runs / re.sub(r"\W+", "-", f"{version}-{method}-{stream}")
                run = cljax.run(
                    recipe.replace(**data),
                    seeds=seeds,
                    out=out.with_name(out.name + "-smoke" * args.smoke),
                )
                cells = run.results["metrics"]
                row = [stream, method, *(percent(cells[name]) for name in ("RA", "LA", "BTI"))]
                for source, metric in (
                    ("lamaml-table1", "RA"), ("lamaml-table1", "BTI"), ("reference-runs", "RA"),
                ):  # fmt: skip
                    comparable = run.config["stream_facts"]["published"] and not (
                        version == "own" and source == "reference-runs"
                    )
                    row.append(
                        against(run.metric(metric), source, method, stream, metric)
                        if comparable
                        else "-"
                    )
                row.append(f"{run.results['time']['total_s']:.0f}")
                lines.append("| " + " | ".join(row) + " |")
                print(lines[-1], flush=True)
        lines.append("")
    if not args.smoke:
        command = "python experiments/lamaml_mnist.py --data-dir DIR --manifest FILE"
        title = (
            "# La-MAML's family on MNIST streams\n\n"
            f"Made by `{command}`: recipe `lamaml:reference`, {seeds} seeds, percent with 95 % "
            "t-intervals; margin of equivalence 1.5 points; the authors' code ran once, on the "
            "recorded streams.\n\n"
        )
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(title + "\n".join(lines))


if __name__ == "__main__":
    main()
