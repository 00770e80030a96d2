"""Pieces of a page, and how one that its files do not allow becomes a sentence that says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import NamedTuple

from cljax import measures, metrics
from cljax.errors import UserError
from cljax.references.tables import Table, html
from cljax.report.figures import Picture

__all__ = ["Part", "attempt", "legend", "notice", "titled"]

_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration)


class Part(NamedTuple):
    """A piece of the page and the pictures in it."""

    html: str
    pictures: tuple[Picture, ...] = ()


def notice(text: str) -> Part:
    """A sentence that stands out, for what is missing or wrong."""
    return Part(f'<p class="notice">{escape(text)}</p>')


def attempt(what: str, make: Callable[[], Part | Picture | Table | None]) -> Part:
    """A part, or a notice where the folder's files do not allow it."""
    try:
        made = make()
        if made is None:
            return Part("")
        if isinstance(made, Picture):
            return Part(made.html(), (made,))
        return Part(html(made)) if isinstance(made, Table) else made
    except UserError as error:
        return notice(f"{what} cannot be shown: {error}")
    except _BROKEN as error:
        if os.environ.get("CLJAX_DEBUG"):
            raise
        return notice(
            f"{what} cannot be shown: a file of the run is damaged or incomplete "
            f"({type(error).__name__}: {error})."
        )


def legend(names: Iterable[str], score: str = measures.ACCURACY) -> Part:
    """What measures mean, in a line each, small, and which sign of a difference is a loss."""
    shown = measures.legend(names, score)
    entries = "".join(
        f"<li>{escape(measures.label(name, score))}: {escape(meaning)}</li>"
        for name, meaning in shown
    )
    differences = [name for name, _ in shown if measures.unit(name) == "points"]
    drops = [name for name in differences if name in metrics.LOWER_IS_BETTER]
    changes = [name for name in differences if name not in drops]
    signs = [
        f"{' and '.join(some)} {verb}, so a loss is {side} 0"
        for some, verb, side in (
            (changes, "is a change" if len(changes) == 1 else "are changes", "below"),
            (drops, "is a drop" if len(drops) == 1 else "are drops", "above"),
        )
        if some
    ]
    if signs:
        entries += f"<li>Signs, in tables and figures: {escape('; '.join(signs))}.</li>"
    return Part(f'<ul class="small">{entries}</ul>' if entries else "")


def titled(level: int, title: str, parts: list[Part]) -> Iterator[Part]:
    """Parts below a heading; nothing where they are all empty."""
    if any(part.html for part in parts):
        yield Part(f"<h{level}>{escape(title)}</h{level}>")
        yield from parts
