"""Consent: a folder may name code of its maker's, and only its reader decides to import it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cljax.errors import UserError
from cljax.resolve import is_code

__all__ = ["check_consent"]


def check_consent(
    folder: Path,
    factories: Iterable[Any],
    nets: Iterable[Any] = (),
    memories: Iterable[Any] = (),
    *,
    trust: bool,
) -> None:
    """Raises UserError, listing it, for code (``package.module:factory``) that a folder names.

    Args:
      factories, nets, memories: names of methods, streams, losses and scores, of networks, and of
        memories, as the folder has them.
      trust: the user's word that it may be imported and called.
    """
    code = [str(name) for name in factories if is_code(str(name))]
    code += [str(name) for name in nets if is_code(str(name), net=True)]
    code += [str(name) for name in memories if is_code(str(name), memory=True)]
    if code and not trust:
        raise UserError(
            f"{folder} names the code {', '.join(dict.fromkeys(code))}, which going on would "
            "import and run; if you trust it, add --trust (in Python: trust=True)."
        )
