"""The parts of a report that set runs beside each other: metrics, cost, paired differences.

Runs are paired only where they saw the same stream (its checksum) and were tested the same way;
others are listed, not compared. Pairs are over the seeds that both finished, and their p-values
are Holm-corrected within a stream (``cljax.sweep.compare``, ``cljax.stats``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cljax import measures, plot
from cljax.errors import UserError
from cljax.references import protocol
from cljax.references.tables import Spread, Table, columns, over_seeds, score_of, spreads
from cljax.report import figures, head
from cljax.report.folders import ReportFolder, headline_of, matrix_of
from cljax.report.parts import Part, attempt, legend, notice
from cljax.runner.run import Run
from cljax.stats import MIN_SEEDS
from cljax.sweep.compare import Pair, Study

__all__ = [
    "PAIRS_HEAD",
    "compared",
    "cost_table",
    "groups_of",
    "pair_rows",
    "pair_table",
    "pairs_of",
    "table",
    "tuning_table",
]

PAIRS_HEAD = "stream,metric,a,b,difference,ci95_low,ci95_high,p,p_holm,dz,seeds"
_SHOWN = 30  # pairs in a table; more: those of the first run
_COLUMNS = 4  # metrics in a table


def groups_of(runs: Sequence[ReportFolder]) -> dict[tuple[Any, ...], list[ReportFolder]]:
    """Runs by what they were tested on and how; only those of one group are paired."""
    groups: dict[tuple[Any, ...], list[ReportFolder]] = {}
    for run in runs:
        results = run.results
        entry = results["evaluations"][headline_of(results)]
        how = (entry["scenario"], entry["task_ids"], entry["continuum"])
        key = (results["stream"], results["data"]["checksum"], len(entry["test_counts"]), *how)
        key += () if score_of(results) == measures.ACCURACY else (score_of(results),)
        groups.setdefault(key, []).append(run)
    return groups


def table(runs: Sequence[ReportFolder], metric: str) -> Table:
    """Metrics of every run, in percent with intervals; the stream is a column where it differs."""
    result = [spreads(run.results) for run in runs]
    known = columns(result)
    names = [*(name for name in known if name == metric), *(n for n in known if n != metric)]
    names = names[:_COLUMNS]
    streams = {run.results["stream"] for run in runs}
    one = f" on {next(iter(streams))}" if len(streams) == 1 else ""
    rows = [
        [run.name, *([] if one else [run.results["stream"]]), len(run.results["seeds"]),
         *(cells.get(name, Spread(None)) for name in names)]
        for run, cells in zip(runs, result, strict=True)
    ]  # fmt: skip
    head = ["run", *([] if one else ["stream"]), "seeds", *names]
    counts = {sum(step is None for step in run.results["diverged"]) for run in runs}
    how = over_seeds(*counts) if len(counts) == 1 else (
        f"mean over seeds with 95 % t-interval, or single values of fewer than {MIN_SEEDS}"
    )  # fmt: skip
    scores = sorted({score_of(run.results) for run in runs})
    shares = all(map(measures.in_percent, scores))
    return Table(f"{'Percent' if shares else ', '.join(scores)}{one}, {how}", head, rows)


def _only_score(runs: Sequence[ReportFolder]) -> str:
    """What all runs are judged by; "score" where they differ."""
    scores = {score_of(run.results) for run in runs}
    return scores.pop() if len(scores) == 1 else "score"


def cost_table(runs: Sequence[ReportFolder]) -> Table:
    """What every run took, of one seed but for the seconds."""
    rows = []
    for run in runs:
        cost, spent = run.results["cost"], run.results["time"]
        work, size = cost["gradient_evaluations"], sum(cost["state_bytes"].values()) / 1e6
        rows.append([
            run.name, run.results["method"], f"{cost['examples']:,}",
            None if work is None else f"{work:,}", f"{size:.2f}",
            *(f"{spent[part]:.1f}" for part in ("compile_s", "train_s", "eval_s", "total_s")),
        ])  # fmt: skip
    head = ["run", "method", "examples", "gradient evaluations", "state (MB)", "compile (s)",
            "train (s)", "evaluate (s)", "total (s)"]  # fmt: skip
    caption = "Cost: examples, gradients and state of one seed; seconds of all seeds together"
    return Table(caption, head, rows)


def tuning_table(runs: Sequence[ReportFolder]) -> Table | None:
    """How the settings of runs were chosen, where a sweep chose those of any."""
    if not any(run.config.get("tuning") for run in runs):
        return None
    rows = []
    for run in runs:
        own = run.config.get("tuning")
        said = run.config.get("recipe", {}).get("status", "not recorded")
        rows.append([run.name, protocol.tuned(own) if own else f"not tuned here: {said}"])
    return Table("How settings were chosen", ["run", "chosen"], rows)


def pairs_of(runs: Sequence[ReportFolder], metric: str) -> list[Pair]:
    """Paired differences of all runs of a group, over the seeds that both have.

    Raises:
      UserError: if a run lacks the metric, or two runs share no seed.
    """
    seeds = sorted({seed for run in runs for seed in run.results["seeds"]})
    aligned = {}
    for run in runs:
        if metric not in run.results["metrics"]:
            reason = run.results.get("absent", {}).get(metric, "it was not computed")
            raise UserError(f"{run.name} has no {metric} to compare: {reason.rstrip('.')}.")
        values = run.results["metrics"][metric]["values"]
        own = dict(zip(run.results["seeds"], values, strict=True))
        line = [np.nan if own.get(seed) is None else own[seed] for seed in seeds]
        aligned[run.name] = Run({}, {"metrics": {metric: {"values": line}}, "absent": {}})
    return Study(metric, {}, 0, aligned).pairs()


def pair_table(
    pairs: Sequence[Pair], stream: str, metric: str, score: str = measures.ACCURACY
) -> Table:
    """The differences in points, with intervals, corrected p-values and effect sizes."""
    first = pairs[0].a
    shown = pairs if len(pairs) <= _SHOWN else [pair for pair in pairs if pair.a == first]
    note = "" if len(shown) == len(pairs) else f"; of {len(pairs)} pairs, those with {first}"
    bounds = (-1.0, 1.0) if measures.in_percent(score) else (-math.inf, math.inf)
    rows = []
    for a, b, test, p_holm in shown:
        rows.append([
            f"{a} − {b}",
            Spread(test.diff, ci95=test.ci95, bounds=bounds, score=score, signed=True), test.n,
            None if p_holm is None else f"{p_holm:.3g}",
            None if test.effect_size is None else f"{test.effect_size:.2f}",
        ])  # fmt: skip
    unit = "points" if measures.in_percent(score) else score
    caption = f"{metric} on {stream}: differences in {unit}, paired over seeds, p by Holm{note}"
    return Table(caption, ["pair", "difference [95 %]", "seeds", "p (Holm)", "dz"], rows)


def pair_rows(pairs: Sequence[Pair], stream: str, metric: str) -> list[list[Any]]:
    """Rows under ``PAIRS_HEAD``, as fractions."""
    return [
        [stream, metric, a, b, test.diff, *(test.ci95 or (None, None)), test.p_value, p_holm,
         test.effect_size, test.n]
        for a, b, test, p_holm in pairs
    ]  # fmt: skip


def compared(
    runs: Sequence[ReportFolder], metric: str, drawn: bool = True
) -> Iterator[tuple[Part, Table | None, list[list[Any]]]]:
    """The comparison's parts, each with its table for LaTeX and its rows for CSV, if any."""
    made, cost = table(runs, metric), cost_table(runs)
    yield attempt("The headline", lambda: head.of_comparison(runs, metric)), None, []
    chosen = tuning_table(runs)
    if chosen is not None:
        yield attempt("The tuning", lambda: chosen), None, []
    yield attempt("The runs", lambda: made), made, []
    yield attempt("The legend", lambda: legend(made.head, _only_score(runs))), None, []
    groups = groups_of(runs)
    if len(groups) > 1:
        names = ["; ".join(run.name for run in own) for own in groups.values()]
        text = (
            f"These runs saw {len(groups)} different streams, or were tested in different ways, "
            f"so only runs of one of these groups are compared: {' | '.join(names)}."
        )
        yield notice(text), None, []
    for key, own in groups.items():
        if len(own) < 2:
            continue
        try:
            pairs = pairs_of(own, metric)
        except UserError as error:
            yield notice(f"No paired differences on {key[0]}: {error}"), None, []
            continue
        text = pair_table(pairs, key[0], metric, score_of(own[0].results))
        yield attempt("The pairs", lambda text=text: text), text, pair_rows(pairs, key[0], metric)
        if drawn:
            yield from ((part, None, []) for part in _pictures(own, key[0]))
    yield attempt("The cost", lambda: cost), cost, []


def _pictures(runs: Sequence[ReportFolder], stream: str) -> Iterator[Part]:
    """Mean accuracy over time and forgetting, all runs in one figure; at most eight of them."""
    some, score = runs[:8], score_of(runs[0].results)
    note = "" if len(some) == len(runs) else f" The first {len(some)} of {len(runs)} runs."
    matrices: Mapping[str, np.ndarray] = {run.name: matrix_of(run.results) for run in some}
    means = {name: plot.mean_curve(matrix) for name, matrix in matrices.items()}
    means = {name: curve for name, curve in means.items() if np.isfinite(curve).any()}
    if means:
        yield attempt("The curves", lambda: figures.means(stream, means, note, score))
    forgetful = {run.name: matrices[run.name] for run in some if run.forgets}
    if forgetful and len(some) <= 4:
        yield attempt(
            "Forgetting", lambda: figures.forgetting(f"{stream}-compared", forgetful, score)
        )
