"""Published numbers as data: ``published.json``, read by run, report, README and tests.

A source is a table of a paper, or runs of the authors' own code; its rows give, for a method on a
stream, means and standard deviations by metric. Names of methods, streams and metrics are those
of the command line; ``lucir+mnemonics`` is ``lucir --exemplars mnemonics``. Fractions, but for
``seconds``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from cljax.errors import UserError, check_known, check_text
from cljax.stats import Cell

__all__ = ["Source", "published", "sources", "sources_of"]


class Source(NamedTuple):
    """A table: where it stands, how its runs were made, and its cells."""

    reference: str  # for instance "arXiv:2007.13904, Table 1"
    protocol: str
    n: int | None  # runs behind each number, None: not stated
    cells: Mapping[tuple[str, str], Mapping[str, Cell]]  # (method, stream) -> metric -> Cell


@functools.cache
def sources() -> Mapping[str, Source]:
    """All sources by id, read-only."""
    text = resources.files("cljax.references").joinpath("published.json").read_text("utf-8")
    parsed = json.loads(text)["sources"]
    return MappingProxyType({name: _source(entry) for name, entry in parsed.items()})


def sources_of(method: str, stream: str) -> tuple[str, ...]:
    """Ids of the sources that hold a method on a stream, papers before runs of their code."""
    return tuple(name for name, source in sources().items() if (method, stream) in source.cells)


def published(source: str, *, method: str, stream: str) -> dict[str, Cell]:
    """The numbers that a source states for a method on a stream.

    Args:
      source: id of a source, such as ``lamaml-table1`` or ``reference-runs``.
      method: name on the command line, such as ``sync-lamaml``.
      stream: name on the command line, such as ``mnist-rotations``.

    Returns:
      Cells by metric, such as ``RA`` and ``BTI``.

    Raises:
      UserError: for an unknown source, or a method or stream that it does not hold.

    Example:
        >>> import cljax
        >>> cell = cljax.published("lamaml-table1", method="lamaml", stream="mnist-rotations")["RA"]
        >>> cell.mean, cell.std, cell.n
        (0.7742, 0.0065, 5)
    """
    check_known("source of published numbers", source, sources())
    check_text(method=method, stream=stream)
    cells = sources()[source].cells
    if (method, stream) in cells:
        return dict(cells[method, stream])
    streams = sorted({s for m, s in cells if m == method})
    methods = sorted({m for m, s in cells if s == stream})
    if streams:
        there = f"{method} there on {', '.join(streams)}"
        there += f", and {stream} for {', '.join(methods)}" if methods else ""
    elif methods:
        there = f"{stream} there for {', '.join(methods)}"
    else:
        pairs = sorted({m for m, _ in cells}), sorted({s for _, s in cells})
        there = f"methods {', '.join(pairs[0])} on streams {', '.join(pairs[1])}"
    raise UserError(f"{source} has no number for {method} on {stream}; it has {there}.")


def _source(entry: Mapping) -> Source:
    reference, n = entry["reference"], entry["n"]
    cells = {
        (method, stream): MappingProxyType(
            {
                metric: Cell(value[0], value[1] if len(value) > 1 else None, n, reference)
                for metric, value in numbers.items()
            }
        )
        for method, stream, numbers in entry["rows"]
    }
    if len(cells) != len(entry["rows"]):
        raise ValueError(f"{reference} holds a method and stream twice")
    return Source(reference, entry["protocol"], n, MappingProxyType(cells))
