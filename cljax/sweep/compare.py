"""Comparing methods fairly: equal budgets of tuning, the same seeds, one look at the tests.

for each method:  sweep its grid on validation images, with tuning seeds
                  run its best setting on the tests, with the reported seeds
then:             paired differences over seeds, Holm-corrected
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cljax import measures, resolve, sweep
from cljax.checks import check_method, check_progress
from cljax.engine.options import Running, check_running
from cljax.errors import RESUMABLE, Interrupted, UserError, check_path, in_words
from cljax.keys import (
    check_seeds,
)
from cljax.method import Method
from cljax.references.tables import score_of
from cljax.runner.prepare import seeds_of
from cljax.runner.progress import Shown, within
from cljax.runner.run import Run
from cljax.runner.run import run as run_one
from cljax.stats import Paired, holm, paired, with_interval
from cljax.streams.base import Stream, first_tasks
from cljax.streams.options import StreamSource
from cljax.types import Net

__all__ = ["Study", "Tune", "compare"]

_SHOWN = ("RA", "LA", "BTI", "forgetting", "average_anytime_accuracy")


class Tune(NamedTuple):
    """How settings are chosen: always on validation images."""

    metric: str = "RA"
    seeds: Sequence[int] = tuple(range(sweep.FIRST_SEED, sweep.FIRST_SEED + 3))
    tasks: int | None = None  # only the stream's first ones; None: all


class Pair(NamedTuple):
    """The difference of two methods over the seeds that both finished."""

    a: str
    b: str
    test: Paired
    p_holm: float | None  # corrected for all pairs of the study


@dataclasses.dataclass(frozen=True)
class Study:
    """What a comparison found."""

    metric: str
    settings: Mapping[str, sweep.Setting]  # the chosen ones
    tried: int  # settings of each method
    runs: Mapping[str, Run]

    def pairs(self, metric: str | None = None) -> list[Pair]:
        """Every pair of methods, paired over seeds.

        Raises:
          UserError: if a metric is absent, or no seed finished with both methods.
        """
        result = []
        for a, b in itertools.combinations(self.runs, 2):
            x, y = (self.runs[name].metric(metric or self.metric) for name in (a, b))
            both = np.isfinite(x) & np.isfinite(y)
            if not both.any():
                raise UserError(f"No seed finished with both {a} and {b}, so they have no pair.")
            result.append((a, b, paired(x[both], y[both])))
        known = [test.p_value for _, _, test in result if test.p_value is not None]
        corrected = iter(holm(known))
        return [
            Pair(a, b, test, None if test.p_value is None else next(corrected))
            for a, b, test in result
        ]

    def table(self) -> str:
        """Metrics in percent with 95 % intervals, cost, and the paired differences, as text."""
        width = max(len(name) for name in self.runs)
        first = next(iter(self.runs.values()))
        names = [name for name in _SHOWN if name in first.results["metrics"]]
        score = score_of(first.results)
        bounds = (-1.0, 1.0) if measures.in_percent(score) else (-math.inf, math.inf)
        lines = [
            f"{first.results['stream']}, {len(first.results['seeds'])} seeds; each method tuned "
            f"over {self.tried} settings on validation images",
            "",
        ]
        for name, run in self.runs.items():
            cells = [
                f"{metric} {_shown(metric, run.results['metrics'][metric], score)}"
                for metric in names
            ]
            cost = run.results["cost"]
            size = sum(cost["state_bytes"].values()) / 1e6
            work = cost["gradient_evaluations"]
            lines.append(f"  {name:<{width}}  {'  '.join(cells)}")
            chosen = sweep.label(self.settings[name].setting)
            gradients = "" if work is None else f", {work} gradient evaluations"
            lines.append(f"  {'':<{width}}  {chosen}; {size:.1f} MB of state{gradients}")
        lines += ["", f"  {self.metric}, paired over seeds, p after Holm's correction"]
        for a, b, test, p_holm in self.pairs():
            difference = with_interval(
                test.diff, test.ci95, bounds=bounds, scale=measures.scale(score),
                spec=measures.digits(score, "+.2f"),
            )  # fmt: skip
            text = f"  {a} - {b}: {difference}"
            if p_holm is not None:
                text += f"  p = {p_holm:.3g}"
            if test.effect_size is not None:
                text += f"  dz = {test.effect_size:.2f}"
            lines.append(text)
        return "\n".join(lines)


def compare(
    methods: Mapping[str, tuple[Method | type[Method], Mapping[str, Sequence[Any]]]],
    stream: Stream | StreamSource | str,
    *,
    net: Net | str | None = None,
    tune: Tune = Tune(),  # noqa: B008, it is immutable
    seeds: int | Sequence[int] = 5,
    out: str | Path = "runs/compare",
    progress: Shown = None,
    running: Running = Running(),  # noqa: B008, it is immutable
    **options: Any,
) -> Study:
    """Compares methods with equal budgets, paired seeds and untouched tests.

    Args:
      methods: name -> (method, values of its options); the grids must have one size.
      stream: where, with validation rows; a ``Stream``, a ``StreamSource`` or its name.
      tune: how settings are chosen.
      seeds: of the report: how many, or which; none of them may be a tuning seed.
      out: folder; what is finished there is not run again.
      progress: as for ``cljax.run``, of each sweep and of each run; ``Event.lane`` begins with the
        method's name.
      running: how everything is kept.
      **options: further ones of ``cljax.run``, such as batch_size, epochs or eval_every.

    Raises:
      UserError: for unequal budgets, seeds used twice, or what a run refuses.
      Interrupted: by a signal; the same call goes on.
    """
    _check(methods, tune)
    opened = resolve.opened(stream)
    check_progress(progress)
    check_running(running)
    check_path(out=out)
    grids = {name: sweep.grid(**values) for name, (_, values) in methods.items()}
    sizes = {name: len(grid) for name, grid in grids.items()}
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"The methods have grids of {shown} settings; give all the same number.")
    reported = seeds_of(seeds)
    twice = sorted(set(reported) & set(check_seeds(tune.seeds)))
    if twice:
        raise UserError(f"Seed {twice[0]} both tunes and reports; keep the two apart.")
    folder = Path(out).expanduser()
    source = opened if tune.tasks is None else first_tasks(opened, tune.tasks)
    settings, tuning, runs = {}, {}, {}
    plans = {
        name: sweep.plan(
            method, source, grids[name], seeds=tune.seeds, metric=tune.metric, net=net, **options
        )
        for name, (method, _) in methods.items()
    }
    for name, plan in plans.items():
        tuned = sweep.run(
            plan, folder / "tune" / name, progress=within(progress, name), running=running
        )
        if tuned.exit_code:
            kept = tuned.exit_code == RESUMABLE or bool(settings)
            done = f"kept in {folder}; the same call goes on" if kept else "nothing is kept yet"
            raise Interrupted(f"interrupted; {done}.", kept=kept)
        settings[name], tuning[name] = tuned.best(), tuned.tuning()
    for name, (method, _) in methods.items():
        # As it was given: of an object, the sweep's folder has the name alone.
        best = sweep.label(settings[name].setting)
        chosen = next(setting for setting in grids[name] if sweep.label(setting) == best)
        method = (method() if isinstance(method, type) else method).replace(**chosen)
        runs[name] = run_one(
            method, opened, seeds=reported, net=net, out=folder / "report" / name,
            progress=within(progress, name), running=running, tuning=tuning[name], **options,
        )  # fmt: skip
    return Study(tune.metric, settings, next(iter(sizes.values())), runs)


def _check(methods: Any, tune: Any) -> None:
    """Raises UserError unless methods are pairs by name, and tune says how to choose."""
    pairs = methods.values() if isinstance(methods, Mapping) else [None]
    for pair in pairs or [None]:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise UserError(
                f"methods is {in_words(methods)}, but it must be a dict of name -> (method, "
                'values of its options), such as {"er": (cljax.ER(), {"lr": [0.03, 0.1]})}.'
            )
        if not isinstance(pair[0], type):
            check_method(pair[0])
    if not isinstance(tune, Tune):
        raise UserError(
            f"tune is {in_words(tune)}, but it must be a cljax.Tune, such as "
            "cljax.Tune(seeds=(1000, 1001))."
        )


def _shown(metric: str, cell: Mapping[str, Any], score: str) -> str:
    if cell["mean"] is None:
        return "-"
    return with_interval(
        cell["mean"], cell["ci95"], values=cell["values"], bounds=measures.bounds(metric, score),
        scale=measures.scale(score), spec=measures.digits(score, ".2f"),
    )  # fmt: skip
