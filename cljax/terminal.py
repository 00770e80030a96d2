"""What a command prints where, also where nobody reads it, or its encoding lacks letters."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import NoReturn

__all__ = ["defect", "give_up_output", "leave", "prepare", "say"]


def prepare() -> None:
    """Opens what the caller has closed, and writes letters that an encoding lacks in escapes.

    A closed handle would be the number of the first file that a run opens, and take its text.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(sentence: str, code: int) -> int:
    """Prints a sentence where errors go, and returns the exit code."""
    with contextlib.suppress(OSError):
        print(f"cljax: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return code


def defect(error: Exception) -> int:
    """Says what an error is that is nobody's mistake, and returns the exit code."""
    if os.environ.get("CLJAX_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.strerror:  # a full disk, perhaps that of the output
        give_up_output()
        where = "the output" if error.filename is None else error.filename
        return say(f"{where} cannot be read or written: {error.strerror}.", 2)
    text = " ".join(str(error).split())[:300]
    if text.startswith("RESOURCE_EXHAUSTED"):
        return say(f"this machine has too little memory ({text}); ask for less.", 2)
    kind = type(error).__name__
    return say(f"a defect of ours: {kind}: {text} (set CLJAX_DEBUG=1 for the traceback).", 1)


def give_up_output() -> int:
    """Sends the rest of standard output nowhere, so that the interpreter does not fail at it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process; at once if threads, which nobody waits for, still compute."""
    if threading.active_count() > 1:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
