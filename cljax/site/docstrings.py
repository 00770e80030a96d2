"""``markdown``: a docstring as the Markdown of a page.

Sections (``Args:``, ``Raises:``, ``Returns:``, ``Example:``) become lists, paragraphs and code. A
block that stands four spaces in is code in Markdown already.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence

__all__ = ["first_line", "markdown"]

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Source):\s*$")
_ITEM = re.compile(r"([*\w][\w*., /]*(?: \([^)]*\))?): +(.*)", re.DOTALL)
_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def first_line(text: str) -> str:
    """The first sentence of a docstring, in a line."""
    paragraph = inspect.cleandoc(text).partition("\n\n")[0]
    line = " ".join(paragraph.split())
    return _plain(re.split(r"(?<=[a-z0-9)`])(?<! al)[.;](?= )", line)[0].rstrip(".:"))


def markdown(text: str) -> str:
    """A docstring as Markdown; signs that Markdown would take for its own are escaped."""
    return "\n".join(_blocks(inspect.cleandoc(text).splitlines())).strip()


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    i = 0
    while i < len(lines):
        section = _SECTION.match(lines[i])
        j = i + 1
        if not lines[i]:
            yield ""
        elif section or lines[i].startswith("    ") or lines[i].startswith(">>>"):
            ends = _ends_of_doctest if lines[i].startswith(">>>") else _is_outside
            while j < len(lines) and not ends(lines[j]):
                j += 1
            body = textwrap.dedent("\n".join(lines[i + bool(section) : j])).strip("\n")
            yield from _section(section[1], body) if section else _code(body)
        else:
            while j < len(lines) and lines[j] and not _SECTION.match(lines[j]):
                j += 1
            yield re.sub(r"::$", ":", _plain("\n".join(lines[i:j])))
        i = j


def _is_outside(line: str) -> bool:
    return bool(line) and not line.startswith("  ")


def _ends_of_doctest(line: str) -> bool:
    return not line.strip()


def _section(title: str, body: str) -> Iterator[str]:
    if title == "Example":
        yield from ["", "**Example**", *_code(body)]
    elif title in ("Returns", "Yields", "Source"):
        yield from ["", f"**{title}** {_plain(' '.join(body.split()))}", ""]
    else:
        yield from ["", f"**{title}**", ""]
        for item in re.split(r"\n(?! )", body):
            named = _ITEM.match(item)
            said = " ".join((named[2] if named else item).split())
            yield f"- `{named[1]}`: {_plain(said)}" if named else f"- {_plain(said)}"
        yield ""


def _code(body: str) -> list[str]:
    kind = "pycon" if ">>>" in body else "text"
    return ["", f"```{kind}", *body.rstrip().splitlines(), "```", ""]


def _plain(text: str) -> str:
    """Text whose signs mean themselves, but for those in spans of code."""
    made, at = [], 0
    for span in _SPAN.finditer(text):
        made += [_escaped(text[at : span.start()]), f"`{' '.join(span[2].split())}`"]
        at = span.end()
    return "".join([*made, _escaped(text[at:])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\<$*|\[\]])", r"\\\1", text)
