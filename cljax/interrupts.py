"""SIGINT and SIGTERM as a question: has anybody asked this run to stop?"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["signals"]


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Within, the first signal only sets the answer; a second SIGINT interrupts at once.

    Outside the main thread signals cannot be caught, and the answer is always no.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        with contextlib.suppress(OSError):
            print("cljax: stopping at the end of this segment ...", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
