"""Tables that people read: of systems in README.md, of numbers and of speed in a guide.

    python experiments/systems_table.py            # writes them, between markers
    python experiments/systems_table.py --check    # exits with 1 where a file says otherwise

A system: what it is, needs and reproduces.

What is reproduced comes from the JSON files in experiments/results (their format: ``common.py``): a
published number, ours with its 95 % interval, and the verdict that stands beside it there. A number
without a verdict there has none here. Results at another size than the published one are named, not
compared. Seconds are those of the files that the commands beside them write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cljax.methods import CHECKED
from cljax.stats import with_interval

HERE = Path(__file__).resolve().parent
RESULTS, ROOT = HERE / "results", HERE.parent
README, GUIDE = ROOT / "README.md", ROOT / "notebooks" / "guides" / "results.md"
MARKS = "<!-- {}, by experiments/systems_table.py -->", "<!-- end of {} -->"

# Names, what it is, memory, what it asks for.
SYSTEMS = (
    ("lamaml sync-lamaml cmaml", "look-ahead meta-updates, with learned or fixed rates",
     "reservoir", "-"),
    ("la-er", "replay with rates learned by look-ahead", "reservoir", "-"),
    ("meta-bgd", "look-ahead with Bayesian gradient descent", "reservoir", "-"),
    ("er", "experience replay (ER4, ER5, multi-head)", "reservoir", "-"),
    ("mir", "replay of what a step on the batch would harm most", "reservoir", "-"),
    ("gdumb", "a network trained from scratch on the memory, before each test",
     "greedy, balanced by class", "-"),
    ("er-ace", "replay, new classes learned among themselves", "reservoir", "-"),
    ("der der++", "replay of stored logits, and of labels beside them", "reservoir with logits",
     "-"),
    ("ncm slda ranpac fecam", "classifiers solved for, on features of a frozen network",
     "sums of features", "-"),
    ("mer", "meta-experience replay, algorithms 1, 6 and 7", "reservoir", "-"),
    ("gem agem", "projected gradients", "ring", "tasks"),
    ("icarl-ti", "exemplars and distillation, a head a task", "exemplars", "tasks, also at test"),
    ("finetune online sgd", "the stream as it comes", "-", "-"),
    ("ewc", "fine-tuning with a penalty", "Fisher", "task ends"),
    ("online-ewc si mas rwalk lwf", "likewise", "penalty", "task ends"),
    ("itaml", "task-agnostic meta-learning that infers the task of a continuum", "exemplars",
     "tasks, a continuum at test"),
    ("reptile fomaml", "first-order meta-learning over the tasks of a mini-batch", "exemplars",
     "tasks"),
    ("replayed oracle",
     "the task with exemplars of earlier ones (iTAML's Joint), or with all past data",
     "exemplars, or all", "tasks"),
    ("icarl bic", "distillation with exemplars; nearest mean, or a correction of the bias",
     "exemplars", "tasks"),
    ("lwf-exemplars lucir",
     "distillation, head; cosine head, features that keep their direction, margin", "exemplars",
     "tasks"),
    ("fixed-rep", "the first task's features, and a head that grows", "-", "tasks"),
    ("teacher", "a learned update rule that follows a multi-task teacher", "-",
     "tasks, held-out classes"),
    ("multitask", "bound: each batch with examples of all earlier tasks", "all", "tasks"),
    ("hat", "a learned mask of units for each task", "masks", "tasks, also at test"),
    ("oml rep", "features learned on held-out classes too, then the stream as it comes", "-",
     "held-out classes"),
    ("independent", "a network for each task", "-", "tasks, also at test"),
    ("joint iid", "bounds: all examples so far, or all", "-", "-"),
)  # fmt: skip
# Files of results at another size than the published one, and the systems in them.
SMALL = {
    "lamaml_table3_cpu_small.json": ("La-MAML, Table 3", "lamaml sync-lamaml cmaml er"),
    "mnemonics_table2.json": ("mnemonics, Table 2", "lucir icarl lwf-exemplars bic"),
    "teacher_mini_*.json": ("multi-task teacher", "teacher"),
}


class Pick(NamedTuple):
    """A number of a file: of the first row that has these values, or among its ``numbers``."""

    column: str
    row: dict[str, str] = {}  # empty: ``column`` names one of ``numbers``


# What was timed, its file, the numbers there, and how they are shown.
_WHOLE = "whole process s (median, range)"
SPEEDS = (
    ("La-MAML, 20 tasks of rotated digits: a whole process, one seed", "lamaml_speed",
     [Pick(_WHOLE, {"run": "one seed, low-rank"})], "{:.1f} s"),
    ("the same, with compiled programs kept from before", "lamaml_speed",
     [Pick(_WHOLE, {"run": "one seed, low-rank, warm cache"})], "{:.1f} s"),
    ("the same, five seeds", "lamaml_speed",
     [Pick(_WHOLE, {"run": "five seeds, low-rank"})], "{:.1f} s"),
    *((what, "lamaml_table2",
       [Pick(column, {"stream": "mnist-rotations", "method": method})
        for column in ("whole process", "authors' code")], "{:.1f} s; {:.0f} s")
      for method, what in (
          ("lamaml", "La-MAML: a whole process of one seed, beside the authors' code"),
          ("mer", "MER: likewise"))),
    ("iTAML on split MNIST: a whole process, one seed", "itaml_speed",
     [Pick("whole process, median s")], "{:.1f} s"),
    ("64 lanes as one sweep, beside single processes", "sweep_throughput",
     [Pick("throughput of a lane, times that of single processes")],
     "{:.2f} times their throughput"),
    ("a second-order meta-step of La-MAML's 160-channel network, beside PyTorch's", "cnn_speed",
     [Pick("best ms", {"what": f"{whose}: meta-step"}) for whose in ("JAX", "PyTorch")],
     "{:.1f} ms; {:.1f} ms"),
    ("a training step of ResNet-32, 128 images, beside PyTorch's (its faster layout)",
     "resnet32_speed",
     [Pick("best ms", {"training step": step})
      for step in ("JAX", "PyTorch, channels_last")], "{:.0f} ms; {:.0f} ms"),
)  # fmt: skip


class Line(NamedTuple):
    """A published number beside ours, as a file of results has them; in percent."""

    method: str
    where: str  # stream and measure
    published: str
    ours: str
    verdict: str  # "-": none is stated
    source: str
    file: str  # the Markdown file


def read(path: Path) -> dict[str, Any]:
    """A JSON file of results."""
    return json.loads(path.read_text("utf-8"))


def shown(cell: dict[str, Any]) -> str:
    """A mean with its interval."""
    return with_interval(cell["mean"], (cell["low"], cell["high"]))


def of_lamaml(results: dict[str, Any], file: str) -> Iterator[Line]:
    """A verdict and whether it is accepted, beside each published RA."""
    source = f"La-MAML, Table {results['experiment'].removeprefix('lamaml_table')[0]}"
    for row in (row for table in results["tables"] for row in table["rows"]):
        cell = row.get("RA of published, difference")
        if cell is None:
            continue
        published, std = f"{cell['published']:.2f}", cell.get("published_std")
        published += "" if std is None else f" ± {std:.2f}"
        verdict = f"{cell['verdict']}, {'accepted' if cell['accepted'] else 'not accepted'}"
        where = f"{row['stream']}, RA"
        yield Line(row["method"], where, published, shown(row["RA"]), verdict, source, file)


def of_itaml(results: dict[str, Any], file: str) -> Iterator[Line]:
    """A verdict of each protocol.

    Of each method the first row, iTAML's being the released script; iTAML in the protocol that
    infers the task, the others by single examples.
    """
    seen = set()
    for row in results["tables"][0]["rows"]:
        method, cell = row["method"].partition(",")[0].split(" ")[0], row["published"]
        if method in seen or not isinstance(cell, dict):
            continue
        seen.add(method)
        protocol, column, name = "no-update", "per sample", "single examples"
        if method == "itaml":
            protocol, column = "task-agnostic", "continuum, task inferred"
            name = "task inferred"
        verdict = cell["protocols"].get(protocol, {"verdict": "-"})["verdict"]
        published = f"{cell['published']:.2f}"
        where = f"split-mnist, {name}"
        yield Line(method, where, published, shown(row[column]), verdict, "iTAML, Table 1", file)


def of_permuted(results: dict[str, Any], file: str) -> Iterator[Line]:
    """The papers' numbers are fractions, without a verdict."""
    for row in results["tables"][0]["rows"]:
        if row["paper"] is not None:
            published = f"{100 * row['paper']:.0f}"
            where = "Permuted MNIST, offline, RA"
            yield Line(
                row["method"], where, published, shown(row["RA"]), "-", "Permuted MNIST", file
            )


def lines(folder: Path = RESULTS) -> list[Line]:
    """All numbers that have a published one beside them."""
    found = []
    for pattern, lines_of in (
        ("lamaml_table[13]*.json", of_lamaml),
        ("itaml_table1.json", of_itaml),
        ("permuted_mnist.json", of_permuted),
    ):
        for path in sorted(folder.glob(pattern)):
            found += lines_of(read(path), f"{path.stem}.md")
    return found


def in_small(folder: Path = RESULTS) -> list[tuple[str, str, str]]:
    """(method, source, file) of results at another size."""
    found = []
    for pattern, (source, methods) in SMALL.items():
        for path in sorted(folder.glob(pattern))[:1]:
            if "cpu_small" in read(path)["command"] or "mini" in path.name:
                found += [(method, source, f"{path.stem}.md") for method in methods.split()]
    return found


def status(names: list[str], found: list[Line], small: list[tuple[str, str, str]]) -> str:
    """What is reproduced of some methods, by source."""
    cells = []
    own = [line for line in found if line.method in names]
    for source, file in dict.fromkeys((line.source, line.file) for line in own):
        judged = [line for line in own if line.file == file and line.verdict != "-"]
        good = sum(agrees(line) for line in judged)
        told = f"{good} of {len(judged)}" if judged else "no verdict"
        cells.append(f"[{source}](experiments/results/{file}): {told}")
    for source, file in dict.fromkeys(entry[1:] for entry in small if entry[0] in names):
        cells.append(f"[{source}](experiments/results/{file}): in small")
    return "; ".join(cells) or "-"


def agrees(line: Line) -> bool:
    """Whether a verdict counts for the number, by the rule of ``cljax.stats.Verdict``."""
    return line.verdict == "equivalent" or line.verdict.endswith(", accepted")


def picked(results: dict[str, Any], pick: Pick) -> float:
    """The number that a pick names; of several repeats the median."""
    rows = [row for table in results["tables"] for row in table["rows"]]
    fit = [
        row
        for row in rows
        if all(row.get(k) == v for k, v in pick.row.items()) and pick.column in row
    ]
    found = fit[0][pick.column] if pick.row and fit else results["numbers"].get(pick.column)
    if found is None:
        raise SystemExit(f"{results['experiment']}.json has no {pick} any more; change SPEEDS.")
    return found["median"] if isinstance(found, dict) else found


def speeds(folder: Path = RESULTS) -> str:
    """The table of speed, each row with the command that measured it."""
    rows = ["| what | on two cores of a CPU | measured by |", "| --- | --- | --- |"]
    for what, name, picks, text in SPEEDS:
        results = read(folder / f"{name}.json")
        command = results["command"].removeprefix("python experiments/")
        link = f"[`{command}`](../../experiments/results/{name}.md)"
        rows.append(f"| {what} | {text.format(*(picked(results, p) for p in picks))} | {link} |")
    return "\n".join(rows)


def systems(folder: Path = RESULTS) -> str:
    """The table of systems."""
    found, small = lines(folder), in_small(folder)
    rows = ["| name | what it is | memory | asks for | checked | reproduced |", "| --- " * 6 + "|"]
    for names, what, memory, asks in SYSTEMS:
        own = names.split()
        checked = ", ".join(dict.fromkeys(CHECKED[name] for name in own))
        shown = ", ".join(f"`{name}`" for name in own)
        cells = (shown, what, memory, asks, checked, status(own, found, small))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def numbers(folder: Path = RESULTS) -> str:
    """Every published number beside ours, and how many agree."""
    found = lines(folder)
    judged = [line for line in found if line.verdict != "-"]
    rows = [
        f"Ours agree with {sum(map(agrees, judged))} of {len(judged)} published numbers.", "",
        "| method | what | published | ours, 95 % interval | verdict |", "| --- " * 5 + "|",
        *(f"| `{n.method}` | {n.where} | {n.published} | {n.ours} | {n.verdict} |" for n in found),
    ]  # fmt: skip
    return "\n".join(rows)


# Which tables stand in which file.
PLACES = {README: {"systems": systems}, GUIDE: {"numbers": numbers, "speed": speeds}}


def replaced(text: str, file: Path, folder: Path = RESULTS) -> str:
    """A file's text with its tables in their places."""
    for name, made in PLACES[file].items():
        start, end = (mark.format(name) for mark in MARKS)
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{file.name} lacks the markers {start} and {end}.")
        text = f"{before}{start}\n\n{made(folder)}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    parser.add_argument("--smoke", action="store_true", help="print the tables alone")
    args = parser.parse_args()
    if args.smoke:
        print(f"{systems()}\n\n{numbers()}\n\n{speeds()}")
        return
    for file in PLACES:
        now = file.read_text("utf-8")
        new = replaced(now, file)
        if args.check and now != new:
            sys.exit(f"{file.name}'s tables are stale; run experiments/systems_table.py.")
        if not args.check:
            file.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
