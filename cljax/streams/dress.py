"""Stream factories made of others, with signatures and documentation as if written by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["dress"]


def dress(
    make: Callable[..., Any],
    name: str,
    factory: Callable[..., Any],
    signature: inspect.Signature,
    documentation: str,
) -> None:
    """Gives a made factory the looks of one written by hand."""
    make.__name__ = make.__qualname__ = name.replace("-", "_")
    make.__module__ = factory.__module__
    make.__doc__ = documentation
    make.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    make.__signature__ = signature  # type: ignore[attr-defined]
