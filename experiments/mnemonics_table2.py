"""Mnemonics' Table 2, and what the gain comes from: exemplars, adjustment, weight transfer.

    python experiments/mnemonics_table2.py --data-dir DIR --recipe cpu_small
    python experiments/mnemonics_table2.py --data-dir DIR --recipe paper --dtype bfloat16
    python experiments/mnemonics_table2.py --data-dir DIR --smoke

Rows: LUCIR with random, herded and learned exemplars, each with and without adjustment of the old
ones, with and without weight transfer, all fine-tuned on their exemplars; LUCIR as it is, and with
weight transfer alone; LwF, iCaRL (one training gives both) and BiC with and without mnemonics; and
the released objective. AIA is the average incremental accuracy, F the forgetting rate; below the
table are the differences that answer what the gain comes from, paired over seeds, Holm-corrected.

``cpu_small`` is CIFAR-100 in 20 classes (10 + 5 x 2) with ResNet-8; ``paper`` is the published
size, ResNet-32 and 100 classes, for an accelerator. Every row is a folder of its own, so the script
goes on where it stopped; rows that are there are read. The table goes to
experiments/results/mnemonics_table2.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from common import (
    Cell,
    Report,
    Table,
    arguments,
    difference,
    metric,
    number,
    of_each,
    printed,
    write,
)

import cljax
from cljax import stats
from cljax.memory.learned import change
from cljax.recipes import Recipe
from cljax.references.published import sources

# Of two cores: fewer outer epochs, inner steps of several images, a step size that is visible.
SMALL = (
    "inner_steps=3,inner_images=3,inner_lr=0.05,outer_epochs=3,lr=0.001,halve_every=1,"
    "normalise=true"
)
TINY = "inner_steps=1,outer_epochs=1"
NAMES = {"lwf-exemplars": "LwF", "icarl": "iCaRL", "bic": "BiC", "lucir": "LUCIR"}
TUNED = {"balanced_epochs": 10, "balanced_lr": 0.01}
KEPT = "LUCIR, {}, weight transfer"
NONE = "LUCIR, {}, no adjustment, weight transfer"
# (what, row, row that it is compared with)
QUESTIONS = [
    ("weight transfer, LUCIR", "LUCIR, weight transfer alone", "LUCIR, as it is"),
    ("weight transfer, iCaRL", "iCaRL, weight transfer alone", "iCaRL, as it is"),
    ("released objective on top of it, iCaRL", "iCaRL, released objective, weight transfer",
     "iCaRL, weight transfer alone"),
    ("fine-tuning on herded exemplars", NONE.format("herding"), "LUCIR, weight transfer alone"),
    ("learned against random", NONE.format("learned"), NONE.format("random")),
    ("learned against herded", NONE.format("learned"), NONE.format("herding")),
    ("herded against random", NONE.format("herding"), NONE.format("random")),
    ("adjusting learned ones", KEPT.format("learned"), NONE.format("learned")),
    ("adjusting herded ones", KEPT.format("herding"), NONE.format("herding")),
    *((f"all of ours, {name}", f"{name}, with ours", f"{name}, as it is")
      for name in ("LwF", "iCaRL", "BiC")),
]  # fmt: skip


def rows(options: str, full: bool) -> list[tuple[str, str, dict]]:
    """(group, label, options of the method) of every row, by method."""
    more = f",{options}" if options else ""
    tuned = {**TUNED, "balanced_epochs": 50} if full else TUNED
    grid = {
        "random, no adjustment": "random",
        "random": f"mnemonics:start=random,new=false{more}",
        "herding, no adjustment": "herding",
        "herding": f"mnemonics:start=herding,new=false{more}",
        "learned, no adjustment": f"mnemonics:old=false{more}",
        "learned": f"mnemonics{':' + options if options else ''}",
    }
    found = [
        ("lucir", f"{label}, {'weight transfer' if transfer == 'kept' else 'all weights'}",
         {"exemplars": policy, "transfer": transfer, **tuned})
        for transfer in ("kept", "none")
        for label, policy in grid.items()
    ]  # fmt: skip
    ours = {"exemplars": grid["learned"], "transfer": "kept", **tuned}
    found += [
        ("lucir", "as it is", {}),
        ("lucir", "weight transfer alone", {"transfer": "kept"}),
        ("icarl", "as it is", {}),
        ("icarl", "with ours", ours),
        ("icarl", "weight transfer alone", {"transfer": "kept"}),
        ("icarl", "released objective, weight transfer",
         {"exemplars": "mnemonics-released", "transfer": "kept"}),
        ("bic", "as it is", {}),
        ("bic", "with ours", ours),
    ]  # fmt: skip
    return found


def moved(run: cljax.Run) -> Cell:
    """Mean absolute change of the final exemplars since they were chosen, in grey levels.

    Stored beside the results: the exemplars themselves are not.
    """
    assert run.path is not None
    stored = run.path / "change.json"
    gaps = []
    for state in run.states or ():
        if "chosen" in state.exemplars._fields:
            gap, mask = change(state.exemplars)
            gaps.append(float((gap * mask).sum() / mask.sum()))
    if gaps:
        stored.write_text(json.dumps(gaps))
    gaps = json.loads(stored.read_text()) if stored.exists() else gaps
    return number(sum(gaps) / len(gaps) if gaps else None)


def shown(method: str) -> list[tuple[str, str]]:
    """(evaluation, method whose row it is): one training of iCaRL gives LwF's too."""
    two = [("logits", "lwf-exemplars"), ("nearest-mean", "icarl")]
    return two if method == "icarl" else [("logits", method)]


def table_rows(method: str, label: str, run: cljax.Run) -> list[Sequence[Any]]:
    found, spent = run.results["evaluations"], run.results["time"]
    seconds = number((spent["train_s"] + spent["eval_s"]) / len(run.results["seeds"]), ".0f")
    rows = []
    for name, owner in shown(method):
        cells, quoted = found[name]["metrics"], None
        target = sources()["mnemonics-table1"].cells.get(
            (owner + "+mnemonics" * ("ours" in label), "cifar100-b50-5")
        )
        if target is not None and label in ("as it is", "with ours"):
            quoted = of_each([100 * target[m].mean for m in ("AIA", "F")], between=" / ")
        row = [f"{NAMES[owner]}, {label}", metric(cells.get("AIA")), metric(cells.get("F")),
               moved(run), quoted, seconds]  # fmt: skip
        rows.append(printed(row))
    return rows


def differences(runs: Mapping[tuple[str, str], cljax.Run]) -> Table | None:
    """AIA of rows less those that they are compared with; None without such rows."""
    values = {}
    for (method, label), run in runs.items():
        for name, owner in shown(method):
            cell = run.results["evaluations"][name]["metrics"].get("AIA")
            values[f"{NAMES[owner]}, {label}"] = cell and cell["values"]
    compared = [(what, values.get(row), values.get(other)) for what, row, other in QUESTIONS]
    pairs = [
        (what, stats.paired(a, b))
        for what, a, b in compared
        if a and b and len(a) == len(b) > 1 and None not in (*a, *b)
    ]
    if not pairs:
        return None
    adjusted = stats.holm([pair.p_value for _, pair in pairs])
    rows = [
        [what, difference(pair), number(p, ".3f")]
        for (what, pair), p in zip(pairs, adjusted, strict=True)
    ]
    return Table(["AIA", "difference", "p"], rows)


def recipe_of(args: argparse.Namespace, method: str, extra: Mapping[str, Any]) -> Recipe:
    full = args.recipe == "paper"
    recipe = cljax.recipe(
        method, f"cifar100-b50-{args.phases if full else 5}",
        variant="without" if full else "cpu-small",
        source="mnemonics-table1" if full else "mnemonics-table2",
    )  # fmt: skip
    net = recipe.net + (":bfloat16" if args.dtype == "bfloat16" else "")
    recipe = recipe.replace(data_dir=args.data_dir, net=net, **extra)
    if not args.smoke:
        return recipe
    return recipe.replace(
        classes=6, base=2, classes_per_task=2, samples_per_class=40, per_class=4,
        epochs=1, batch_size=16, balanced_epochs=1,
        net=net.replace("resnet8", "resnet8:2,3,4").replace("resnet32", "resnet32:2,3,4"),
    )  # fmt: skip


def main() -> None:
    parser = arguments(
        __doc__, smoke="6 classes, 1 epoch, a few rows", recipes=("cpu_small", "paper"), seeds=3,
        runs="mnemonics_table2", out="mnemonics_table2.md",
    )  # fmt: skip
    parser.add_argument("--phases", type=int, choices=(5, 10, 25), default=5, help="paper only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", nargs="*", help="rows whose 'METHOD LABEL' contains one of these")
    args = parser.parse_args()
    cljax.runtime.keep_freed_memory(large=True)

    full = args.recipe == "paper"
    options = TINY if args.smoke else "" if full else SMALL
    seeds, lines = 1 if args.smoke else args.seeds, []
    runs: dict[tuple[str, str], cljax.Run] = {}
    for method, label, extra in rows(options, full):
        wanted = f"{method} {label}"
        if args.smoke and wanted not in (
            "lucir learned, weight transfer", "icarl released objective, weight transfer",
        ):  # fmt: skip
            continue
        if args.only and not any(text in wanted for text in args.only):
            continue
        folder = wanted.replace(", ", "-").replace(" ", "-") + f"-{args.recipe}-{args.dtype}"
        folder += f"-{args.phases}" * full + "-smoke" * args.smoke
        run = cljax.run(recipe_of(args, method, extra), seeds=seeds, out=args.runs / folder)
        runs[method, label] = run
        lines += table_rows(method, label, run)
        if not args.smoke:
            write(args.out, report(args, lines, differences(runs)))


def report(args: argparse.Namespace, lines: Sequence[Any], compared: Table | None) -> Report:
    small = args.recipe == "cpu_small"
    size = (
        "20 classes (10 + 5 x 2), ResNet-8, 10 exemplars a class, 10 epochs a task"
        if small
        else f"100 classes (50 + {args.phases} phases), ResNet-32, 20 exemplars a class"
    )
    about = (
        f": CIFAR-100, {size}; {args.seeds} seeds, percent with 95 % t-intervals. Change: mean "
        "absolute change of the final exemplars since they were chosen, in grey levels. Published: "
        "AIA / F of 100 classes in 5 phases, beside rows of the same name; at another size they "
        "say how methods compare, not what ours must be."
    )
    command = f"python experiments/mnemonics_table2.py --data-dir DIR --recipe {args.recipe} "
    command += f"--dtype {args.dtype}"
    command += f" --only {' '.join(map(repr, args.only))}" if args.only else ""
    columns = ["row", "AIA", "F", "change", "published AIA / F", "seconds a seed"]
    parts = [
        *([f"Learned exemplars: `{SMALL}`.", ""] if small else []), Table(columns, lines),
        *([] if compared is None else ["", compared]),
    ]  # fmt: skip
    return Report("Mnemonics' Table 2", command, about, parts)


if __name__ == "__main__":
    main()
