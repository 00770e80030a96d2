"""The accuracy matrix as an HTML table with coloured cells, for reports of too many runs to draw.

Cells are coloured by ``viridis`` in steps of 5 points, with text that contrasts, as in
``cljax.plot.accuracy_matrix``.
"""

from __future__ import annotations

from html import escape

import numpy as np

from cljax import measures
from cljax.plot import parts
from cljax.report.parts import Part

__all__ = ["STYLE", "matrix", "shades"]

_SHADES = 20  # steps between 0 and 100 %
_MOST = 25  # tasks that a page's width holds
STYLE = """
.cells td, .cells th { padding: .12rem .3rem; text-align: center; font-size: .7rem; }
table.cells { min-width: 0; } .cells tbody th, .cells td { min-width: 0; }
.cells td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
td.none { background: var(--card); }
"""


def shades() -> str:
    """The cells' colours as a style sheet."""
    from matplotlib import colormaps

    lines = []
    for i in range(_SHADES + 1):
        red, green, blue, _ = colormaps["viridis"](i / _SHADES)
        ink = parts.INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.48 else parts.PAPER
        back = "".join(f"{round(255 * c):02x}" for c in (red, green, blue))
        lines.append(f".v{i}{{background:#{back};color:{ink}}}")
    return "".join(lines)


def matrix(accuracies: np.ndarray, caption: str, score: str = measures.ACCURACY) -> Part | None:
    """A table of the mean over seeds in percent; None for more tasks than a page holds.

    Args:
      accuracies: [S, T+1, T] fractions, row 0 before training, NaN = not evaluated.
    """
    mean, share = measures.scale(score) * parts.mean(accuracies), measures.in_percent(score)
    num = mean.shape[-1]
    if num > _MOST:
        return None
    head = "".join(f'<th scope="col">{task + 1}</th>' for task in range(num))
    lines = [f'<table class="cells"><caption>{escape(caption)}</caption>']
    lines.append(f'<thead><tr><th scope="col">after</th>{head}</tr></thead><tbody>')
    for row, values in enumerate(mean):
        digits = (".1f" if num <= 10 else ".0f") if share else ".2g"
        cells = "".join(_cell(value, digits, shaded=share) for value in values)
        lines.append(f'<tr><th scope="row">{row or "untrained"}</th>{cells}</tr>')
    return Part("".join([*lines, "</tbody></table>"]))


def _cell(value: float, digits: str, *, shaded: bool) -> str:
    if not np.isfinite(value):
        return '<td class="none"></td>'
    if not shaded:
        return f"<td>{value:{digits}}</td>"
    shade = min(_SHADES, max(0, round(value * _SHADES / 100)))
    return f'<td class="v{shade}">{value:{digits}}</td>'
