"""Standard output and error that are closed, full or gone: said in a sentence, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from typing import NoReturn

__all__ = ["give_up_output", "leave", "of_output", "prepare"]


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


def of_output(error: Exception) -> bool:
    """Whether an error is of writing to standard output: files of a run are named by theirs."""
    codes = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)
    return isinstance(error, OSError) and error.filename is None and error.errno in codes


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
