"""README's tables of systems (what each is and needs, what is reproduced) and of speed.

    python experiments/systems_table.py            # writes them into README.md, between markers
    python experiments/systems_table.py --check    # exits with 1 where README.md says otherwise

What is reproduced comes from the tables in experiments/results: a published number, ours with its
95 % interval, and the verdict that stands beside it there. A number without a verdict there has
none here. Results at another size than the published one are named, not compared. Seconds are
those of the files that the commands beside them write.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cljax.methods import CHECKED

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results", HERE.parent / "README.md"
MARKS = "<!-- {}, by experiments/systems_table.py -->", "<!-- end of {} -->"

# Names, what it is, memory, what it asks for.
SYSTEMS = (
    ("lamaml sync-lamaml cmaml", "look-ahead meta-updates, with learned or fixed rates",
     "reservoir", "-"),
    ("la-er", "replay with rates learned by look-ahead", "reservoir", "-"),
    ("meta-bgd", "look-ahead with Bayesian gradient descent", "reservoir", "-"),
    ("er", "experience replay (ER4, ER5, multi-head)", "reservoir", "-"),
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
    "lamaml_table3_cpu_small.md": ("La-MAML, Table 3", "lamaml sync-lamaml cmaml er"),
    "mnemonics_table2.md": ("mnemonics, Table 2", "lucir icarl lwf-exemplars bic"),
    "teacher_mini_*.md": ("multi-task teacher", "teacher"),
}

# What was timed, its file, and where the number stands there.
SPEEDS = (
    ("La-MAML, 20 tasks of rotated digits: a whole process, one seed", "lamaml_speed.md",
     r"\| one seed, low-rank \| (\S+) .*", "{} s"),
    ("the same, with compiled programs kept from before", "lamaml_speed.md",
     r"\| one seed, low-rank, warm cache \| (\S+) .*", "{} s"),
    ("the same, five seeds", "lamaml_speed.md", r"\| five seeds, low-rank \| (\S+) .*", "{} s"),
    ("La-MAML: a whole process of one seed, beside the authors' code", "lamaml_table2.md",
     r"\| mnist-rotations \| lamaml \|(?:[^|]*\|){3} (\S+) [^|]*\| (\S+)", "{} s; {} s"),
    ("MER: likewise", "lamaml_table2.md",
     r"\| mnist-rotations \| mer \|(?:[^|]*\|){3} (\S+) [^|]*\| (\S+)", "{} s; {} s"),
    ("iTAML on split MNIST: a whole process, one seed", "itaml_speed.md",
     r"median (\S+) s of 3", "{} s"),
    ("64 lanes as one sweep, beside single processes", "sweep_throughput.md",
     r"in the sweep: (\S+) times", "{} times their throughput"),
    ("a second-order meta-step of La-MAML's 160-channel network, beside PyTorch's",
     "cnn_speed.md",
     r"patches: meta-step \|[^|]*\| (\S+)(?s:.*?)PyTorch: meta-step \|[^|]*\| (\S+)",
     "{} ms; {} ms"),
    ("a training step of ResNet-32, 128 images, beside PyTorch's (its faster layout)",
     "resnet32_speed.md",
     r"JAX, freed memory kept \|[^|]*\| (\S+)(?s:.*?)channels_last \|[^|]*\| (\S+)",
     "{} ms; {} ms"),
)  # fmt: skip


class Line(NamedTuple):
    """A published number beside ours, as a file of results has them; in percent."""

    method: str
    where: str  # stream and measure
    published: str
    ours: str
    verdict: str  # "-": none is stated
    source: str
    file: str


def tables(path: Path) -> Iterator[list[dict[str, str]]]:
    """The Markdown tables of a file, each as rows of column -> cell."""
    rows: list[list[str]] = []
    for line in [*path.read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            head, _, *body = rows
            yield [dict(zip(head, row, strict=False)) for row in body]
            rows = []


def of_lamaml(path: Path) -> Iterator[Line]:
    """``RA of published, difference``: ``53.38 ± 1.53, -0.46: undecided, accepted``."""
    column = "RA of published, difference"
    source = f"La-MAML, Table {path.stem.removeprefix('lamaml_table')[0]}"
    for row in (row for table in tables(path) for row in table if row.get(column, "-") != "-"):
        published, _, rest = row[column].partition(", ")
        verdict = rest.partition(": ")[2] or "-"
        where = f"{row['stream']}, RA"
        yield Line(row["method"], where, published, row["RA"], verdict, source, path.name)


def of_itaml(path: Path) -> Iterator[Line]:
    """``published``: ``97.95: no-update -37.75 different, task-agnostic +0.31 equivalent, ...``.

    Of each method the first row, iTAML's being the released script; iTAML in the protocol that
    infers the task, the others by single examples.
    """
    seen = set()
    for row in next(tables(path)):
        method = re.split(r"[ ,]", row["method"])[0]
        published, _, verdicts = row["published"].partition(": ")
        if method in seen or not verdicts:
            continue
        seen.add(method)
        protocol, column = "no-update", "per sample"
        if method == "itaml":
            protocol, column = "task-agnostic", "continuum, task inferred"
        found = re.search(rf"{protocol} [+-][\d.]+ (\w+)", verdicts)
        where = f"split-mnist, {'task inferred' if method == 'itaml' else 'single examples'}"
        verdict = found[1] if found else "-"
        yield Line(method, where, published, row[column], verdict, "iTAML, Table 1", path.name)


def of_permuted(path: Path) -> Iterator[Line]:
    """``paper``: a fraction, without a verdict."""
    for row in next(tables(path)):
        if row["paper"] != "-":
            published = f"{100 * float(row['paper']):.0f}"
            where = "Permuted MNIST, offline, RA"
            yield Line(row["method"], where, published, row["RA"], "-", "Permuted MNIST", path.name)


def lines(folder: Path = RESULTS) -> list[Line]:
    """All numbers that have a published one beside them."""
    found = []
    for pattern, read in (
        ("lamaml_table[13]*.md", of_lamaml),
        ("itaml_table1.md", of_itaml),
        ("permuted_mnist.md", of_permuted),
    ):
        for path in sorted(folder.glob(pattern)):
            found += read(path)
    return found


def in_small(folder: Path = RESULTS) -> list[tuple[str, str, str]]:
    """(method, source, file) of results at another size."""
    found = []
    for pattern, (source, methods) in SMALL.items():
        for path in sorted(folder.glob(pattern))[:1]:
            text = path.read_text("utf-8")
            if "cpu_small" in text or "mini" in path.name:
                found += [(method, source, path.name) for method in methods.split()]
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


def speeds(folder: Path = RESULTS) -> str:
    """The table of speed, each row with the command that measured it."""
    rows = ["| what | on two cores of a CPU | measured by |", "| --- | --- | --- |"]
    for what, file, pattern, told in SPEEDS:
        content = (folder / file).read_text("utf-8")
        found, command = re.search(pattern, content), re.search(r"Made by `python (.*?)`", content)
        if found is None or command is None:
            raise SystemExit(f"{file} has no {what!r} any more; change its pattern.")
        link = f"[`{command[1].removeprefix('experiments/')}`](experiments/results/{file})"
        rows.append(f"| {what} | {told.format(*found.groups())} | {link} |")
    return "\n".join(rows)


def systems(folder: Path = RESULTS) -> str:
    """The table of systems, and all numbers below it."""
    found, small = lines(folder), in_small(folder)
    rows = ["| name | what it is | memory | asks for | checked | reproduced |", "| --- " * 6 + "|"]
    for names, what, memory, asks in SYSTEMS:
        own = names.split()
        checked = ", ".join(dict.fromkeys(CHECKED[name] for name in own))
        shown = ", ".join(f"`{name}`" for name in own)
        cells = (shown, what, memory, asks, checked, status(own, found, small))
        rows.append(f"| {' | '.join(cells)} |")
    rows += [
        "",
        "Reproduced: how many of the published numbers ours agree with, by two one-sided tests",
        "with the margin that the file states (equivalent, or undecided with the difference inside",
        "the margin). In small: at another size, so not compared.", "",
        f"<details><summary>All {len(found)} numbers</summary>", "",
        "| method | what | published | ours, 95 % interval | verdict |", "| --- " * 5 + "|",
        *(f"| `{n.method}` | {n.where} | {n.published} | {n.ours} | {n.verdict} |" for n in found),
        "", "</details>",
    ]  # fmt: skip
    return "\n".join(rows)


def replaced(readme: str, folder: Path = RESULTS) -> str:
    """The README with both tables in their places."""
    for name, made in (("systems", systems(folder)), ("speed", speeds(folder))):
        start, end = (mark.format(name) for mark in MARKS)
        before, found, rest = readme.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"README.md lacks the markers {start} and {end}.")
        readme = f"{before}{start}\n\n{made}\n\n{end}{after}"
    return readme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    parser.add_argument("--smoke", action="store_true", help="print the tables alone")
    args = parser.parse_args()
    if args.smoke:
        print(f"{systems()}\n\n{speeds()}")
        return
    now = README.read_text("utf-8")
    new = replaced(now)
    if args.check:
        if now != new:
            sys.exit("README.md's tables are stale; run experiments/systems_table.py.")
        return
    README.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
