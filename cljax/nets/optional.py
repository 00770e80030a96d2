"""Packages that only some networks need, or their files, imported when one of those is made."""

from __future__ import annotations

import importlib
from typing import Any

from cljax.errors import UserError

__all__ = ["optional"]


def optional(module: str, package: str, used_by: str, *, extra: str = "adapters") -> Any:
    """The imported ``module``.

    Args:
      extra: of cljax, that installs the package.

    Raises:
      UserError: if it cannot be imported, naming the ``package`` to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{used_by} needs the package {package}, which is not installed; "
            f"pip install 'cljax[{extra}]'."
        ) from error
