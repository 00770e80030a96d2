"""Settings of the multi-task teacher's baselines at a size for CPUs, chosen on validation images.

    python experiments/teacher_tune.py --data-dir DIR [--stream fashion-5-5 ...]
    python experiments/teacher_tune.py --data-dir DIR --smoke

For each method a small grid, three seeds from 1000 on, apart from the reported ones; readouts are
fitted on training images and read on validation images, never on tests. The step size is shared by
all methods, as in the paper; its own row of settings shows what sgd trades. Chosen is the setting
with the best readout of the old task among those whose readout of the new tasks is at most three
points below plain sgd's; where none is, the one with the best mean of old and new. Every sweep is a
folder, so the script goes on where it stopped. The table goes to
experiments/results/teacher_tune.md, the choice by hand into ``cljax.recipes.teacher``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import Report, Table, arguments, percent, printed, write
from teacher_tables import GIVES_UP

import cljax
from cljax import sweep

STREAMS = ("fashion-5-5", "fashion-5-mnist-5", "fashion-4-3-3", "cifar100-10-5")
GRIDS = {
    "sgd": sweep.grid(lr=[0.01, 0.03, 0.1, 0.3, 1.0]),
    # The penalty's gradient grows with the square of the temperature.
    "lwf": sweep.grid(strength=[0.25, 1.0, 2.0], temperature=[1.0])
    + sweep.grid(strength=[0.1, 0.25, 1.0], temperature=[2.0]),
    "ewc": sweep.grid(strength=[0.3, 1.0, 3.0, 10.0, 20.0, 40.0]),
    "hat": sweep.grid(s_max=[3.0, 20.0], strength=[0.01, 0.1, 0.75])
    + sweep.grid(s_max=[100.0, 400.0], strength=[0.1]),
    "oml": sweep.grid(inner_lr=[0.03, 0.3], meta_lr=[0.1]),
}


class Tried(NamedTuple):
    """Readouts on validation images, means over seeds; NaN where a seed diverged."""

    setting: Mapping[str, Any]
    old: float  # of the first task, after the last
    new: float  # of the others, their mean


def tried(
    method: str, stream: str, settings: list[dict[str, Any]], args: argparse.Namespace
) -> list[Tried]:
    recipe = cljax.recipe(method, stream, source="teacher", variant="mini")
    recipe = recipe.replace(data_dir=args.data_dir)
    if args.smoke:
        recipe, settings = recipe.replace(steps=10, pretrain_steps=20), settings[-2:]
    plan = sweep.plan(recipe, None, settings, seeds=1 if args.smoke else 3, readout=True)
    folder = args.runs / (f"{stream}-{method}" + "-smoke" * args.smoke)
    done = sweep.run(plan, folder)
    if done.exit_code:
        raise cljax.errors.Interrupted(f"interrupted and kept in {folder}; the same call goes on.")
    return [
        Tried(setting, *np.mean([last(folder, lane) for lane in plan.lanes if
                                 lane.setting == setting], axis=0))
        for setting in settings
    ]  # fmt: skip


def last(folder: Path, lane: sweep.Lane) -> tuple[float, float]:
    """Readouts of the old and of the new tasks in the end; NaN if the lane diverged."""
    results = json.loads((folder / "lanes" / lane.name / "results.json").read_text("utf-8"))
    if results["diverged"][0] is not None:
        return np.nan, np.nan
    matrix = np.array(results["evaluations"]["readout"]["accuracy_matrix"], float)
    return matrix[0, -1, 0], matrix[0, -1, 1:].mean()


def chosen(found: list[Tried], least: float) -> Tried:
    """The best of the old task that gives up little of the new ones."""
    sound = [one for one in found if np.isfinite(one.old)]
    if not sound:
        raise cljax.errors.UserError("Every setting diverged; try smaller ones.")
    fit = [one for one in sound if one.new >= least]
    return max(fit or sound, key=lambda one: one.old if fit else one.old + one.new)


def rows_of(stream: str, args: argparse.Namespace) -> list[Sequence[Any]]:
    """All settings of a stream, a row each; the chosen ones are marked."""
    shared = cljax.recipe("sgd", stream, source="teacher", variant="mini").method_options["lr"]
    least, rows = -np.inf, []
    for method, settings in GRIDS.items():
        if method not in args.methods:
            continue
        found = tried(method, stream, settings, args)
        if method == "sgd":
            best = next((one for one in found if one.setting["lr"] == shared), found[0])
            least = best.new - GIVES_UP
        else:
            best = chosen(found, least)
        mark = "shared" if method == "sgd" else "*"
        rows += [
            printed([method, sweep.label(one.setting), percent(one.old), percent(one.new),
                     mark if one is best else ""])
            for one in found
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = arguments(
        __doc__, smoke="a stream, two settings, few updates", runs="teacher_tune",
        out="teacher_tune.md",
    )  # fmt: skip
    parser.add_argument("--stream", nargs="*", choices=STREAMS, default=STREAMS)
    parser.add_argument(
        "--methods", nargs="*", choices=GRIDS, default=list(GRIDS),
        help="of these alone; no table is written then",
    )  # fmt: skip
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory()

    about = (
        ": readouts in percent on validation images, means over three seeds apart from the "
        "reported ones, after the last task. Chosen (*): the best readout of the old task among "
        f"settings at most {100 * GIVES_UP:.0f} points below plain sgd's on the new ones; if there "
        "is none, the best mean. The step size of all methods is the specification's; sgd's others "
        "show what it trades, and are not chosen from."
    )
    command = "python experiments/teacher_tune.py --data-dir DIR"
    columns, parts = ["method", "setting", "old", "new", "chosen"], []
    for stream in args.stream[:1] if args.smoke else args.stream:
        print(stream, flush=True)
        parts += [f"## {stream}", "", Table(columns, rows_of(stream, args)), ""]
        if not args.smoke and args.methods == list(GRIDS):
            write(args.out, Report("The teacher's baselines, tuned", command, about, parts))


if __name__ == "__main__":
    main()
