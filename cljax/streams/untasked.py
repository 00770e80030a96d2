"""Streams without boundaries under names of their own, for the command line.

``split-mnist-blurry`` is ``blurry(split_mnist(...), ...)`` with the flags of both, and likewise
for the other arrangements of ``cljax.streams.taskfree``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from cljax.streams.base import Stream
from cljax.streams.dress import dress
from cljax.streams.taskfree import blurry, gaussian, i_blurry, task_free

__all__ = ["ARRANGEMENTS", "untasked"]

ARRANGEMENTS: Mapping[str, Callable[..., Stream]] = {
    "task-free": task_free,
    "blurry": blurry,
    "i-blurry": i_blurry,
    "gaussian": gaussian,
}


def untasked(
    streams: Mapping[str, Callable[..., Stream]],
    names: Mapping[str, tuple[str, ...]],
) -> dict[str, Callable[..., Stream]]:
    """Factories by name, such as ``split-mnist-blurry``.

    Args:
      streams: factories of streams with tasks, by name.
      names: of some of them -> which arrangements of ``ARRANGEMENTS``.
    """
    return {
        f"{name}-{how}": _arranged(f"{name}-{how}", streams[name], ARRANGEMENTS[how])
        for name, ways in names.items()
        for how in ways
    }


def _arranged(
    name: str, factory: Callable[..., Stream], arrange: Callable[..., Stream]
) -> Callable[..., Stream]:
    """``arrange(factory(...), ...)`` as one factory, with the signature and help of both."""
    base = inspect.signature(factory, eval_str=True)
    added = list(inspect.signature(arrange, eval_str=True).parameters.values())[1:]  # not stream
    own = {p.name for p in added}
    signature = base.replace(
        parameters=[*base.parameters.values(), *(p.replace(kind=p.KEYWORD_ONLY) for p in added)]
    )

    def make(*args: Any, **options: Any) -> Stream:
        arranging = {k: v for k, v in options.items() if k in own}
        rest = {k: v for k, v in options.items() if k not in own}
        return arrange(factory(*args, **rest), **arranging)

    summary = (inspect.getdoc(arrange) or "").partition("\n")[0]
    below = (inspect.getdoc(factory) or "").partition("\n")[2]
    found = re.search(r"Args:\n((?:  .*\n?)*)", inspect.getdoc(arrange) or "")
    lines = re.sub(r"^  stream:.*(\n    .*)*\n?", "", found[1] if found else "", flags=re.M)
    documentation = f"{summary}\n{below.replace('Args:', 'Args:' + chr(10) + lines.rstrip(), 1)}"
    dress(make, name, factory, signature, documentation)
    return make
