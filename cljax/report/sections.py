"""The parts of a report about one run: its numbers, figures, time and configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from cljax import measures, metrics
from cljax.plot.parts import titled as titled_axis
from cljax.references import protocol
from cljax.references.tables import Spread, Table, html, over_seeds, score_of, spreads, unit_of
from cljax.report import cells, figures, head
from cljax.report.classes import of_classes
from cljax.report.configuration import of_config
from cljax.report.folders import ReportFolder, matrix_of, progress_of
from cljax.report.parts import Part, attempt, legend, notice, titled
from cljax.stats import MIN_SEEDS

__all__ = ["of_run", "of_unfinished"]

_CELLS = "on each task (columns) after each task (rows), mean over seeds"


def of_run(folder: ReportFolder, few: bool) -> Iterator[Part]:
    """Everything about a finished run; with ``few``, its matrix as a table and no figures."""
    results, score = folder.results, score_of(folder.results)
    yield attempt("The headline", lambda: head.of_run(folder))
    yield attempt("The remarks", lambda: _remarks(folder))
    yield attempt("The metrics", lambda: _metrics(folder))
    yield attempt("The legend", lambda: legend(spreads(results), score))
    yield attempt("What is absent", lambda: _absent(results))
    yield attempt("The published numbers", lambda: _published(folder))
    yield attempt("The other evaluations", lambda: _evaluations(results))
    if few:
        yield attempt("The accuracy matrix", lambda: _cells(results))
    else:
        yield from _figures(folder)
    spent = [
        attempt("The time", lambda: _time(results)),
        attempt("The cost", lambda: _cost(results)),
    ]
    yield from titled(3, "Time and cost", spent)
    yield from of_config(folder.config)


def _cells(results: Mapping[str, Any]) -> Part | None:
    score = score_of(results)
    return cells.matrix(matrix_of(results), f"{titled_axis(score)} {_CELLS}", score)


def _figures(folder: ReportFolder) -> Iterator[Part]:
    name, results = folder.name, folder.results
    drawn = [
        attempt("The curves", lambda: figures.curves(name, results)),
        attempt("The accuracy matrix", lambda: figures.accuracy(name, results)),
    ]
    if folder.forgets:
        own = {name: matrix_of(results)}
        bars = attempt("Forgetting", lambda: figures.forgetting(name, own, score_of(results)))
        drawn.append(bars)
    score = score_of(results)
    yield from titled(3, score[:1].upper() + score[1:], drawn)
    yield from titled(3, "Classes", _classes(folder))
    rates = attempt("The rates", lambda: figures.rates(name, folder.snapshots))
    yield from titled(3, "Learned rates", [rates])
    memory = [
        attempt("The memory", lambda: figures.memory(name, folder.snapshots)),
        attempt("The outer losses", lambda: figures.outer(name, folder.snapshots)),
    ]
    yield from titled(3, "Memory", memory)


def _classes(folder: ReportFolder) -> list[Part]:
    made: list[Part] = []
    fault = attempt("The classes", lambda: made.extend(of_classes(folder.name, folder.snapshots)))
    return [*made, fault]


def of_unfinished(folder: ReportFolder) -> Iterator[Part]:
    """What there is of a run without results."""
    seeds = progress_of(folder.path)
    past, whole = sum(step for _, step, _, _ in seeds), sum(num for _, _, num, _ in seeds)
    done = f" {past} of {whole} updates are done." if seeds else ""
    yield notice(
        f"This run is not finished, so it has no numbers yet.{done} "
        f"`cljax resume {folder.path}` goes on."
    )
    if seeds:
        score = (folder.config.get("objective") or {}).get("score", measures.ACCURACY)
        rows = [
            [f"seed {seed}", step, num, Spread(None, score=score).shown(value)]
            for seed, step, num, value in seeds
        ]
        unit = " (%)" if measures.in_percent(score) else ""
        head = ["", "updates done", "of", f"last {score}{unit}"]
        yield Part(html(Table("How far it is, by metrics.jsonl", head, rows)))
    yield from of_config(folder.config)


def _metrics(folder: ReportFolder) -> Table:
    results = folder.results
    shown_measures = spreads(results)
    seeds = [f"seed {seed}" for seed in results["seeds"]]
    shown = seeds if len(seeds) <= 8 else []  # more columns than a page holds
    few = len(seeds) < MIN_SEEDS
    rows = []
    for name, cell in shown_measures.items():
        std = cell.shown(cell.std)
        values = [cell.shown(value) for value in cell.values]
        mean = (
            Spread(cell.mean, score=cell.score) if few else cell
        )  # the single values stand beside it
        better = "lower" if name in metrics.LOWER_IS_BETTER else "higher"
        better = better if name in measures.MEASURES else None  # of a user's own nothing is known
        label = measures.label(name, cell.score)
        rows.append([label, mean, std, *(values if shown else []), better])
    what = f"{results['method']} on {results['stream']}"
    count = sum(step is None for step in results["diverged"])
    caption = f"{what}: {unit_of(results)}, {over_seeds(count)}"
    if count < len(seeds):
        caption += f"; {len(seeds) - count} of {len(seeds)} seeds diverged"
    head_of = ["measure", "mean" if few else "mean [95 %]", "std", *shown]
    return Table(caption, [*head_of, "better"], rows)


def _remarks(folder: ReportFolder) -> Part:
    """Which seeds diverged, and that one has no interval."""
    results = folder.results
    lines = [
        f"Seed {seed} diverged: its loss was not finite at update {step}; it counts in no mean."
        for seed, step in zip(results["seeds"], results["diverged"], strict=True)
        if step is not None
    ]
    if len(lines) == len(results["seeds"]):
        lines.insert(0, "All seeds diverged, so this run has no numbers; try smaller rates.")
    if len(results["seeds"]) == 1:
        lines.append("With one seed there are no intervals.")
    return Part("".join(notice(line).html for line in lines))


def _absent(results: Mapping[str, Any]) -> Part:
    """Which measures have no number, and why."""
    absent = [
        f"{measures.label(name, score_of(results))}: {reason}"
        for name, reason in results.get("absent", {}).items()
    ]
    if not absent:
        return Part("")
    entries = "".join(f"<li>{escape(line)}</li>" for line in absent)
    return Part(f'<p class="small">Not computed:</p><ul class="small">{entries}</ul>')


def _published(folder: ReportFolder) -> Part | Table | None:
    if not folder.config:
        return notice(f"{folder.name} has no configuration, so nothing else is known of it.")
    rows = [
        [source, metric, Spread(target.mean), None if target.std is None else
         f"{100 * target.std:.2f}", f"{100 * verdict.diff:+.2f}", verdict.verdict]
        for source, metric, target, verdict in protocol.compare(folder.config, folder.results)
    ]  # fmt: skip
    if not rows:
        return None
    head = ["source", "metric", "published", "std", "difference", "verdict"]
    return Table("Published numbers, percent; two one-sided tests at 5 %", head, rows)


def _evaluations(results: Mapping[str, Any]) -> Table | None:
    if len(results["evaluations"]) < 2:
        return None
    rows = []
    for name, entry in results["evaluations"].items():
        measures = spreads(entry, score_of(results))
        told = "given" if entry["task_ids"] else "not given"
        if entry["continuum"] is not None:
            told = f"inferred from {entry['continuum']}"
        rows.append([name, entry["scenario"], told, measures.get("RA"), measures.get("BTI")])
    head = ["evaluation", "scenario", "task", "RA", "BTI"]
    return Table(f"All evaluations of the same states, {unit_of(results)}", head, rows)


def _time(results: Mapping[str, Any]) -> Table:
    spent = results["time"]
    names = {"data_s": "data", "compile_s": "compile", "train_s": "train", "eval_s": "evaluate"}
    total = sum(spent[part] for part in names) or 1.0
    share = lambda part: f"{100 * spent[part] / total:.0f} %"
    rows: list[list[str | None]] = [
        [name, f"{spent[part]:.2f}", share(part)] for part, name in names.items()
    ]
    rows.append(["total, by the clock", f"{spent['total_s']:.2f}", None])
    device = results.get("device", {})
    where = f"{device.get('count', '?')} × {device.get('kind', 'unknown device')}"
    caption = f"Seconds on {where}; training and evaluation are summed over threads"
    return Table(caption, ["part", "seconds", "share"], rows)


def _cost(results: Mapping[str, Any]) -> Table:
    cost = results["cost"]
    rows = [["examples", f"{cost['examples']:,}"]]
    if cost["gradient_evaluations"] is not None:
        rows.append(["gradient evaluations", f"{cost['gradient_evaluations']:,}"])
    if cost["flops_analytic"] is not None:
        rows.append(["floating-point operations", f"{cost['flops_analytic']:.3g}"])
    rows += [
        [f"state: {part}", f"{size / 1e6:.3f} MB"]
        for part, size in sorted(cost["state_bytes"].items(), key=lambda item: -item[1])
        if size
    ]
    return Table("Work and state of one seed", ["what", "amount"], rows)
