"""What a sweep's folder holds: how far it is, its settings with intervals, its table and map."""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cljax import measures, metrics, plot, stats
from cljax.errors import UserError, check_known
from cljax.recipes import Recipe
from cljax.runner import artefacts
from cljax.runner import run as runs
from cljax.runner.config import plain
from cljax.runner.consent import check_consent
from cljax.storage import files, integrity, shapes
from cljax.sweep.lanes import OF_RUN, Lane, duration, label, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Setting",
    "Sweep",
    "at_work",
    "config_of",
    "fault",
    "heat_map",
    "in_place",
    "load",
    "load_any",
    "merge",
    "status",
]

_SHOWN = 3  # damaged lanes in a sentence
_OTHERS = 60.0  # seconds that a merge waits for another one


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
        result = self.settings[0]
        if any(step is not None for step in result.diverged):
            some = "" if self.diverged else " for some seed"
            raise UserError(
                f"Every setting of the sweep in {self.path} diverged{some}; try others."
            )
        return result

    def recipe(self, setting: Setting | None = None, *, trust: bool = False) -> Recipe:
        """What ``cljax.run`` takes to run a setting, the best one by default, on the tests.

        Args:
          trust: also where the folder names code to import (``package.module:factory``).

        Raises:
          UserError: as ``best``, if the sweep was begun with Python objects, or if its folder
            names code, without ``trust``.
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
        try:
            result = Recipe(**{**base, **of_run})
        except TypeError as error:
            raise UserError(f"The sweep in {self.path} has no recipe: {error}.") from error
        memories = [own.get("memory") for own in (result.method_options, options)]
        names = [result.method, result.stream]
        check_consent(self.path, names, [result.net], memories, trust=trust)
        tuned = self.tuning() if setting is None else None
        return result.replace(
            method_options={**result.method_options, **options}, tuning=tuned or result.tuning
        )

    def tuning(self) -> dict[str, Any]:
        """How the best setting was chosen, for the record of a run with it.

        Raises:
          UserError: as ``best``.
        """
        best = self.best()
        lanes = self.config["lanes"]
        grid: dict[str, list[Any]] = {name: [] for name in self.config["over"]}
        for lane in lanes:
            for name, value in lane["setting"].items():
                grid[name] += [] if value in grid[name] else [value]
        return {
            "metric": self.config["metric"],
            "on": self.config["on"],
            "stream": self.config["stream"],
            "grid": grid,
            "settings": len(self.settings),
            "seeds": sorted({lane["seed"] for lane in lanes}),
            "runs": len(lanes),
            "chosen": plain(dict(best.setting)),
        }

    def table(self) -> str:
        """The settings as text, in percent with 95 % intervals."""
        where = f"{self.config['metric']} on {self.config['on']} images"
        width = max(len(label(s.setting)) for s in self.settings)
        score = self.config.get("score", measures.ACCURACY)
        lines = [f"{self.config['method']} on {self.config['stream']}: {where}", ""]
        for s in self.settings:
            mean = f"{'-':>8}"
            if s.mean is not None:
                bounds = measures.bounds(self.config["metric"], score)
                mean = stats.with_interval(
                    s.mean, s.ci95, values=s.values, bounds=bounds, scale=measures.scale(score),
                    spec=measures.digits(score, ".2f"), width=8,
                )  # fmt: skip
            steps = [step for step in s.diverged if step is not None]
            if steps:
                mean += f"  {len(steps)} of {len(s.values)} diverged, first at step {min(steps)}"
            lines.append(f"  {label(s.setting):<{width}}{mean}")
        if self.diverged:
            lines += ["", "  All lanes diverged, so there are no numbers; try smaller rates."]
        return "\n".join(lines)


def status(folder: str | Path) -> str:
    """How far a sweep is, in one sentence; nothing is written.

    Raises:
      UserError: if the folder holds no sweep, or its ``sweep.json`` is damaged.
    """
    folder = artefacts.place(folder)
    config = config_of(folder)
    result = [(lane, fault(_place(folder, lane), own)) for lane, own in _lanes(config)]
    done = [lane for lane, wrong in result if wrong is None]
    lost = sum(_read(folder, lane)["diverged"][0] is not None for lane in done)
    text = f"{len(done)} of {len(result)} lanes are finished"
    text += f", {lost} of them diverged" if lost else ""
    damaged = [lane.name for lane, wrong in result if wrong]
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        text += f", {len(damaged)} damaged ({', '.join(damaged[:_SHOWN])}{more}), to be run again"
    busy = at_work(folder)
    if busy:
        text += f"; at work: shard {', '.join(busy)}"
    last = max((_result(folder, lane).stat().st_mtime for lane in done), default=None)
    if last is not None:
        text += f"; the last one ended {duration(max(0.0, time.time() - last))} ago"
    return f"{text}."


def at_work(folder: Path) -> list[str]:
    """The shards that are running, such as ``0-of-2``."""
    return sorted(path.name[6:] for path in folder.glob(".lock-*") if artefacts.busy(path))


def merge(folder: str | Path) -> Sweep:
    """Makes the table, the results and the heat map of a finished sweep.

    Raises:
      UserError: if lanes are missing or damaged, or the folder holds no sweep.
    """
    folder = artefacts.place(folder)
    config = config_of(folder)
    with artefacts.claim(folder, wait=_OTHERS):
        faults = [(lane, fault(_place(folder, lane), own)) for lane, own in _lanes(config)]
        wrong = [text for _, text in faults if text]
        if any(text is not None for _, text in faults):
            more = f" {wrong[0]} `cljax resume {folder}` runs it again." if wrong else ""
            raise UserError(f"The sweep in {folder} cannot be merged: {status(folder)}{more}")
        if not at_work(folder):
            artefacts.refuse_links(folder)
            artefacts.clean(folder)
        by_setting: dict[str, list[Lane]] = {}
        for lane, _ in faults:
            by_setting.setdefault(label(lane.setting), []).append(lane)
        settings = [_setting(folder, own, config["metric"]) for own in by_setting.values()]
        return _write(folder, config, settings, [lane for lane, _ in faults])


def _write(
    folder: Path, config: dict[str, Any], result: list[Setting], lanes: Sequence[Lane]
) -> Sweep:
    """Writes what is merged; the hashes of all files, then the results, at the end."""
    # A setting with a diverged lane ranks below every other one, but it is listed.
    sign = 1 if config["metric"] in metrics.LOWER_IS_BETTER else -1
    result.sort(
        key=lambda s: (any(d is not None for d in s.diverged), s.mean is None, sign * (s.mean or 0))
    )
    results = {
        "settings": [s._asdict() for s in result],
        "lanes": len(lanes),
        "seeds": sorted({lane.seed for lane in lanes}),
    }
    sweep = Sweep(folder, config, results)
    table, content = f"{sweep.table()}\n".encode(), files.as_json(plain(results))
    artefacts.write_bytes(folder / "table.txt", table)
    drawn = heat_map(sweep)
    if drawn is not None:
        plot.save(drawn, folder / "plots" / "heat_map.png")
    together = {"table.txt": table, "results.json": content}
    artefacts.seal(folder, config["sweep_hash"], together)
    artefacts.write_bytes(folder / "results.json", content)
    return sweep


def load(folder: str | Path) -> Sweep:
    """Reads a sweep back, finished or not; nothing is imported or written.

    Raises:
      UserError: if the folder holds none, or one of its files is not as it was written.
    """
    folder = artefacts.place(folder)
    config = config_of(folder)
    if not (folder / "results.json").exists():
        return Sweep(folder, config, None)
    integrity.check(folder)
    for lane, own in _lanes(config):
        wrong = fault(_place(folder, lane), own)
        if wrong is not None:
            raise UserError(
                f"The lane {lane.name} of the sweep in {folder} is "
                f"{f'damaged: {wrong}' if wrong else 'missing.'} `cljax resume {folder}` runs it "
                "again."
            )
    return Sweep(folder, config, artefacts.read(folder, "results.json", shapes.SWEEP_RESULTS))


def load_any(folder: str | Path, *, trust: bool = False) -> Any:
    """Reads back a finished run, or a ``cljax.sweep.Sweep``, finished or not.

    Nothing is imported or written, and every file must be as it was written.

    Args:
      trust: a run's ``state``, when it is asked for, may import the code that the folder names
        (``package.module:factory``).

    Raises:
      UserError: if the folder does not hold a finished run or a sweep, or one of its files is
        missing, differs from what was written, or does not belong to it.
    """
    if (artefacts.place(folder) / "sweep.json").exists():
        return load(folder)
    return runs.load(folder, trust=trust)


def config_of(folder: Path) -> dict[str, Any]:
    """``sweep.json``, as it was written.

    Raises:
      UserError: if it is not there, or is another one.
    """
    config = artefacts.read(folder, "sweep.json", shapes.SWEEP)
    sealed = integrity.check_one(folder, "sweep.json")
    if sealed != config["sweep_hash"] or len(config["hashes"]) != len(config["lanes"]):
        raise UserError(
            f"{folder / 'sweep.json'} does not agree with its files.json; restore the folder, or "
            "run the sweep again in another one."
        )
    return config


def fault(place: Path, config_hash: str) -> str | None:
    """What is wrong with the files of a lane: None if nothing, "" if it is not finished."""
    taken = in_place(place)
    if taken is not None:
        return f"{taken} is a file in the place of a lane's folder; move it away."
    if not (place / "results.json").exists():
        return ""
    try:
        config, _ = artefacts.load(place)
    except UserError as error:
        return str(error)
    if config["config_hash"] != config_hash:
        return f"{place / 'config.json'} is of another run."
    return None


def in_place(place: Path) -> Path | None:
    """The file that stands where a lane's folder, or one around it in its sweep, belongs."""
    around = (place, place.parent, place.parent.parent)
    return next((path for path in around if path.exists() and not path.is_dir()), None)


def _lanes(config: Mapping[str, Any]) -> list[tuple[Lane, str]]:
    """The lanes of a sweep, each with its config's hash."""
    lanes = [Lane(entry["setting"], entry["seed"]) for entry in config["lanes"]]
    return list(zip(lanes, config["hashes"], strict=True))


def _place(folder: Path, lane: Lane) -> Path:
    return folder / "lanes" / lane.name


def _result(folder: Path, lane: Lane) -> Path:
    return _place(folder, lane) / "results.json"


def _read(folder: Path, lane: Lane) -> dict[str, Any]:
    return artefacts.read(_place(folder, lane), "results.json", shapes.RESULTS)


def _setting(folder: Path, lanes: Sequence[Lane], metric: str) -> Setting:
    result = [_read(folder, lane) for lane in lanes]
    diverged = tuple(results["diverged"][0] for results in result)
    values = []
    for results in result:
        if results["diverged"][0] is not None:
            values.append(None)
            continue
        if metric in results["absent"]:
            reason = results["absent"][metric].rstrip(".")
            raise UserError(f"The metric {metric} is absent: {reason}.")
        check_known("metric", metric, results["metrics"])
        values.append(results["metrics"][metric]["mean"])
    alive = [value for value in values if value is not None]
    if not alive:
        return Setting(lanes[0].setting, None, None, None, tuple(values), diverged)
    summary = stats.summary(alive)
    return Setting(
        lanes[0].setting, summary.mean, summary.std, summary.ci95, tuple(values), diverged
    )


def heat_map(sweep: Sweep) -> Axes | None:
    """The first two options that vary, the best over the others; None where none varies."""
    settings = sweep.settings
    varied = lambda name: len({short(s.setting.get(name)) for s in settings}) > 1
    names = [name for name in sweep.config["over"] if varied(name)]
    if not names:
        return None
    axes = [
        _ordered({short(s.setting.get(n)): s.setting.get(n) for s in settings}) for n in names[:2]
    ]
    rows = axes[1] if len(axes) > 1 else [""]
    values = np.full((len(rows), len(axes[0])), np.nan)
    lost = np.zeros(values.shape, bool)
    low = sweep.config["metric"] in metrics.LOWER_IS_BETTER
    better = operator.lt if low else operator.gt
    for s in settings:
        at = (rows.index(short(s.setting.get(names[1]))) if len(names) > 1 else 0,
              axes[0].index(short(s.setting.get(names[0]))))  # fmt: skip
        lost[at] |= any(step is not None for step in s.diverged)
        if s.mean is not None and (np.isnan(values[at]) or better(s.mean, values[at])):
            values[at] = s.mean
    title = f"{sweep.config['method']} on {sweep.config['stream']}"
    where = f"{sweep.config['metric']}, {sweep.config['on']} images (%)"
    more = f", best over {', '.join(names[2:])}" if len(names) > 2 else ""
    return plot.heat_map(
        values,
        plot.Ticks(axes[0], names[0]),
        plot.Ticks(rows, names[1] if len(names) > 1 else ""),
        mark=lost,
        low=low,
        title=f"{title}\n{where}{more}",
    )


def _ordered(values: Mapping[str, Any]) -> list[str]:
    numbers = all(isinstance(v, (int, float)) for v in values.values())
    return sorted(values, key=lambda text: values[text]) if numbers else list(values)
