"""What a sweep's folder holds: how far it is, its settings with intervals, its table and map."""

from __future__ import annotations

import dataclasses
import json
import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cljax import artefacts, metrics
from cljax.config import plain
from cljax.errors import UserError, check_known, check_path
from cljax.recipes import Recipe
from cljax.sweep.lanes import OF_RUN, Lane, duration, label

__all__ = ["Setting", "Sweep", "load", "merge", "status"]


class Setting(NamedTuple):
    """What the lanes of a setting found: fractions; ``mean`` is over those that did not diverge."""

    setting: Mapping[str, Any]
    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    values: tuple[float | None, ...]
    diverged: tuple[int | None, ...]  # the update at which a seed's lane did


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds."""

    path: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any] | None  # None: not finished
    exit_code: int = 0  # 75: interrupted, and the same call goes on

    @property
    def settings(self) -> list[Setting]:
        """All settings, the best first; those with a diverged lane last.

        Raises:
          UserError: if lanes are missing.
        """
        if self.results is None:
            raise UserError(f"The sweep in {self.path} is not finished: {status(self.path)}")
        return [Setting(**entry) for entry in self.results["settings"]]

    @property
    def diverged(self) -> bool:
        """Whether all lanes of the finished sweep diverged."""
        return all(step is not None for s in self.settings for step in s.diverged)

    def best(self) -> Setting:
        """The best setting on validation images.

        Raises:
          UserError: if the sweep was tested on test images, or all its settings diverged.
        """
        if self.config["on"] != "validation":
            raise UserError(
                f"The sweep in {self.path} was measured on test images, which choose no setting; "
                "sweep on validation images."
            )
        found = self.settings[0]
        if any(step is not None for step in found.diverged):
            some = "" if self.diverged else " for some seed"
            raise UserError(
                f"Every setting of the sweep in {self.path} diverged{some}; try others."
            )
        return found

    def recipe(self, setting: Setting | None = None) -> Recipe:
        """What ``cljax.run`` takes to run a setting, the best one by default, on the tests.

        Raises:
          UserError: as ``best``, or if the sweep was begun with Python objects.
        """
        base = self.config["base"]
        if base is None:
            raise UserError(
                f"The sweep in {self.path} was begun with Python objects, so it has no recipe; "
                "make the method with the setting's values."
            )
        values = (self.best() if setting is None else setting).setting
        of_run = {name: value for name, value in values.items() if name in OF_RUN}
        options = {name: value for name, value in values.items() if name not in OF_RUN}
        found = Recipe(**{**base, **of_run})
        return found.replace(method_options={**found.method_options, **options})

    def table(self) -> str:
        """The settings as text, in percent with 95 % intervals."""
        where = f"{self.config['metric']} on {self.config['on']} images"
        width = max(len(label(s.setting)) for s in self.settings)
        lines = [f"{self.config['method']} on {self.config['stream']}: {where}", ""]
        for s in self.settings:
            mean = "       -" if s.mean is None else f"{100 * s.mean:8.2f}"
            if s.ci95 is not None:
                mean += f"  [{100 * s.ci95[0]:.2f}, {100 * s.ci95[1]:.2f}]"
            steps = [step for step in s.diverged if step is not None]
            if steps:
                mean += f"  {len(steps)} of {len(s.values)} diverged, first at step {min(steps)}"
            lines.append(f"  {label(s.setting):<{width}}{mean}")
        if self.diverged:
            lines += ["", "  All lanes diverged, so there are no numbers; try smaller rates."]
        return "\n".join(lines)


def status(folder: str | Path) -> str:
    """How far a sweep is, in one sentence."""
    check_path(folder=folder)
    folder = Path(folder).expanduser()
    lanes = _stored_lanes(folder)
    done = [lane for lane in lanes if _result(folder, lane).exists()]
    lost = sum(_read(folder, lane)["diverged"][0] is not None for lane in done)
    text = f"{len(done)} of {len(lanes)} lanes are finished"
    text += f", {lost} of them diverged" if lost else ""
    busy = sorted(path.name[6:] for path in folder.glob(".lock-*") if artefacts.busy(path))
    if busy:
        text += f"; at work: shard {', '.join(busy)}"
    last = max((_result(folder, lane).stat().st_mtime for lane in done), default=None)
    if last is not None:
        text += f"; the last one ended {duration(time.time() - last)} ago"
    return f"{text}."


def merge(folder: str | Path) -> Sweep:
    """Makes the table, the results and the heat map of a finished sweep.

    Raises:
      UserError: if lanes are missing, or the folder holds no sweep.
    """
    check_path(folder=folder)
    folder = Path(folder).expanduser()
    lanes, config = _stored_lanes(folder), artefacts.read(folder, "sweep.json")
    if not all(_result(folder, lane).exists() for lane in lanes):
        raise UserError(f"The sweep in {folder} cannot be merged: {status(folder)}")
    by_setting: dict[str, list[Lane]] = {}
    for lane in lanes:
        by_setting.setdefault(label(lane.setting), []).append(lane)
    found = [_setting(folder, own, config["metric"]) for own in by_setting.values()]
    # A setting with a diverged lane ranks below every other one, but it is listed.
    sign = 1 if config["metric"] in metrics.LOWER_IS_BETTER else -1
    found.sort(
        key=lambda s: (any(d is not None for d in s.diverged), s.mean is None, sign * (s.mean or 0))
    )
    results = {
        "settings": [s._asdict() for s in found],
        "lanes": len(lanes),
        "seeds": sorted({lane.seed for lane in lanes}),
    }
    artefacts.write_json(folder / "results.json", plain(results))
    sweep = Sweep(folder, config, results)
    artefacts.write_bytes(folder / "table.txt", (sweep.table() + "\n").encode())
    _heat_map(sweep, folder / "plots" / "heat_map.png")
    return sweep


def load(folder: str | Path) -> Sweep:
    """Reads a sweep back, finished or not.

    Raises:
      UserError: if the folder holds none.
    """
    folder = Path(folder).expanduser()
    config = artefacts.read(folder, "sweep.json")
    done = (folder / "results.json").exists()
    return Sweep(folder, config, artefacts.read(folder, "results.json") if done else None)


def _stored_lanes(folder: Path) -> list[Lane]:
    return [Lane(**entry) for entry in artefacts.read(folder, "sweep.json")["lanes"]]


def _result(folder: Path, lane: Lane) -> Path:
    return folder / "lanes" / lane.name / "results.json"


def _read(folder: Path, lane: Lane) -> dict[str, Any]:
    return json.loads(_result(folder, lane).read_text("utf-8"))


def _setting(folder: Path, lanes: Sequence[Lane], metric: str) -> Setting:
    from cljax import stats

    found = [_read(folder, lane) for lane in lanes]
    diverged = tuple(results["diverged"][0] for results in found)
    values = []
    for results in found:
        if results["diverged"][0] is not None:
            values.append(None)
            continue
        if metric in results["absent"]:
            raise UserError(f"The metric {metric} is absent: {results['absent'][metric]}.")
        check_known("metric", metric, results["metrics"])
        values.append(results["metrics"][metric]["mean"])
    alive = [value for value in values if value is not None]
    if not alive:
        return Setting(lanes[0].setting, None, None, None, tuple(values), diverged)
    summary = stats.summary(alive)
    return Setting(
        lanes[0].setting, summary.mean, summary.std, summary.ci95, tuple(values), diverged
    )


def _heat_map(sweep: Sweep, path: Path) -> None:
    """The first two options that vary, the best over the others."""
    from cljax import plot

    settings = sweep.settings
    varied = lambda name: len({str(s.setting.get(name)) for s in settings}) > 1
    names = [name for name in sweep.config["over"] if varied(name)]
    if not names:
        return
    axes = [
        _ordered({str(s.setting.get(n)): s.setting.get(n) for s in settings}) for n in names[:2]
    ]
    rows = axes[1] if len(axes) > 1 else [""]
    values = np.full((len(rows), len(axes[0])), np.nan)
    lost = np.zeros(values.shape, bool)
    low = sweep.config["metric"] in metrics.LOWER_IS_BETTER
    better = operator.lt if low else operator.gt
    for s in settings:
        at = (rows.index(str(s.setting.get(names[1]))) if len(names) > 1 else 0,
              axes[0].index(str(s.setting.get(names[0]))))  # fmt: skip
        lost[at] |= any(step is not None for step in s.diverged)
        if s.mean is not None and (np.isnan(values[at]) or better(s.mean, values[at])):
            values[at] = s.mean
    title = f"{sweep.config['method']} on {sweep.config['stream']}"
    where = f"{sweep.config['metric']}, {sweep.config['on']} images (%)"
    more = f", best over {', '.join(names[2:])}" if len(names) > 2 else ""
    axis = plot.heat_map(
        values, axes[0], rows, x=names[0], y=names[1] if len(names) > 1 else "", mark=lost,
        low=low,
        title=f"{title}\n{where}{more}",
    )  # fmt: skip
    plot.save(axis, path)


def _ordered(values: Mapping[str, Any]) -> list[str]:
    numbers = all(isinstance(v, (int, float)) for v in values.values())
    return sorted(values, key=lambda text: values[text]) if numbers else list(values)
