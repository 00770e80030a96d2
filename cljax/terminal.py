"""What a command prints where, also where nobody reads it or its encoding lacks letters."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO

__all__ = ["defect", "printable", "say", "unread"]


def say(sentence: str, code: int) -> int:
    """Prints a sentence where errors go, and returns the exit code."""
    with contextlib.suppress(OSError):
        print(f"cljax: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return code


def defect(error: Exception) -> int:
    """Tells of an error that is nobody's mistake, and returns the exit code."""
    if os.environ.get("CLJAX_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.strerror:  # a full disk, perhaps that of the output
        unread()
        where = "the output" if error.filename is None else error.filename
        return say(f"cannot read or write {where}: {error.strerror}.", 2)
    text = " ".join(str(error).split())[:300]
    if text.startswith("RESOURCE_EXHAUSTED"):
        return say(f"this machine has too little memory ({text}); ask for less.", 2)
    kind = type(error).__name__
    return say(f"a defect of ours: {kind}: {text} (set CLJAX_DEBUG=1 for the traceback).", 1)


@contextlib.contextmanager
def printable(nowhere: IO[str]) -> Iterator[None]:
    """Within, output streams are there, and write what their encoding lacks in escapes."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python began
            setattr(sys, name, nowhere)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unread() -> int:
    """Lets what is left for standard output go nowhere, so that leaving Python is quiet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, sys.stdout.fileno())
        os.close(number)
    return 0
