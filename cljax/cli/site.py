"""The command ``cljax docs``."""

from __future__ import annotations

import sys
from typing import Any

from cljax.cli.flags import parse
from cljax.errors import UserError

__all__ = ["docs"]

_FLAGS: dict[str, tuple[Any, Any, str]] = {
    "source": (str | None, None, "a checkout, for guides and notebooks; default: here"),
    "execute": (bool, False, "run the notebooks anew, minutes each, for new outputs"),
}


def docs(arguments: list[str]) -> int:
    """Writes the site into a folder."""
    from cljax.site import build

    help_ = {"-h", "--help"} & set(arguments)
    folder, rest = (
        ("OUT", ["--help"]) if help_ else (arguments[0] if arguments else "-", arguments[1:])
    )
    if folder.startswith("-"):
        raise UserError("cljax docs needs one folder to write into, such as site.")
    flags = parse(f"cljax docs {folder}", _FLAGS, rest)
    page, whole = build(folder, flags["source"], execute=flags["execute"])
    if not whole:
        print(
            "cljax: guides and notebooks are left out, since they come with a checkout; run this "
            "in one, or name it with --source.",
            file=sys.stderr,
        )
    print(page)
    return 0
