"""Standard output and error that are closed, full or gone: said in a sentence, or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import NoReturn

__all__ = ["give_up_output", "leave", "output_failed", "prepare"]


def prepare() -> None:
    """Opens what the caller has closed, so that no file of a run gets its number and its text."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def output_failed() -> bool:
    """Whether standard output does not take what is still to be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def give_up_output() -> None:
    """Sends the rest of standard output nowhere, so that the interpreter does not fail at it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def leave(code: int) -> NoReturn:
    """Ends the process; at once if threads, which nobody waits for, still compute."""
    if threading.active_count() > 1:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
