"""Names of the command line that differ from a factory only in defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cljax.streams.base import Stream
from cljax.streams.dress import dress

__all__ = ["with_defaults"]


def with_defaults(
    factory: Callable[..., Stream], name: str, summary: str, **defaults: Any
) -> Callable[..., Stream]:
    """A stream's factory with other defaults; flags and help texts are read off it as usual.

    Args:
      factory: whose signature and documentation of arguments are kept.
      name: of the function. summary: first line of its documentation.
    """
    signature = inspect.signature(factory, eval_str=True)
    parameters = [
        p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values()
    ]

    def make(*args: Any, **options: Any) -> Stream:
        return factory(*args, **{**defaults, **options})

    documentation = inspect.getdoc(factory) or ""
    documentation = summary + "".join(documentation.partition("\n")[1:])  # none under -OO
    dress(make, name, factory, signature.replace(parameters=parameters), documentation)
    return make
