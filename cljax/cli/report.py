"""The commands ``cljax report`` and ``cljax cite``."""

from __future__ import annotations

import gc
import sys
from typing import Any

from cljax.cli.flags import parse
from cljax.errors import UserError

__all__ = ["cite", "report"]

_FLAGS: dict[str, tuple[Any, Any, str]] = {
    "out": (str | None, None, "the page, FILE.html; default DIR/report.html, for several here"),
    "metric": (str, "RA", "what runs are compared by"),
    "figures": (bool, True, "draw figures; without, tables alone"),
}


def report(arguments: list[str]) -> int:
    """Writes a page about runs and sweeps, with its tables and figures."""
    from cljax.report import report as make

    # What is imported stays, and figures are few: looking for garbage costs a report a twelfth.
    gc.freeze()
    gc.set_threshold(100_000)
    folders, rest = _split(arguments)
    flags = parse("cljax report DIR ...", _FLAGS, rest)
    if not folders:
        raise UserError("cljax report needs the folder of a run or a sweep.")
    made = make(*folders, **flags)
    for problem in made.problems:
        print(f"cljax: {problem}", file=sys.stderr)
    print(made.page)
    return 2 if made.left_out else 0


def cite(arguments: list[str]) -> int:
    """Prints BibTeX of methods, streams and what runs used."""
    from cljax.references.cite import bibtex
    from cljax.report.cited import keys_of

    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            print("usage: cljax cite METHOD|STREAM|DIR ...   BibTeX, each entry once")
            return 0
        raise UserError("cljax cite needs a method, a stream or a run's folder, such as lamaml.")
    keys = [keys_of(name) for name in arguments]
    for name, own in zip(arguments, keys, strict=True):
        if not own:
            print(f"cljax: {name} has no reference.", file=sys.stderr)
    print(bibtex(key for own in keys for key in own))
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Folders, and flags with their values."""
    folders, rest = [], []
    for i, argument in enumerate(arguments):
        valued = i > 0 and arguments[i - 1] in ("--out", "--metric")
        (rest if valued or argument.startswith("-") else folders).append(argument)
    return folders, rest
