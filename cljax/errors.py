"""What ends a run early, and checks that raise a user's mistake in one sentence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from jax.core import Tracer

__all__ = ["Diverged", "Interrupted", "UserError", "check_finite", "check_known", "check_positive"]


RESUMABLE, AT_ONCE = 75, 130  # exit codes: interrupted and kept; interrupted with nothing kept


class UserError(ValueError):
    """A mistake of the user's: one sentence, the value, what would be right (exit code 2)."""


class Diverged(UserError):
    """A run whose loss or parameters are no longer finite."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and did, at a segment's end.

    ``kept``: whether it can go on from there (exit code 75), or starts anew (130).
    """

    def __init__(self, message: str = "", *, kept: bool = True) -> None:
        super().__init__(message)
        self.kept = kept

    @property
    def code(self) -> int:
        """The exit code of a command that it ended."""
        return RESUMABLE if self.kept else AT_ONCE


def check_positive(**counts: int) -> None:
    """Raises UserError unless every count is an integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise UserError(f"{name} is {value}, but it must be a whole number of at least 1.")


def check_finite(**values: Any) -> None:
    """Raises UserError for a Python number that is NaN or infinite; tracers pass."""
    for name, value in values.items():
        if callable(value):
            raise UserError(
                f"{name} is a function, but it must be a number; a schedule goes into an optax "
                "optimiser, for methods that take one."
            )
        if not isinstance(value, Tracer) and not math.isfinite(float(value)):
            raise UserError(f"{name} is {value}, but it must be a finite number.")


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises UserError, with the nearest names, unless ``name`` is one of ``known``."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
    raise UserError(f"{kind} '{name}' is not known; {hint}")
