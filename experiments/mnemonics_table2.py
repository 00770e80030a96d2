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
import os
from pathlib import Path

import cljax
from cljax import stats
from cljax.memory.learned import change
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


def percent(cell) -> str:
    if cell is None or cell["mean"] is None:
        return "diverged"
    text = f"{100 * cell['mean']:.2f}"
    if cell["ci95"] is not None:
        text += f" [{100 * cell['ci95'][0]:.2f}, {100 * cell['ci95'][1]:.2f}]"
    return text


def moved(run: cljax.Run) -> str:
    """Mean absolute change of the final exemplars since they were chosen, in grey levels.

    Kept beside the results: the exemplars themselves are not.
    """
    assert run.path is not None
    kept = run.path / "change.json"
    gaps = []
    for state in run.states or ():
        if "chosen" in state.exemplars._fields:
            gap, mask = change(state.exemplars)
            gaps.append(float((gap * mask).sum() / mask.sum()))
    if gaps:
        kept.write_text(json.dumps(gaps))
    gaps = json.loads(kept.read_text()) if kept.exists() else gaps
    return f"{sum(gaps) / len(gaps):.2f}" if gaps else "-"


def shown(method: str) -> list[tuple[str, str]]:
    """(evaluation, method whose row it is): one training of iCaRL gives LwF's too."""
    two = [("logits", "lwf-exemplars"), ("nearest-mean", "icarl")]
    return two if method == "icarl" else [("logits", method)]


def table_rows(method: str, label: str, run: cljax.Run) -> list[str]:
    found, spent = run.results["evaluations"], run.results["time"]
    seeds = len(run.results["seeds"])
    lines = []
    for name, owner in shown(method):
        cells = found[name]["metrics"]
        target = sources()["mnemonics-table1"].cells.get(
            (owner + "+mnemonics" * ("ours" in label), "cifar100-b50-5")
        )
        quoted = "-"
        if target is not None and label in ("as it is", "with ours"):
            quoted = f"{100 * target['AIA'].mean:.2f} / {100 * target['F'].mean:.2f}"
        row = [
            f"{NAMES[owner]}, {label}", percent(cells.get("AIA")), percent(cells.get("F")),
            moved(run), quoted,
            f"{(spent['train_s'] + spent['eval_s']) / seeds:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    return lines


def differences(runs: dict[tuple[str, str], cljax.Run]) -> list[str]:
    """AIA of rows less those that they are compared with."""
    values = {}
    for (method, label), run in runs.items():
        for name, owner in shown(method):
            cell = run.results["evaluations"][name]["metrics"].get("AIA")
            values[f"{NAMES[owner]}, {label}"] = cell and cell["values"]
    asked = [(what, values.get(row), values.get(other)) for what, row, other in QUESTIONS]
    pairs = [
        (what, stats.paired(a, b))
        for what, a, b in asked
        if a and b and len(a) == len(b) > 1 and None not in (*a, *b)
    ]
    if not pairs:
        return []
    adjusted = stats.holm([pair.p_value for _, pair in pairs])
    lines = ["| AIA | difference | p |", "| --- | --- | --- |"]
    for (what, pair), p in zip(pairs, adjusted, strict=True):
        low, high = pair.ci95
        text = f"{100 * pair.diff:+.2f} [{100 * low:.2f}, {100 * high:.2f}]"
        lines.append(f"| {what} | {text} | {p:.3f} |")
    return ["", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--recipe", choices=("cpu_small", "paper"), default="cpu_small")
    parser.add_argument("--phases", type=int, choices=(5, 10, 25), default=5, help="paper only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="rows whose 'METHOD LABEL' contains one of these")
    parser.add_argument("--runs", type=Path, default=Path("runs/mnemonics_table2"))
    parser.add_argument("--smoke", action="store_true", help="6 classes, 1 epoch, a few rows")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/mnemonics_table2.md")
    )  # fmt: skip
    args = parser.parse_args()
    cljax.keep_freed_memory()

    full = args.recipe == "paper"
    options = TINY if args.smoke else "" if full else SMALL
    variant = "without" if full else "cpu-small"
    lines, seeds = [], 1 if args.smoke else args.seeds
    runs: dict[tuple[str, str], cljax.Run] = {}
    for method, label, extra in rows(options, full):
        wanted = f"{method} {label}"
        if args.smoke and wanted not in (
            "lucir learned, weight transfer", "icarl released objective, weight transfer",
        ):  # fmt: skip
            continue
        if args.only and not any(text in wanted for text in args.only):
            continue
        recipe = cljax.recipe(
            method, f"cifar100-b50-{args.phases if full else 5}",
            variant=variant, source="mnemonics-table1" if full else "mnemonics-table2",
        )  # fmt: skip
        net = recipe.net + (":bfloat16" if args.dtype == "bfloat16" else "")
        recipe = recipe.replace(data_dir=args.data_dir, net=net, **extra)
        if args.smoke:
            recipe = recipe.replace(
                classes=6, base=2, classes_per_task=2, samples_per_class=40, per_class=4,
                epochs=1, batch_size=16, balanced_epochs=1,
                net=net.replace("resnet8", "resnet8:2,3,4").replace("resnet32", "resnet32:2,3,4"),
            )  # fmt: skip
        kept = wanted.replace(", ", "-").replace(" ", "-") + f"-{args.recipe}-{args.dtype}"
        kept += f"-{args.phases}" * full + "-smoke" * args.smoke
        run = cljax.run(recipe, seeds=seeds, out=args.runs / kept)
        runs[method, label] = run
        lines += table_rows(method, label, run)
        print("\n".join(table_rows(method, label, run)), flush=True)
        if not args.smoke:
            write(args, seeds, [*lines, *differences(runs)])


def write(args, seeds: int, lines: list[str]) -> None:
    size = (
        "20 classes (10 + 5 x 2), ResNet-8, 10 exemplars a class, 10 epochs a task"
        if args.recipe == "cpu_small"
        else f"100 classes (50 + {args.phases} phases), ResNet-32, 20 exemplars a class"
    )
    asked = f" --only {' '.join(map(repr, args.only))}" if args.only else ""
    text = [
        "# Mnemonics' Table 2", "",
        f"Made by `python experiments/mnemonics_table2.py --data-dir DIR --recipe {args.recipe} "
        f"--dtype {args.dtype}{asked}`: CIFAR-100, {size}; {seeds} seeds, percent with 95 % "
        "t-intervals. Change: mean absolute change of the final exemplars since they were chosen, "
        "in grey levels. Published: AIA / F of 100 classes in 5 phases, beside rows of the same "
        "name; at another size they say how methods compare, not what ours must be.", "",
        "| row | AIA | F | change | published AIA / F | seconds a seed |",
        "| --- | --- | --- | --- | --- | --- |", *lines, "",
    ]  # fmt: skip
    if args.recipe == "cpu_small":
        text.insert(4, f"Learned exemplars: `{SMALL}`.\n")
    old = args.out.read_text() if args.out.exists() else ""
    reading = old[old.index("## Reading") :] if "## Reading" in old else ""
    args.out.write_text("\n".join(text) + ("\n" + reading if reading else ""))


if __name__ == "__main__":
    main()
