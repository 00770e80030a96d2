"""What stands first: the headline's numbers in large, and how the settings were chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from cljax import measures, sweep
from cljax.references import protocol
from cljax.references.tables import Spread, over_seeds, score_of, spreads, unit_of
from cljax.report.folders import ReportFolder
from cljax.report.parts import Part

__all__ = ["chosen", "of_comparison", "of_run", "of_sweep"]

_MEASURES = 4  # numbers in large of one run
_RUNS = 6  # of so many runs at most; more are in the table alone


def of_run(folder: ReportFolder) -> Part:
    """The first measures in large, and what they are of."""
    results = folder.results
    cells, score = spreads(results), score_of(results)
    shown = [name for name in cells if cells[name].mean is not None][:_MEASURES]
    tiles = [(measures.label(name, score), *_number(name, cells[name])) for name in shown]
    alive = sum(step is None for step in results["diverged"])
    net = f", network {folder.config['net']}" if isinstance(folder.config.get("net"), str) else ""
    return Part(_tiles(tiles) + _lead(f"{_first(over_seeds(alive))}{net}. {chosen(folder.config)}"))


def of_comparison(runs: Sequence[ReportFolder], metric: str) -> Part:
    """The measure by which runs are compared, in large, with a tile for each run."""
    if len(runs) > _RUNS:
        return Part("")
    tiles = []
    for run in runs:
        cell = spreads(run.results).get(metric)
        if cell is not None and cell.mean is not None:
            tiles.append((run.name, *_number(metric, cell)))
    scores = {unit_of(run.results) for run in runs}
    what = f"{measures.label(metric)}, {scores.pop() if len(scores) == 1 else 'by score'}"
    return Part(_lead(_first(f"{what}:")) + _tiles(tiles)) if tiles else Part("")


def of_sweep(folder: ReportFolder) -> Part:
    """The best setting of a finished sweep, and what it was chosen by and among."""
    config, settings = folder.config, folder.results["settings"]
    best, score = settings[0], config.get("score", measures.ACCURACY)
    lanes, seeds = folder.results["lanes"], folder.results["seeds"]
    among = (
        f"{len(settings)} setting{'s'[: len(settings) != 1]} of {', '.join(config['over'])}, "
        f"{len(seeds)} seed{'s'[: len(seeds) != 1]} each, {lanes} runs in all"
    )
    if best["mean"] is None or any(step is not None for step in best["diverged"]):
        return Part(_lead(f"No setting finished with every seed: {among}."))
    ci95, bounds = best["ci95"] and tuple(best["ci95"]), measures.bounds(config["metric"], score)
    cell = Spread(best["mean"], best["std"], ci95, tuple(best["values"]), bounds, score)
    name = sweep.label(best["setting"]).replace(",", ", ") or "the only setting"
    what = f"{measures.label(config['metric'], score)} on {config['on']} images"
    tiles = [("best setting", name, ""), (what, *_number(config["metric"], cell))]
    warning = "" if config["on"] == "validation" else " Test images must choose no setting."
    return Part(_tiles(tiles) + _lead(f"Best of {among}.{warning}"))


def chosen(config: Mapping[str, Any]) -> str:
    """How the settings of a run were chosen, as a sentence; empty where nothing is known."""
    if config.get("tuning"):
        return f"{_first(protocol.tuned(config['tuning']))}."
    recipe = config.get("recipe") or {}
    if not recipe:
        return ""
    return f"Not tuned here: recipe {recipe.get('name')} ({recipe.get('status', 'not recorded')})."


def _number(name: str, cell: Spread) -> tuple[str, str]:
    """A mean with its unit, and what stands beside it."""
    mean, _, beside = str(cell).partition(" ")
    unit = measures.unit(name, cell.score)
    return f"{mean} {unit}".strip(), beside.replace("[", "95 % interval [").strip("()")


def _tiles(tiles: Iterable[tuple[str, str, str]]) -> str:
    rows = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f"{f'<dd>{escape(beside)}</dd>' if beside else ''}</div>"
        for name, value, beside in tiles
    )
    return f'<dl class="tiles">{rows}</dl>' if rows else ""


def _lead(text: str) -> str:
    return f'<p class="lead">{escape(text.strip())}</p>' if text.strip() else ""


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]
