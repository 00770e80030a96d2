"""What ends a run early, and checks that raise a user's mistake in one sentence."""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

__all__ = [
    "AT_ONCE", "MOST", "RESUMABLE", "Diverged", "Interrupted", "UserError", "as_numbers",
    "check_above_zero", "check_callable", "check_counts", "check_finite", "check_flag",
    "check_known", "check_path", "check_positive", "check_rate", "check_share", "check_text",
    "given", "in_words",
]  # fmt: skip

MOST = 2**31 - 1  # of what is counted in int32: examples, updates, slots
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


def check_positive(**counts: Any) -> None:
    """Raises UserError unless every count is a whole number from 1 to 2^31 - 1."""
    for name, value in counts.items():
        _check_whole(name, value, 1)


def check_counts(**counts: Any) -> None:
    """Raises UserError unless every count is a whole number from 0 to 2^31 - 1."""
    for name, value in counts.items():
        _check_whole(name, value, 0)


def check_finite(**values: Any) -> None:
    """Raises UserError unless every value is a finite number; tracers pass."""
    for name, value in values.items():
        _check_number(name, value, lambda number: True, "a finite number")


def check_rate(**rates: Any) -> None:
    """Raises UserError unless every rate is finite and at least 0; tracers pass."""
    for name, value in rates.items():
        _check_number(name, value, lambda rate: rate >= 0, "a finite number of at least 0")


def check_above_zero(**values: Any) -> None:
    """Raises UserError unless every value is finite and above 0, as JAX holds it; tracers pass."""
    for name, value in values.items():
        above = _check_number(name, value, lambda number: number > 0, "a finite number above 0")
        if above is not None and above < (least := _limits().tiny):
            raise UserError(
                f"{name} is {in_words(value)}, which is 0 in {_limits().dtype}, but it must be "
                f"above 0: at least {least:.3g}."
            )


def check_share(**shares: Any) -> None:
    """Raises UserError unless every share is a number from 0 to 1; tracers pass."""
    for name, value in shares.items():
        _check_number(name, value, lambda share: 0 <= share <= 1, "a share from 0 to 1")


def check_flag(**flags: Any) -> None:
    """Raises UserError unless every flag is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} is {in_words(value)}, but it must be True or False.")


def check_text(**texts: Any) -> None:
    """Raises UserError unless every value is text."""
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{name} is {in_words(value)}, but it must be text.")


def check_path(**paths: Any) -> None:
    """Raises UserError unless every path is text, or a ``Path``, that can name a file."""
    for name, value in paths.items():
        if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
            raise UserError(f"{name} is {in_words(value)}, but it must name a file or folder.")


def check_callable(**functions: Any) -> None:
    """Raises UserError unless every value can be called."""
    for name, value in functions.items():
        if not callable(value):
            raise UserError(f"{name} is {in_words(value)}, but it must be a function.")


def as_numbers(name: str, values: Any) -> np.ndarray:
    """Values as an array of float64.

    Raises:
      UserError: for what is none, such as text or lists of several lengths.
    """
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"{name} is {in_words(values)}, but it must be an array of numbers."
        ) from None


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None, for checks of options: ``check_rate(**given(lr=lr))``."""
    return {name: value for name, value in values.items() if value is not None}


def in_words(value: Any) -> str:
    """A value as a sentence shows it: numbers and text as they are, of others the kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if getattr(value, "ndim", 0) or (hasattr(value, "aval") and hasattr(value, "shape")):
        return f"an array of shape {tuple(value.shape)}"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than sixty digits"
    plain = isinstance(value, (bool, int, float, str, bytes, list, tuple, dict))
    text = repr(value) if (plain and not hasattr(value, "_fields")) or value is None else "<"
    held = any(mark in text for mark in ("<", "\n", "array("))  # objects, or what holds them
    if held and not isinstance(value, (str, bytes)):
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_whole(name: str, value: Any, least: int) -> None:
    right = f"a whole number of at least {least}"
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least:
        raise UserError(f"{name} is {in_words(value)}, but it must be {right}.")
    if whole > MOST:
        raise UserError(f"{name} is {in_words(value)}, but it must be {right} and at most {MOST}.")


def _limits() -> np.finfo:
    """Of the floats that JAX computes with now; below ``tiny`` it rounds to 0."""
    return np.finfo(jax.dtypes.canonicalize_dtype(np.float64))


def _check_number(name: str, value: Any, right: Callable[[float], bool], what: str) -> float | None:
    """The number, or None of a tracer."""
    if callable(value):
        raise UserError(
            f"{name} is a function, but it must be a number; a schedule goes into an optax "
            "optimiser, for methods that take one."
        )
    if isinstance(value, Tracer):
        return None
    try:
        wrong = isinstance(value, (bool, str, bytes)) or getattr(value, "ndim", 0)
        number = math.nan if wrong else float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and right(number)):
        raise UserError(f"{name} is {in_words(value)}, but it must be {what}.")
    most = float(_limits().max)
    if abs(number) > most:
        raise UserError(
            f"{name} is {in_words(value)}, which is infinite in {_limits().dtype}, but it must be "
            f"at most {most:.3g} in size."
        )
    return number


def check_known(kind: str, name: Any, known: Iterable[str]) -> None:
    """Raises UserError, with the nearest names, unless ``name`` is one of ``known``."""
    known = sorted(known)
    if not isinstance(name, str):
        raise UserError(f"{kind} is {in_words(name)}, but it must be one of {', '.join(known)}.")
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    more = f" and {len(known) - 30} more" if len(known) > 40 else ""
    listed = ", ".join(known[:30] if more else known) + more
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {listed}."
    raise UserError(f"{kind} '{name}' is not known; {hint}")
