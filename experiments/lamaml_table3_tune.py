"""Rates of ``lamaml_table3.py --recipe cpu_small``, chosen on validation images.

    python experiments/lamaml_table3_tune.py --data-dir DIR [--methods er ...]
    python experiments/lamaml_table3_tune.py --data-dir DIR --smoke

For each method but A-GEM, which keeps its values, a small grid around the published ones, seeds
from 1000 on, apart from the reported ones: the accuracy after the last task, on a tenth of each
class's training images that no task learns from. Tests choose nothing. ``er`` is tuned with either
number of replayed examples, the released script's 1 and the paper's 10, which is what the meta-
learners replay. Chosen is the best mean. Every sweep is a folder, so the script goes on where it
stopped. The table goes to experiments/results/lamaml_table3_tune.md, the choice by hand into
``lamaml_table3.TUNED``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, Table, arguments, of_each, percent, printed, write
from lamaml_table3 import NET, SAMPLES, TINY_NET, changes, reduced

import cljax
from cljax import sweep

SOURCE, STREAM = "lamaml-table3-single", "cifar100-20x5"
# The first setting of each is the released script's, less what cpu_small reduces.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "lamaml": sweep.grid(alpha_init=[0.1, 0.03, 0.2], alpha_lr=[0.25, 0.8]),
    "sync-lamaml": sweep.grid(lr=[0.1, 0.03, 0.3], alpha_lr=[0.35, 0.1]),
    "cmaml": [dict(alpha_init=rate, lr=rate) for rate in (0.075, 0.03, 0.15, 0.3)],
    "er": sweep.grid(replay_size=[1, 10], lr=[0.03, 0.01, 0.1, 0.3]),
}


def tried(
    method: str, settings: list[dict[str, Any]], args: argparse.Namespace
) -> tuple[str, list[np.ndarray]]:
    """What the recipe reduces, and RA of each setting on validation images, a value a seed."""
    published = cljax.recipe(method, STREAM, SOURCE, "reference")
    recipe = reduced(published, TINY_NET if args.smoke else NET, 40 if args.smoke else SAMPLES)
    said = changes(published, recipe)
    recipe = recipe.replace(data_dir=args.data_dir)
    plan = sweep.plan(recipe, None, settings, seeds=1 if args.smoke else args.seeds)
    folder = args.runs / (method + "-smoke" * args.smoke)
    done = sweep.run(plan, folder)
    if done.exit_code:
        raise cljax.errors.Interrupted(f"interrupted and kept in {folder}; the same call goes on.")
    return said, [
        np.array([_last(folder, lane) for lane in plan.lanes if lane.setting == setting])
        for setting in settings
    ]


def _last(folder: Path, lane: sweep.Lane) -> float:
    """RA of a lane; NaN if it diverged."""
    results = json.loads((folder / "lanes" / lane.name / "results.json").read_text("utf-8"))
    diverged = results["diverged"][0] is not None
    return np.nan if diverged else results["metrics"]["RA"]["mean"]


def main() -> None:
    parser = arguments(
        __doc__, smoke="two settings, one seed, 20 x 40 images", seeds=2, runs="lamaml_table3_tune",
        out="lamaml_table3_tune.md",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="*", choices=GRIDS, default=list(GRIDS),
        help="of these alone; no table is written then",
    )  # fmt: skip
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory()

    rows, reductions = [], []
    for method in args.methods:
        settings = GRIDS[method][:2] if args.smoke else GRIDS[method]
        said, values = tried(method, settings, args)
        reductions.append(f"- {method}: {said}")
        means = [v.mean() for v in values]
        best = int(np.nanargmax(means))
        for i, (setting, own) in enumerate(zip(settings, values, strict=True)):
            row = [method, sweep.label(setting), percent(means[i]), of_each(100 * own),
                   "*" if i == best else ""]  # fmt: skip
            rows.append(printed(row))
    if args.smoke or args.methods != list(GRIDS):
        return
    about = (
        f": RA in percent on validation images, mean and values of {args.seeds} seeds apart from "
        "the reported ones. Chosen (*): the best mean. The first setting of each method is the "
        "released script's."
    )
    table = Table(["method", "setting", "RA", "of each seed", "chosen"], rows)
    command = "python experiments/lamaml_table3_tune.py --data-dir DIR"
    parts = [table, "", "Reduced:", "", *reductions]
    write(args.out, Report("Rates of La-MAML's Table 3 in small", command, about, parts))


if __name__ == "__main__":
    main()
