"""``gallery``: all methods with papers, pseudo-code, pictures, notebooks and guides.

Made from the registry and the citations. A notebook belongs to a method if its text names one of
the method's papers, or else if its code uses the class; a guide, if it names the method.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from cljax.method import Method
from cljax.methods import CHECKED, METHODS
from cljax.references import cite
from cljax.site.docstrings import first_line
from cljax.site.names import text_of
from cljax.site.pages import Checkout, picture_of
from cljax.site.reference import link

__all__ = ["gallery"]

_ACCENTS = dict(zip("'`\"^~v", "\u0301\u0300\u0308\u0302\u0303\u030c", strict=True))
_ACCENT = re.compile(r"\\(?:(['`\"^~])\{?|(v)\{)(\w)\}?")


class _Entry(NamedTuple):
    """A method: where its update is defined, its papers, and the pages about it."""

    name: str
    method: Method
    definition: type  # of the penalty where the method is fine-tuning with one
    papers: tuple[str, ...]
    pages: tuple[str, ...]


def gallery(checkout: Checkout | None) -> dict[str, bytes]:
    """The page and its pictures, by path."""
    entries = [_entry(name, method, checkout) for name, method in METHODS.items()]
    families: dict[str, list[_Entry]] = {}
    for entry in entries:
        families.setdefault(entry.definition.__module__, []).append(entry)
    lines = [
        "# Methods", "",
        "What each does and where it is from. *Checked* says how its update is tested: *golden*",
        "against a step-by-step trace of the authors' code, *hand-checked* against computed steps,",
        "*restated* likewise, of a method known at second hand.", "",
        "| method | what it is | paper | checked |", "| --- | --- | --- | --- |",
        *map(_row, entries), "",
    ]  # fmt: skip
    made: dict[str, bytes] = {}
    for family in families.values():
        notebook = next((page for page in family[0].pages if page.endswith(".ipynb")), "")
        picture = picture_of(checkout.files[notebook]) if checkout and notebook else None
        place = f"pictures/{PurePosixPath(notebook).stem}.png"
        shown = picture and place not in made  # once, by the first family that it is of
        made |= {place: picture} if picture else {}
        lines += _family(family, (place, notebook) if shown else None)
    return {"gallery.md": "\n".join(lines).encode(), **made}


def _entry(name: str, method: Method, checkout: Checkout | None) -> _Entry:
    penalty = getattr(method, "penalty", None)
    definition = type(method) if penalty is None else type(penalty)
    papers = tuple(cite.keys_of_method(name))
    return _Entry(name, method, definition, papers, _pages(name, definition, papers, checkout))


def _pages(
    name: str, definition: type, papers: Sequence[str], checkout: Checkout | None
) -> tuple[str, ...]:
    if checkout is None:
        return ()
    numbers = [cite.citations()["entries"][key].get("eprint") for key in papers]
    cells = {page: json.loads(checkout.files[page])["cells"] for page in checkout.notebooks}
    text = {page: _source(cells[page], "markdown") for page in cells}
    code = {page: _source(cells[page], "code") for page in cells}
    uses = re.compile(rf"\b(?:cljax|penalties)\.{definition.__name__}\(")
    by_paper = [
        page for page in cells if any(number and number in text[page] for number in numbers)
    ]
    by_code = [page for page in cells if uses.search(code[page]) and page not in by_paper]
    named = re.compile(rf"`{re.escape(name)}`|cljax run {re.escape(name)} |{uses.pattern}")
    guides = [page for page in checkout.guides if named.search(checkout.files[page].decode())]
    return (*by_paper, *by_code, *guides)


def _source(cells: Sequence[Mapping[str, Any]], kind: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def _row(entry: _Entry) -> str:
    papers = "; ".join(map(_short, entry.papers)) or "-"
    summary = entry.method.summary.replace("|", " ")
    return (
        f"| [{entry.name}](#method-{entry.name}) | {summary} | {papers} | {CHECKED[entry.name]} |"
    )


def _family(family: Sequence[_Entry], picture: tuple[str, str] | None) -> Iterator[str]:
    yield from (f"(method-{entry.name})=" for entry in family)
    yield from [f"## {', '.join(entry.name for entry in family)}", ""]
    for entry in family:
        module, name = entry.definition.__module__, entry.definition.__name__
        yield f"- {link(module, name, name)}: {first_line(entry.method.summary)}"
    yield ""
    papers = dict.fromkeys(key for entry in family for key in entry.papers)
    if papers:
        yield from ["**Papers**", "", *(f"- {_long(key)}" for key in papers), ""]
    pages = dict.fromkeys(page for entry in family for page in entry.pages)
    for title, ending in (("Notebooks", ".ipynb"), ("Guides", ".md")):
        links = [f"[]({page})" for page in pages if page.endswith(ending)]
        yield from [f"**{title}** {'; '.join(links)}", ""] if links else ()
    yield from _pseudo_code(family[0].definition)
    if picture:
        place, notebook = picture
        yield from [f":::{{figure}} {place}", f":alt: the last picture of {notebook}", "",
                    f"From []({notebook})", ":::", ""]  # fmt: skip


def _pseudo_code(definition: type) -> Iterator[str]:
    """The first block of code in the module's docstring."""
    text = text_of(sys.modules[definition.__module__])
    block = re.search(r"\n\n((?:    .*\n|\n)+)", f"{text}\n")
    if block:
        lines = block[1].rstrip().splitlines()
        yield from ["```text", *(line.removeprefix("    ") for line in lines), "```", ""]


def _short(key: str) -> str:
    entry = cite.citations()["entries"][key]
    names = _surnames(entry["author"])
    who = " and ".join(names) if len(names) <= 2 else f"{names[0]} et al."
    return f"{who} {entry['year']}"


def _long(key: str) -> str:
    entry = cite.citations()["entries"][key]
    where = entry.get("booktitle") or entry.get("journal") or ""
    number = entry.get("eprint")
    parts = [
        f"{', '.join(_surnames(entry['author']))}: *{_text(entry['title'])}*",
        *([_text(where)] if where else []), entry["year"],
        *([f"[arXiv:{number}](https://arxiv.org/abs/{number})"] if number else []),
    ]  # fmt: skip
    return ", ".join(parts)


def _surnames(authors: str) -> list[str]:
    return [_text(name.partition(",")[0]) for name in authors.split(" and ")]


def _text(bibtex: str) -> str:
    """What BibTeX would set, without its braces."""
    accented = lambda result: result[3] + _ACCENTS[result[1] or result[2]]
    plain = bibtex.replace("\\&", "&")
    return re.sub(r"[{}]", "", unicodedata.normalize("NFC", _ACCENT.sub(accented, plain)))
