"""What a folder given to a report holds: a run, finished or not, a sweep, or nothing of ours.

A folder with a damaged, missing or foreign file never ends a report of others, and no number of it
is shown: ``problems`` says in a sentence what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cljax import sweep
from cljax.errors import UserError
from cljax.runner import artefacts, snapshots
from cljax.storage import files

__all__ = ["ReportFolder", "headline_of", "matrix_of", "open_folders", "progress_of"]

Kind = Literal["run", "unfinished", "sweep", "nothing"]


@dataclass(frozen=True)
class ReportFolder:
    """A folder as a report sees it."""

    path: Path
    kind: Kind
    name: str  # unlike every other one's of the report
    config: Mapping[str, Any] = field(default_factory=dict)  # empty where it cannot be read
    results: Mapping[str, Any] = field(default_factory=dict)
    snapshots: Mapping[str, np.ndarray] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def forgets(self) -> bool:
        """Whether it has a meaning to ask what was forgotten."""
        return "forgetting" not in self.config.get("unmeasured", {})

    @property
    def title(self) -> str:
        """Method and stream, as far as they are known."""
        if self.kind == "sweep":
            return f"Sweep of {self.config.get('method')} on {self.config.get('stream')}"
        if self.results:
            return f"{self.results.get('method')} on {self.results.get('stream')}"
        known = [self.config.get(part, {}) for part in ("method", "stream")]
        names = [part.get("name") for part in known if isinstance(part, Mapping)]
        return " on ".join(map(str, names)) if len(names) == 2 and all(names) else str(self.path)


def open_folders(folders: Sequence[str | Path]) -> list[ReportFolder]:
    """What the folders hold, in order; a study's folder stands for the runs that it reports.

    Raises:
      UserError: if none of them holds a run or a sweep.
    """
    paths: list[Path] = []
    for folder in folders:
        path = artefacts.place(folder)
        inner = sorted(place.parent for place in path.glob("report/*/config.json"))
        paths += inner if inner and not (path / "config.json").exists() else [path]
    paths = list({path.resolve(): path for path in paths}.values())
    result = [_open(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    if all(one.kind == "nothing" for one in result):
        reasons = " ".join(one.problems[0] for one in result[:3])
        raise UserError(f"There is nothing to report: {reasons[:1].lower()}{reasons[1:]}")
    return result


def _open(path: Path, name: str) -> ReportFolder:
    """What one folder holds; nothing, and why, where any of its files is not as it was written."""
    try:
        if not path.is_dir():
            there = "is a file, not a folder" if path.exists() else "does not exist"
            raise UserError(f"{path} {there}.")
        if (path / "sweep.json").exists():
            made = sweep.load(path)
            return ReportFolder(path, "sweep", name, made.config, made.results or {})
        present = [(path / file).exists() for file in ("config.json", "results.json")]
        if not any(present):
            raise UserError(
                f"{path} is no run's folder: it has neither config.json nor results.json."
            )
        if not present[1]:
            return ReportFolder(path, "unfinished", name, artefacts.config_of(path))
        config, results = artefacts.load(path)
        return ReportFolder(path, "run", name, config, results, snapshots.read(path))
    except UserError as error:
        return ReportFolder(path, "nothing", name, problems=(str(error),))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    full = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, full)) + 1):
        names = ["/".join(parts[-length:]) for parts in full]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def matrix_of(results: Mapping[str, Any], name: str | None = None) -> np.ndarray:
    """[S, T+1, T] of an evaluation, the headline's by default; NaN: not evaluated."""
    evaluations = results["evaluations"]
    return np.array(evaluations[name or headline_of(results)]["accuracy_matrix"], float)


def headline_of(results: Mapping[str, Any]) -> str:
    """The evaluation whose metrics stand at the top: files sort names, so by its matrix."""
    top = results["accuracy_matrix"]
    for name, entry in results["evaluations"].items():
        if [rows[1:] for rows in entry["accuracy_matrix"]] == top:
            return name
    return next(iter(results["evaluations"]))


def progress_of(path: Path) -> list[tuple[int, int, int, float | None]]:
    """Of each seed of an unfinished run: (seed, update, of so many, last accuracy)."""
    seeds: dict[int, tuple[int, int, int, float | None]] = {}
    try:
        with files.opened(path / "metrics.jsonl") as file:
            lines = file.read(files.MOST).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        try:
            event = json.loads(line)
            seed, step, num = event["seed"], event["step"], event["num_steps"]
            last = seeds.get(seed, (seed, 0, 0, None))[3]
            value = event["value"] if event["kind"] == "eval" else last
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut
        if seed >= 0:
            seeds[seed] = (seed, step, num, value)
    return [seeds[seed] for seed in sorted(seeds)]
