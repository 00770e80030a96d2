"""What a folder given to a report holds: a run, finished or not, a sweep, or nothing of ours.

A damaged or missing file never ends a report: what can be read is shown, and ``problems`` says in
sentences what cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cljax import artefacts, kept
from cljax.errors import UserError

__all__ = ["Found", "headline_of", "matrix_of", "open_folders", "progress_of"]

Kind = Literal["run", "unfinished", "sweep", "nothing"]


@dataclass(frozen=True)
class Found:
    """A folder as a report sees it."""

    path: Path
    kind: Kind
    name: str  # unlike every other one's of the report
    config: Mapping[str, Any] = field(default_factory=dict)  # empty where it cannot be read
    results: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
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


def open_folders(folders: Sequence[str | Path]) -> list[Found]:
    """What the folders hold, in order; a study's folder stands for the runs that it reports.

    Raises:
      UserError: if none of them holds a run or a sweep.
    """
    paths: list[Path] = []
    for folder in folders:
        path = Path(folder).expanduser()
        inner = sorted(place.parent for place in path.glob("report/*/config.json"))
        paths += inner if inner and not (path / "config.json").exists() else [path]
    paths = list({path.resolve(): path for path in paths}.values())
    found = [_open(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    if all(one.kind == "nothing" for one in found):
        reasons = " ".join(one.problems[0] for one in found[:3])
        raise UserError(f"There is nothing to report: {reasons[:1].lower()}{reasons[1:]}")
    return found


def _open(path: Path, name: str) -> Found:
    if not path.is_dir():
        there = "is a file, not a folder" if path.exists() else "does not exist"
        return Found(path, "nothing", name, problems=(f"{path} {there}.",))
    problems: list[str] = []
    if (path / "sweep.json").exists():
        config = _json(path, "sweep.json", problems)
        results = _json(path, "results.json", problems) if _has(path, "results.json") else {}
        return Found(path, "sweep", name, config, results, problems=tuple(problems))
    if not _has(path, "config.json") and not _has(path, "results.json"):
        text = f"{path} is no run's folder: it has neither config.json nor results.json."
        return Found(path, "nothing", name, problems=(text,))
    config = _json(path, "config.json", problems)
    if not _has(path, "results.json"):
        return Found(path, "unfinished", name, config, problems=tuple(problems))
    results = _json(path, "results.json", problems)
    arrays: Mapping[str, np.ndarray] = {}
    try:
        arrays = kept.read(path)
    except UserError as error:
        problems.append(str(error))
    kind = "run" if results else "nothing" if not config else "unfinished"
    return Found(path, kind, name, config, results, arrays, tuple(problems))


def _has(path: Path, name: str) -> bool:
    return (path / name).exists()


def _json(path: Path, name: str, problems: list[str]) -> Mapping[str, Any]:
    """A JSON object; empty, and a problem, where it cannot be read."""
    if not _has(path, name):
        problems.append(f"{path} has no {name}.")
        return {}
    try:
        value = artefacts.read(path, name)
    except (UserError, RecursionError) as error:
        problems.append(str(error))
        return {}
    if not isinstance(value, dict) or not value:
        problems.append(f"{path / name} holds no JSON object, so it is damaged.")
        return {}
    return value


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
        lines = (path / "metrics.jsonl").read_text("utf-8", errors="replace").splitlines()
    except OSError:
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
