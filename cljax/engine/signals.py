"""SIGINT and SIGTERM as a question: has anybody asked this run to stop?"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cljax.errors import AT_ONCE, Interrupted

__all__ = ["at_once", "signals", "waits"]


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Within, the first signal only sets the answer; a second one ends at once.

    The first is answered between units of work, so a compilation, or a segment, ends before. A
    second SIGINT raises KeyboardInterrupt, as it does in a notebook; a second SIGTERM ends the
    process with exit code 130. What a run keeps survives either, as it does a kill. Outside the
    main thread signals cannot be caught, and the answer is always no.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if asked:
            _say("cljax: stopped at once.")
            os._exit(AT_ONCE)
        asked.append(number)
        _say("cljax: stopping once this segment or compilation has ended; again stops at once ...")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody listens any more
        print(sentence, file=sys.stderr, flush=True)


def waits(error: BaseException | None) -> bool:
    """Whether an error may wait for what threads still do: all but an interruption at once."""
    return isinstance(error, Interrupted) or not isinstance(error, KeyboardInterrupt)


@contextlib.contextmanager
def at_once(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """A pool that is waited for at the end, but not by an interruption at once."""
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=waits(error), cancel_futures=True)
        raise
    pool.shutdown(wait=True)
