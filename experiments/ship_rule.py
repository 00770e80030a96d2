"""The learned update rule that cljax ships: meta-trained once, judged on networks it never saw.

    python experiments/ship_rule.py --data-dir DIR
    python experiments/ship_rule.py --data-dir DIR --smoke

The multi-task teacher's experiment 1 in small, with 16 networks to start from: seed 0 meta-trains
the rule, which is then rounded to half precision. Seeds 1 to 5 start from networks of their own,
learn the new task by the rule, by SGD and by SGD at a tenth of its step size, and linear readouts
say what is left of the old task; likewise on fashion-5-mnist-5, whose new classes the rule never
practised on. The rule and its provenance go to cljax/update_rules/shipped_rules. Runs are folders,
so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import arguments

import cljax
from cljax import stats
from cljax.storage.files import write_arrays, write_json

NAME = "fashion-5-5"
OUT = Path("cljax/update_rules/shipped_rules")
SEEDS = (1, 2, 3, 4, 5)
ON = (NAME, "fashion-5-mnist-5")
TINY = {"episodes": 4, "windows": 4, "longest": 4, "truncation": 2, "truncation_cap": 2,
        "target": 4, "episodes_at_once": 2, "hidden": 4, "hidden_norm": 4, "rho": 40.0}  # fmt: skip


def recipe_of(args: argparse.Namespace, method: str, stream: str) -> cljax.Recipe:
    found = cljax.recipe(method, stream, source="teacher", variant="mini")
    found = found.replace(data_dir=args.data_dir)
    return found.replace(steps=20, pretrain_steps=20) if args.smoke else found


def learned(args: argparse.Namespace) -> tuple[cljax.Run, dict[str, np.ndarray]]:
    """The run that meta-trained the rule, and the rule in half precision, by path."""
    recipe = recipe_of(args, "teacher", NAME).replace(checkpoints=2 if args.smoke else 16)
    recipe = recipe.replace(**(TINY if args.smoke else {}))
    run = cljax.run(recipe, seeds=[0], readout=True, eval_every=50, out=args.runs / "rule")
    theta = run.state.states[0].inner.theta
    paths = jax.tree_util.tree_leaves_with_path(theta)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}
    return run, {name: np.asarray(leaf, np.float16) for name, leaf in named.items()}


def judged(args: argparse.Namespace, rule: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """By stream and method, the readouts of both tasks; differences are paired over seeds."""
    theta = cljax.update_rules.shipped.read(rule.read_bytes())
    found: dict[str, Any] = {}
    for stream in ON:
        sgd = recipe_of(args, "sgd", stream)
        rows = {
            "rule": recipe_of(args, "teacher", stream).replace(rule=theta, **options),
            "sgd": sgd,
            "sgd x 0.1": sgd.replace(lr=sgd.method_options["lr"] / 10),
        }
        ends = {}
        for name, recipe in rows.items():
            run = cljax.run(recipe, seeds=SEEDS[: 2 if args.smoke else 5], readout=True)
            ends[name] = run.accuracy_matrix("readout")[:, -1]
        found[stream] = {name: _by_task(end) for name, end in ends.items()}
        for name in ("sgd", "sgd x 0.1"):
            pairs = [stats.paired(ends["rule"][:, t], ends[name][:, t]) for t in (0, 1)]
            found[stream][f"rule less {name}"] = {
                task: {"mean": pair.diff, "ci95": list(pair.ci95 or ())}
                for task, pair in zip(("old", "new"), pairs, strict=True)
            }
    return found


def _by_task(ends: np.ndarray) -> dict[str, Any]:
    both = {task: stats.summary(ends[:, t]) for t, task in enumerate(("old", "new"))}
    return {
        task: {"mean": s.mean, "ci95": list(s.ci95 or ()), "values": list(s.values)}
        for task, s in both.items()
    }


def main() -> None:
    parser = arguments(__doc__, smoke="a few updates, two seeds", runs="ship_rule", out="")
    args = parser.parse_args()
    out = args.runs if args.smoke else OUT
    out.mkdir(parents=True, exist_ok=True)
    run, arrays = learned(args)
    write_arrays(out / f"{NAME}.npz", arrays)
    known = run.config["method"]["options"]
    options = {name: known[name] for name in ("hidden", "hidden_norm", "lr")}
    write_json(
        out / f"{NAME}.json",
        {
            "name": NAME,
            "command": "python experiments/ship_rule.py --data-dir DIR",
            "paper": "Xiong, Ren, Zeng, Urtasun 2019 (arXiv:1910.04650), experiment 1, in small",
            "data": {**run.results["data"], "stream": run.results["stream"]},
            "net": run.config["net"],
            "options": options,
            "meta_training": known,
            "seed": 0,
            "seconds": round(run.results["time"]["total_s"]),
            "versions": run.config["versions"],
            "config_hash": run.config["config_hash"],
            "precision": "float16, judged so",
            "judged_on_seeds": list(SEEDS),
            "readouts": judged(args, out / f"{NAME}.npz", options),
            "sha256": hashlib.sha256((out / f"{NAME}.npz").read_bytes()).hexdigest(),
        },
    )
    print(json.dumps(json.loads((out / f"{NAME}.json").read_text("utf-8"))["readouts"], indent=1))


if __name__ == "__main__":
    main()
