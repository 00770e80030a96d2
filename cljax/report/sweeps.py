"""The part of a report about a sweep: its settings, its heat map, and where its lanes are."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cljax import measures, sweep
from cljax.references.tables import Spread, Table
from cljax.report.figures import Picture
from cljax.report.folders import ReportFolder
from cljax.report.parts import Part, attempt, notice

__all__ = ["of_sweep"]

_SHOWN = 60  # settings in a table, and lanes in a list


def of_sweep(found: ReportFolder) -> Iterator[Part]:
    """The grid, best setting first; of an unfinished sweep, how far it is."""
    if not found.config:
        return
    if found.results:
        yield attempt("The settings", lambda: _settings(found))
        yield attempt("The heat map", lambda: _heat_map(found))
    else:
        yield attempt("The status", lambda: notice(f"Not finished: {sweep.status(found.path)}"))
    yield attempt("The lanes", lambda: _lanes(found))


def _settings(found: ReportFolder) -> Table:
    settings, config = found.results["settings"], found.config
    score = config.get("score", measures.ACCURACY)
    unit = "percent" if measures.in_percent(score) else score
    over = list(settings[0]["setting"])
    rows = []
    for entry in settings[:_SHOWN]:
        values = [str(entry["setting"].get(name)) for name in over] or ["the only one"]
        lost = sum(step is not None for step in entry["diverged"])
        ci95 = entry["ci95"] and tuple(entry["ci95"])
        single, bounds = tuple(entry["values"]), measures.bounds(config["metric"], score)
        cell = Spread(entry["mean"], entry["std"], ci95, single, bounds, score)
        rows.append([*values, cell, lost or None])
    more = f", the best {len(rows)} of {len(settings)}" if len(rows) < len(settings) else ""
    caption = (
        f"{config['metric']} on {config['on']} images, {unit}, over seeds "
        f"{', '.join(map(str, found.results['seeds']))}{more}"
    )
    return Table(caption, [*(over or ["setting"]), f"{config['metric']} [95 %]", "diverged"], rows)


def _heat_map(found: ReportFolder) -> Picture | None:
    path = found.path / "plots" / "heat_map.png"
    if not path.exists():
        return None
    png = path.read_bytes()
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is no PNG")
    return Picture(
        f"{found.name}-heat_map", png, "The best cell is framed.", "Heat map of the sweep."
    )


def _lanes(found: ReportFolder) -> Part:
    names = [sweep.Lane(**entry).name for entry in found.config["lanes"]]
    done = [name for name in names if (found.path / "lanes" / name / "results.json").exists()]
    lines = "".join(f"<li>{escape(name)}</li>" for name in done[:_SHOWN])
    more = f"<li>and {len(done) - _SHOWN} more</li>" if len(done) > _SHOWN else ""
    where = escape(f"{found.path}/lanes")
    return Part(
        f'<p class="small">{len(done)} of {len(names)} lanes are finished. Each is a run of its '
        f'own in {where}: cljax report {where}/NAME.</p><ul class="small">{lines}{more}</ul>'
    )
