"""A progress bar on a terminal, and silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from cljax.learn import Event

__all__ = ["bar"]


@contextlib.contextmanager
def bar(num_seeds: int) -> Iterator[Callable[[Event], None]]:
    """A callback for ``learn`` that draws on standard error: one line where it is no terminal."""
    if not sys.stderr.isatty():
        yield (
            lambda event: (
                print("compiling, then training ...", file=sys.stderr)
                if event.kind == "compile"
                else None
            )
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        job = progress.add_task("compiling", total=None, note="")
        steps: dict[int, int] = {}
        notes = {"loss": "", "accuracy": ""}

        def show(event: Event) -> None:
            if event.kind == "segment":
                steps[event.seed] = event.step
                notes["loss"] = f"loss {event.value:.3f}"
            elif event.kind == "eval":
                notes["accuracy"] = f"accuracy {100 * (event.value or 0):.1f} %"
            else:
                return
            done = sum(steps.values())
            progress.update(
                job, description=f"task {event.task + 1}, update {done}", completed=done,
                total=num_seeds * event.num_steps, note=", ".join(filter(None, notes.values())),
            )  # fmt: skip

        yield show
