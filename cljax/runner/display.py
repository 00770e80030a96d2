"""A run as a line, and as HTML for notebooks: its measures and its accuracy matrix."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from cljax import measures
from cljax.references import tables
from cljax.stats import with_interval

__all__ = ["html", "line"]


def line(results: Mapping[str, Any], path: object = None) -> str:
    """``Run(er on mnist-rotations, 5 seeds, RA 75.5 % [74.5, 76.6], runs/...)``."""
    seeds, lost = results["seeds"], sum(step is not None for step in results["diverged"])
    parts = [
        f"{results['method']} on {results['stream']}",
        f"{len(seeds)} seed{'s'[: len(seeds) > 1]}",
    ]
    parts += [f"{lost} diverged"] if lost else []
    cell, score = results["metrics"].get("RA"), tables.score_of(results)
    if cell is not None and cell["mean"] is not None:
        mean = with_interval(
            cell["mean"], cell["ci95"], values=cell["values"], bounds=measures.bounds("RA", score),
            scale=measures.scale(score), spec=measures.digits(score),
            unit=measures.unit("RA", score),
        )  # fmt: skip
        parts.append(f"RA {mean}" if score == measures.ACCURACY else f"RA ({score}) {mean}")
    return f"Run({', '.join(parts)}{'' if path is None else f', {path}'})"


def html(results: Mapping[str, Any], matrix: np.ndarray) -> str:
    """The table of measures, and below it the accuracy matrix as a picture.

    Args:
      matrix: [S, T+1, T] of the headline.
    """
    from cljax import plot

    made = tables.html(tables.metrics(results))
    if not np.isfinite(matrix).any():
        return made
    buffer = io.BytesIO()
    figure: Any = plot.accuracy_matrix(matrix, score=tables.score_of(results)).figure
    figure.savefig(buffer, format="png", dpi=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = f"Test {tables.score_of(results)} on each task after each task"
    return f'{made}\n<img alt="{alt}" src="data:image/png;base64,{data}">'
