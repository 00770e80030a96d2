"""What a run shows while it goes: a bar on a terminal, a journal in its folder, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cljax.engine.lanes import Event
from cljax.errors import UserError
from cljax.storage.files import write_bytes

__all__ = ["bar", "journal", "tensorboard"]

Progress = Callable[[Event], None]


@contextlib.contextmanager
def bar(num_runs: int, names: Sequence[str] = ()) -> Iterator[Progress]:
    """A callback for ``learn`` that draws on standard error; where it is no terminal, one line.

    It shows the task, the update, updates a second of all runs, the time left and the last
    accuracy. Sentences, such as that of a skipped checkpoint, are always printed; ``names`` says
    what they call a run, else its seed.
    """
    if not sys.stderr.isatty():

        def say(event: Event) -> None:
            # Nobody reading is no reason to stop a run.
            with contextlib.suppress(OSError):
                if event.kind == "compile":
                    print("compiling, then training ...", file=sys.stderr)
                elif event.kind in ("note", "diverged"):
                    print(_sentence(event, names), file=sys.stderr)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[pace]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        job = progress.add_task("compiling", total=None, note="", pace="")
        steps: dict[int, int] = {}
        first: dict[int, int] = {}
        notes = {"loss": "", "accuracy": ""}
        began = 0.0

        def show(event: Event) -> None:
            nonlocal began
            if event.kind == "segment":
                began = began or time.monotonic()
                steps[event.run] = event.step
                first.setdefault(event.run, event.step)  # of this process, perhaps not of the run
                notes["loss"] = f"loss {event.value:.3f}"
            elif event.kind == "eval":
                notes["accuracy"] = f"accuracy {100 * (event.value or 0):.1f} %"
            elif event.kind in ("note", "diverged"):
                progress.print(_sentence(event, names))
                return
            else:
                return
            spent = time.monotonic() - began if began else 0.0
            done = sum(steps.values())
            rate = (done - sum(first.values())) / spent if spent > 1 else 0.0
            progress.update(
                job, description=f"task {event.task + 1}, update {done}", completed=done,
                total=num_runs * event.num_steps, pace=f"{rate:.0f} updates/s" if rate else "",
                note=", ".join(filter(None, notes.values())),
            )  # fmt: skip

        yield show


def _sentence(event: Event, names: Sequence[str]) -> str:
    if event.kind == "note":
        return event.note
    who = names[event.run] if names else f"Seed {event.seed}"
    return (
        f"{who} diverged in task {event.task} at update {event.step}: {event.note} is not finite."
    )


@contextlib.contextmanager
def journal(path: Path, progress: Progress | None, *, goes_on: bool) -> Iterator[Progress]:
    """A callback that appends each event to ``metrics.jsonl`` as a line, and passes it on.

    Args:
      goes_on: append to what an interrupted run wrote, less a line that was cut; of an update
        that is done again, the later line counts.
    """
    if goes_on and path.exists():
        whole, _, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            write_bytes(path, whole + b"\n" if whole else b"")
    else:
        path.unlink(missing_ok=True)
    with open(path, "a", encoding="utf-8", buffering=1) as file:

        def record(event: Event) -> None:
            if event.kind not in ("compile", "note"):
                file.write(json.dumps(event._asdict(), sort_keys=True) + "\n")
            if progress is not None:
                progress(event)

        yield record


@contextlib.contextmanager
def tensorboard(folder: Path, progress: Progress | None) -> Iterator[Progress]:
    """A callback that also writes losses and accuracies for TensorBoard, a curve a seed.

    Raises:
      UserError: without the extra ``tensorboard``.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard files need the extra: pip install 'cljax[tensorboard]'."
        ) from None
    writers: list[SummaryWriter] = []  # made with the first number: a refused run has no folder

    def write(event: Event) -> None:
        names = {"segment": "loss", "eval": "accuracy"}
        if event.kind in names and event.value is not None:
            if not writers:
                writers.append(SummaryWriter(str(folder)))
            name = f"{names[event.kind]}/seed_{event.seed}"
            writers[0].add_scalar(name, event.value, event.step)
        if progress is not None:
            progress(event)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
