"""Sweeps: many settings and seeds as few compiled programs, a folder a lane.

    plan:   lanes (setting, seed), grouped by what needs a program of its own
    run:    one ``learn`` a group; a lane's folder is written when the lane ends
    merge:  a table with intervals, the best setting, a heat map

Real hyper-parameters are arguments of the compiled programs, so settings that differ only in
them share one; others are grouped. Lanes are compared on validation images of their seeds, never
on tests, and their seeds start at 1000, apart from those that runs report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import json
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from cljax import artefacts, keys, metrics, recipes, resolve, tree
from cljax.config import canonical, plain
from cljax.errors import Interrupted, UserError, check_known, check_positive
from cljax.factories import real_options
from cljax.interrupts import signals
from cljax.learn import Event, History, learn, resolve_lanes
from cljax.progress import journal
from cljax.recipes import Recipe
from cljax.results import flops, results_of
from cljax.run import (
    Prepared,
    Running,
    begun_as,
    checkpoints_of,
    interval,
    learn_options,
    make,
    prepare,
)  # fmt: skip
from cljax.streams.base import Stream, on_validation
from cljax.streams.base import plan as steps
from cljax.types import Learner, Method

__all__ = ["FIRST_SEED", "Lane", "Plan", "Setting", "Sweep", "grid", "load", "merge", "plan",
           "run", "status"]  # fmt: skip

FIRST_SEED = 1000  # of tuning; the seeds that runs report start at 0
_OF_RUN = ("net", "batch_size", "epochs")  # what a setting may change beside the method's options
On = Literal["validation", "test"]


class Lane(NamedTuple):
    """One run of a sweep."""

    setting: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Its folder below ``lanes``."""
        return f"{label(self.setting)}/seed-{self.seed}"


class Setting(NamedTuple):
    """What the lanes of a setting found: fractions; ``mean`` is over those that did not diverge."""

    setting: Mapping[str, Any]
    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    values: tuple[float | None, ...]
    diverged: tuple[int | None, ...]  # the update at which a seed's lane did


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep that has not begun; printable."""

    config: Mapping[str, Any]
    lanes: tuple[Lane, ...]
    prepared: tuple[Prepared, ...]  # of each lane
    groups: tuple[tuple[int, ...], ...]  # numbers of the lanes that share programs
    stream: Stream
    state_bytes: int  # of one lane
    lanes_at_a_time: int
    flops: float | None  # of all lanes

    def __str__(self) -> str:
        settings = len({label(lane.setting) for lane in self.lanes})
        seeds = len({lane.seed for lane in self.lanes})
        programs = f"{len(self.groups)} compiled program{'s'[: len(self.groups) > 1]}"
        lines = [
            f"{len(self.lanes)} lanes ({settings} settings, {seeds} seeds), {programs}, "
            f"{self.state_bytes / 1e6:.1f} MB of state a lane, {self.lanes_at_a_time} at a time",
            f"estimated {_duration(_estimate(self.flops))}"
            if self.flops
            else "no estimate of the time: this method does not state its work",
        ]
        return ", ".join(lines)


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
            raise UserError(f"Every setting of the sweep in {self.path} diverged; try others.")
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
        of_run = {name: value for name, value in values.items() if name in _OF_RUN}
        options = {name: value for name, value in values.items() if name not in _OF_RUN}
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
        return "\n".join(lines)


def grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of values: ``grid(alpha_init=[.1, .2], seed=range(3))`` has 6 lanes."""
    for name, options in values.items():
        if isinstance(options, str) or not np.iterable(options) or not len(list(options)):
            raise UserError(f"{name} is {options!r}, but a grid needs a list of values.")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def label(setting: Mapping[str, Any]) -> str:
    """A setting as text that can name a folder."""
    parts = [f"{name}={_short(value)}" for name, value in sorted(setting.items())]
    text = ",".join(parts) or "default"
    text = re.sub(r"[^A-Za-z0-9=.,_+-]+", "-", text)
    if len(text) <= 120:
        return text
    return f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plan(
    what: Recipe | Callable[..., Method] | str,
    stream: Stream | str | None,
    settings: Sequence[Mapping[str, Any]],
    *,
    seeds: int | Sequence[int] = 5,
    on: On = "validation",
    metric: str = "RA",
    recipe: Recipe | str | None = None,
    lanes_at_a_time: int | None = None,
    origins: Mapping[str, str] | None = None,
    **options: Any,
) -> Plan:
    """Lays out a sweep.

    Args:
      what: a recipe, or a method by name or factory.
      stream: a ``Stream`` or its name; not needed with a recipe.
      settings: values of the method's options, or of net, batch_size and epochs; with a ``seed``
        in each, those are the lanes, else each goes with every one of ``seeds``.
      seeds: how many (from 1000 on; from 0 on with on="test"), or which.
      on: measure on the validation images of each seed, or on tests, which choose nothing.
      metric: what settings are ranked by.
      recipe: where the other options come from, itself or SOURCE[:VARIANT]; None: the pair's own,
        or defaults.
      lanes_at_a_time: None: what fits.
      **options: further ones of ``cljax.run.prepare``, such as entries, lanes or precision.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    check_known("on", on, ("validation", "test"))
    check_known("metric", metric, metrics.NAMES)
    entries = options.pop("entries", None) or "diagonal-last"
    if not metrics.evaluated(metric, entries):
        raise UserError(
            f"The metric {metric} needs entries={metrics.entries_of(metric)} of the accuracy "
            f"matrix, but entries is {entries}; change it."
        )
    if lanes_at_a_time is not None:
        check_positive(lanes_at_a_time=lanes_at_a_time)
    base, factory, source = _resolve(what, stream, recipe)
    lanes = _lanes(settings, seeds, on)
    known = set(inspect.signature(factory).parameters)
    prepared = []
    streams = {lane.seed: _tested(source, lane.seed, on) for lane in lanes}
    for lane in lanes:
        for name in lane.setting:
            check_known(f"option of {base.method}", name, {*known, *_OF_RUN})
        given = {name: options.get(name) or getattr(base, name) for name in _OF_RUN}
        of_run = {name: lane.setting.get(name, given[name]) for name in _OF_RUN}
        of_method = {k: v for k, v in lane.setting.items() if k not in _OF_RUN}
        method = factory(**{**base.method_options, **of_method})
        made = prepare(
            method, streams[lane.seed], seeds=[lane.seed], entries=entries,
            origins={**(origins or {}), **dict.fromkeys(lane.setting, "sweep")},
            **{**{k: v for k, v in options.items() if k not in _OF_RUN}, **of_run},
        )  # fmt: skip
        prepared.append(made)
    groups = _groups(prepared)
    identity = [made.config["config_hash"] for made in prepared] + [lane.name for lane in lanes]
    state_bytes = max(_state_bytes(prepared[group[0]]) for group in groups)
    config = {
        "kind": "sweep",
        "method": base.method,
        "stream": source.name,
        "on": on,
        "metric": metric,
        "over": list(dict.fromkeys(name for lane in lanes for name in lane.setting)),
        "lanes": [{"setting": plain(lane.setting), "seed": lane.seed} for lane in lanes],
        "base": _base(base, what, stream, options),
        "sweep_hash": hashlib.sha256("".join([*identity, on, metric]).encode()).hexdigest(),
        "begun_as": None,
    }
    work = [_work(made) for made in prepared]
    return Plan(
        config, tuple(lanes), tuple(prepared), groups, source, state_bytes,
        lanes_at_a_time or _fitting(state_bytes, len(lanes), prepared[0].config["lanes"]),
        None if None in work else float(sum(w for w in work if w is not None)),
    )  # fmt: skip


def run(
    plan: Plan,
    out: str | Path = "auto",
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[Event], None] | None = None,
    running: Running = Running(),  # noqa: B008, it is frozen
    command: Mapping[str, Any] | None = None,
) -> Sweep:
    """Runs the lanes of a sweep that are not finished yet, and merges when all are.

    Args:
      out: its folder; "auto": runs/sweep-METHOD-STREAM-HASH8. Shards share it.
      shard: (i, n): only every n-th lane, from the i-th on, for array jobs.
      progress: called with each ``Event``.
      running: how it is kept and cut up.
      command: what ``cljax resume`` needs.

    Returns:
      The sweep; its ``exit_code`` is 75 if a signal interrupted it, and the same call goes on.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    index, count = shard
    if running.checkpoint_every is not None:
        interval(running.checkpoint_every)
    if not 0 <= index < count:
        raise UserError(f"shard is {index}/{count}, but it must be one of 0/n to n-1/n.")
    folder = Path("runs") / _folder_name(plan) if out == "auto" else Path(out).expanduser()
    first = jax.process_index() == 0  # of several processes: it writes
    if first:
        _claim_folder(folder, plan, command)
    part = f"{index}-of-{count}"
    log = folder / f"metrics-{part}.jsonl"
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(artefacts.claim(folder, f".lock-{part}"))
        try:
            show = progress or (lambda event: None)
            if first:
                show = stack.enter_context(journal(log, progress, goes_on=True))
            interrupted = stack.enter_context(signals())
            for number, group in enumerate(plan.groups):
                mine = [i for i in group if i % count == index]
                todo = [i for i in mine if not _finished(folder, plan, i)]
                kept = folder / "checkpoint" / f"group-{number}-{part}"
                if todo:
                    width = min(plan.lanes_at_a_time, len(mine))  # the same when it is resumed
                    _run_group(plan, todo, width, folder, kept, show, running, interrupted)
                if first and kept.exists():
                    artefacts.remove(kept)
                if interrupted() and todo and group != plan.groups[-1]:
                    raise Interrupted
        except Interrupted:
            return Sweep(folder, plan.config, None, exit_code=75)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
        if first and all(_finished(folder, plan, i) for i in range(len(plan.lanes))):
            return merge(folder)
    return Sweep(folder, plan.config, None)


def status(folder: str | Path) -> str:
    """How far a sweep is, in one sentence."""
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
        text += f"; the last one ended {_duration(time.time() - last)} ago"
    return f"{text}."


def merge(folder: str | Path) -> Sweep:
    """Makes the table, the results and the heat map of a finished sweep.

    Raises:
      UserError: if lanes are missing, or the folder holds no sweep.
    """
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


def _base(recipe: Recipe, what: Any, stream: Any, options: Mapping[str, Any]) -> Any:
    """The recipe's fields, if all of the sweep can be told by names and values."""
    net = options.get("net") or recipe.net
    named = isinstance(what, (Recipe, str)) and not isinstance(stream, Stream)
    if not named or not isinstance(net, str):
        return None
    given = {name: options[name] for name in ("batch_size", "epochs") if options.get(name)}
    return begun_as(recipe.replace(**given), net)


def _resolve(
    what: Any, stream: Any, recipe: Recipe | str | None
) -> tuple[Recipe, Callable[..., Any], Stream]:
    """The base recipe, the method's factory and the stream."""
    if isinstance(what, Recipe):
        recipe, stream = what, what.stream if stream is None else stream
        factory = resolve.method_factory(what.method)
    elif isinstance(what, str):
        factory = resolve.method_factory(what)
    else:
        factory = what
    name = what if isinstance(what, str) else getattr(factory, "__name__", "custom")
    if isinstance(recipe, str):
        source, _, variant = recipe.partition(":")
        table = stream if isinstance(stream, str) else stream.name
        recipe = recipes.recipe(name.replace("_", "-"), table, source, variant or None)
    if stream is None:
        raise UserError(f"A sweep of {name} needs a stream; name one, or pass a recipe.")
    if isinstance(stream, Stream):
        return recipe or Recipe(name.replace("_", "-"), stream.name), factory, stream
    base = recipe or recipes.default(name.replace("_", "-"), stream)
    made = make(resolve.stream_factory(stream), base.stream_options, stream)
    return base, factory, made


def _lanes(settings: Sequence[Mapping[str, Any]], seeds: int | Sequence[int], on: On) -> list[Lane]:
    if isinstance(seeds, int):
        check_positive(seeds=seeds)
        first = FIRST_SEED if on == "validation" else 0
        seeds = range(first, first + seeds)
    lanes = []
    for setting in settings or [{}]:
        own = {name: value for name, value in setting.items() if name != "seed"}
        chosen = [setting["seed"]] if "seed" in setting else seeds
        lanes += [Lane(own, int(seed)) for seed in chosen]
    names = [lane.name for lane in lanes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"The lane {twice} is there twice; give each setting and seed once.")
    return lanes


def _tested(stream: Stream, seed: int, on: On) -> Stream:
    return on_validation(stream, seed) if on == "validation" else stream


def _groups(prepared: Sequence[Prepared]) -> tuple[tuple[int, ...], ...]:
    """Lanes whose configs differ only in real options, seed and validation images."""
    groups: dict[str, list[int]] = {}
    for i, made in enumerate(prepared):
        real = dict.fromkeys(real_options(made.method))
        own = {**made.config, "seeds": None, "stream": None}
        own["method"] = {"name": made.method.name, "options": {**made.method.options, **real}}
        names = ("method", "net", "batch_size", "epochs", "entries", "evaluations", "lanes")
        groups.setdefault(canonical({name: own[name] for name in names}), []).append(i)
    return tuple(tuple(group) for group in groups.values())


def _run_group(
    plan: Plan,
    numbers: Sequence[int],
    lanes_at_a_time: int,
    folder: Path,
    kept: Path,
    progress: Callable[[Event], None],
    running: Running,
    interrupted: Callable[[], bool],
) -> None:
    """Runs lanes that share programs, and writes each one's folder as it ends."""
    first = plan.prepared[numbers[0]]
    model = first.net(plan.stream.num_classes)
    real = real_options(first.method)
    options = [plan.prepared[i].method.options for i in numbers]

    def write(number: int, history: History) -> None:
        if jax.process_index() > 0:  # of several: the first one writes
            return
        made = plan.prepared[numbers[number]]
        place = folder / "lanes" / plan.lanes[numbers[number]].name
        results = results_of(made.config, made.method, model, made.stream, history)
        # Lanes share their time: it is the sweep's.
        results["time"] = {"compile_s": history.time["compile_s"]}
        artefacts.write_json(place / "config.json", made.config)
        artefacts.write_json(place / "results.json", results)

    identity = {**first.config, "config_hash": plan.config["sweep_hash"]}
    identity["stream"] = {**first.config["stream"], "checksum": plan.stream.checksum}
    learn(
        first.method,
        model,
        plan.stream,
        [plan.lanes[i].seed for i in numbers],
        settings=[{name: own[name] for name in real} for own in options],
        labels=[plan.lanes[i].name for i in numbers],
        validate=plan.config["on"] == "validation",
        lanes_at_a_time=lanes_at_a_time,
        segment_seconds=running.segment_seconds,
        devices=running.devices,
        # Numbered as in the plan, not as in the group.
        progress=lambda event: progress(
            event._replace(run=numbers[event.run]) if event.run >= 0 else event
        ),
        checkpoints=checkpoints_of(identity, kept, running),
        interrupted=interrupted,
        on_finish=write,
        **learn_options(first.config),
    )


def _claim_folder(folder: Path, plan: Plan, command: Mapping[str, Any] | None) -> None:
    """Writes ``sweep.json``, or refuses a folder that holds something else."""
    stored = folder / "sweep.json"
    if stored.exists():
        if artefacts.read(folder, "sweep.json").get("sweep_hash") == plan.config["sweep_hash"]:
            return
        raise UserError(f"The folder {folder} holds another sweep; name another folder.")
    if folder.is_file():
        raise UserError(f"The output folder {folder} is a file; name a folder.")
    entries = folder.iterdir() if folder.exists() else ()
    held = [entry.name for entry in entries if not entry.name.startswith(".")]
    if held and not stored.exists():  # another shard may have written it just now
        raise UserError(f"The folder {folder} holds {held[0]} but no sweep; name an empty one.")
    try:
        artefacts.write_json(stored, {**plan.config, "begun_as": command})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error


def _finished(folder: Path, plan: Plan, i: int) -> bool:
    place = folder / "lanes" / plan.lanes[i].name
    return artefacts.finished(place, plan.prepared[i].config)


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


def _state_bytes(made: Prepared) -> int:
    """Bytes of one lane's state."""
    learner = _learner(made)
    return tree.size(jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init"))))


def _learner(made: Prepared) -> Learner:
    model = made.net(made.stream.num_classes)
    return made.method.bind(model, made.stream.spec(made.config["batch_size"]))


def _work(made: Prepared) -> float | None:
    """Floating-point operations of a lane, by the length of its plan."""
    stream = made.stream if made.method.arrange is None else made.method.arrange(made.stream)
    rows = steps(stream, made.config["seeds"][0], made.config["batch_size"], made.config["epochs"])
    return flops(_learner(made), made.net(stream.num_classes), len(rows.current))


def _fitting(state_bytes: int, num: int, policy: str) -> int:
    """Lanes at a time: those of a program, by the device's memory, or under way in threads."""
    if resolve_lanes(policy) not in ("vmap", "map"):  # type: ignore[arg-type]
        return min(num, 8)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 4 << 30)
    # The state, the one being made of it, and as much again for what an update needs.
    return max(1, min(num, int(0.6 * memory) // (4 * state_bytes)))


def _estimate(flops: float) -> float:
    """Seconds for so much work, at the part of a matrix product's speed that updates reach."""
    from jax import numpy as jnp

    a = jnp.ones((512, 512), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = min(_timed(lambda: product(a).block_until_ready()) for _ in range(10))
    return flops / (0.4 * 2 * 512**3 / best)


def _timed(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _folder_name(plan: Plan) -> str:
    parts = ("sweep", plan.config["method"], plan.config["stream"], plan.config["sweep_hash"][:8])
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(parts)).replace("--", "-")
