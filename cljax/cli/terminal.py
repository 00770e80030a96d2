"""Standard output and error that are closed, full, gone or lack letters: no reason to fail."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from typing import NoReturn, TypeGuard

__all__ = ["defect", "give_up_output", "leave", "of_output", "prepare", "say"]


def prepare() -> None:
    """Opens what the caller has closed, so that no file of a run gets its number and its text.

    What an encoding lacks, such as that of a terminal that only knows ASCII, is written in escapes.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(sentence: str, code: int) -> int:
    """Prints a sentence where errors go, and returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"cljax: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return code


def defect(error: Exception) -> int:
    """Tells of an error that is no mistake in the command, and returns the exit code."""
    if of_output(error):
        give_up_output()
        return say(f"the output cannot be written: {os.strerror(error.errno or 0)}.", 2)
    if os.environ.get("CLJAX_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return say(f"{error.filename} cannot be read or written: {error.strerror}.", 2)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or text.startswith("RESOURCE_EXHAUSTED"):
        return say(f"this machine has too little memory ({text}); ask for less.", 2)
    kind = type(error).__name__
    return say(f"a defect of ours: {kind}: {text} (set CLJAX_DEBUG=1 for the traceback).", 1)


def of_output(error: Exception) -> TypeGuard[OSError]:
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
