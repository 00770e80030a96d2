"""The part of a report about a sweep: its settings, its heat map, and where its lanes are."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cljax import measures, sweep
from cljax.references.tables import Spread, Table
from cljax.report import head
from cljax.report.figures import Picture, picture
from cljax.report.folders import ReportFolder
from cljax.report.parts import Part, attempt, legend, notice
from cljax.sweep.folders import heat_map

__all__ = ["of_sweep"]

_SHOWN = 60  # settings in a table, and lanes in a list


def of_sweep(folder: ReportFolder, few: bool) -> Iterator[Part]:
    """The grid, best setting first; of an unfinished sweep, how far it is.

    Args:
      few: no figure.
    """
    if not folder.config:
        return
    if folder.results:
        score = folder.config.get("score", measures.ACCURACY)
        yield attempt("The best setting", lambda: head.of_sweep(folder))
        yield attempt("The settings", lambda: _settings(folder))
        if not few:
            yield attempt("The heat map", lambda: _heat_map(folder))
        yield attempt("The legend", lambda: legend([folder.config["metric"]], score))
    else:
        yield attempt("The status", lambda: notice(f"Not finished: {sweep.status(folder.path)}"))
    yield attempt("The lanes", lambda: _lanes(folder))


def _settings(folder: ReportFolder) -> Table:
    settings, config = folder.results["settings"], folder.config
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
        f"{', '.join(map(str, folder.results['seeds']))}{more}"
    )
    return Table(caption, [*(over or ["setting"]), f"{config['metric']} [95 %]", "diverged"], rows)


def _heat_map(folder: ReportFolder) -> Picture | None:
    drawn = heat_map(sweep.Sweep(folder.path, folder.config, folder.results))
    if drawn is None:
        return None
    drawn.set_title("")  # the page's own says it
    caption = f"{folder.config['metric']} on {folder.config['on']} images; the best cell is framed."
    return picture(f"{folder.name}-heat_map", drawn, caption, "Heat map of the sweep.")


def _lanes(folder: ReportFolder) -> Part:
    names = [sweep.Lane(**entry).name for entry in folder.config["lanes"]]
    done = [name for name in names if (folder.path / "lanes" / name / "results.json").exists()]
    lines = "".join(f"<li>{escape(name)}</li>" for name in done[:_SHOWN])
    more = f"<li>and {len(done) - _SHOWN} more</li>" if len(done) > _SHOWN else ""
    where = escape(f"{folder.path}/lanes")
    return Part(
        f'<p class="small">{len(done)} of {len(names)} lanes are finished. Each is a run of its '
        f"own in {where}: cljax report {where}/NAME.</p><details><summary>Their names</summary>"
        f'<ul class="small">{lines}{more}</ul></details>'
    )
