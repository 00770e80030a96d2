"""What a run shows while it goes: a line of progress, a journal in its folder, TensorBoard."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from cljax import measures
from cljax.engine.lanes import Event
from cljax.errors import UserError
from cljax.storage.files import write_bytes

__all__ = ["Progress", "Shown", "bar", "journal", "shown", "tensorboard", "within"]

_EVERY = 30.0  # seconds from line to line where nothing is drawn in place

Progress: TypeAlias = Callable[[Event], None]
Shown: TypeAlias = Progress | Sequence[Progress | bool] | bool | None  # what a user may ask for


@contextlib.contextmanager
def shown(progress: Shown, num_runs: int, names: Sequence[str] = ()) -> Iterator[Progress | None]:
    """The callback that ``progress`` asks for: None or True the line of ``bar``, False none.

    A list asks for each of its parts, in that order; two lines are one.
    """
    with contextlib.ExitStack() as stack:
        line = functools.cache(lambda: stack.enter_context(bar(num_runs, names)))
        asked = [line() if part is True else part for part in _listed(progress) if part]
        parts = tuple(dict.fromkeys(asked))

        def show(event: Event) -> None:
            for part in parts:
                part(event)

        yield show if parts else None


def within(progress: Shown, name: str) -> Shown:
    """The same, for runs that are part of more: their events say which part, in ``lane``."""

    def named(part: Progress) -> Progress:
        def show(event: Event) -> None:
            own = event.lane or (f"seed_{event.seed}" if event.seed >= 0 else "")
            part(event._replace(lane=f"{name}/{own}" if own else name))

        return show

    return [part if isinstance(part, bool) else named(part) for part in _listed(progress)]


def _listed(progress: Shown) -> Sequence[Progress | bool]:
    if progress is None:
        return [True]
    return [progress] if isinstance(progress, bool) or callable(progress) else progress


@contextlib.contextmanager
def bar(num_runs: int, names: Sequence[str] = ()) -> Iterator[Progress]:
    """A callback for ``learn`` that says on standard error how far all runs are, in one line.

    A terminal and a notebook show the line in place; elsewhere it is printed every 30 seconds.
    Sentences, such as that of a skipped checkpoint, are always printed; ``names`` says what they
    call a run, else its seed.
    """
    in_place = _in_place()
    far = _Far(num_runs, "run" if names else "seed")
    last, drawn = time.monotonic(), False

    def say(event: Event) -> None:
        nonlocal far, last, drawn
        if event.kind == "compile":
            _write(_fit("compiling") if in_place else "compiling, then training ...\n")
            drawn = in_place
        elif event.kind in ("note", "diverged"):
            _write(f"{_fit('') if drawn else ''}{_sentence(event, names)}\n")
        now = time.monotonic()
        far = far.after(event, now)
        if far.shares and event.kind in ("segment", "eval") and (in_place or now - last >= _EVERY):
            line = far.line(now)
            _write(_fit(line) if in_place else f"{line}\n")
            last, drawn = now, in_place

    try:
        yield say
    finally:
        if drawn:
            _write(_fit(""))


class _Far(NamedTuple):
    """How far runs are: the share done of each, and from where and when this process began."""

    num_runs: int
    kind: str  # what a run is called
    num_tasks: int = 0
    shares: Mapping[int, float] = MappingProxyType({})  # run -> the share of it that is done
    first: Mapping[int, float] = MappingProxyType({})  # run -> that when it was first heard of
    tasks: Mapping[int, int] = MappingProxyType({})
    began: float = 0.0
    loss: float | None = None
    accuracy: float | None = None
    score: str = measures.ACCURACY  # what that is

    def after(self, event: Event, now: float) -> _Far:
        """The same after an event."""
        if event.kind == "eval":
            return self._replace(accuracy=event.value, score=event.note or measures.ACCURACY)
        if (
            event.kind == "diverged"
        ):  # it may be trained on in a batch with others, and counts as done
            return self._replace(shares={**self.shares, event.run: 1.0})
        if event.kind != "segment":
            return self
        share = max(event.share, self.shares.get(event.run, 0.0))
        return self._replace(
            num_tasks=event.num_tasks, loss=event.value, began=self.began or now,
            shares={**self.shares, event.run: share},
            first={event.run: event.share, **self.first},
            tasks={**self.tasks, event.run: event.task + 1},
        )  # fmt: skip

    def line(self, now: float) -> str:
        """Such as ``seed 2 of 5, task 11 of 20, 31 %, about 40 s left, loss 0.412``."""
        active = sorted([run for run, share in self.shares.items() if share < 1] or self.shares)
        done, total = sum(self.shares.values()), self.num_runs
        which = f"{active[0] + 1}" if len(active) == 1 else f"{active[0] + 1}-{active[-1] + 1}"
        of = f" of {self.num_tasks}" if self.num_tasks else ""
        parts = [
            f"{self.kind}{'s'[: len(active) > 1]} {which} of {self.num_runs}",
            f"task {min(self.tasks[run] for run in active)}{of}",
            f"{100 * done / total:.0f} %",
        ]
        here, spent = done - sum(self.first.values()), now - self.began
        if here > 0 and spent > 2 and done < total:
            parts.append(f"about {_duration((total - done) * spent / here)} left")
        parts += [] if self.loss is None else [f"loss {self.loss:.3f}"]
        if self.accuracy is not None:
            value = format(measures.scale(self.score) * self.accuracy, measures.digits(self.score))
            parts.append(f"{self.score} {value} {measures.unit('RA', self.score)}".rstrip())
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    """As precise as an estimate is: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _in_place() -> bool:
    """Whether standard error is a terminal that can go back in a line, or a notebook's."""
    if "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _fit(line: str) -> str:
    """A line for the place of the one before; whatever is printed next stands in its place."""
    width = shutil.get_terminal_size().columns - 1
    return f"\r{line[:width]:<{width}}\r"


def _write(text: str) -> None:
    # Nobody reading is no reason to stop a run.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


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
                said = event._asdict()
                entry = {name: said[name] for name in said if name != "lane" or event.lane}
                file.write(json.dumps(entry, sort_keys=True) + "\n")
            if progress is not None:
                progress(event)

        yield record


@contextlib.contextmanager
def tensorboard(folder: Path, progress: Progress | None) -> Iterator[Progress]:
    """A callback that also writes losses and accuracies for TensorBoard, a curve a seed or lane.

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
            called = (event.kind == "eval" and event.note) or names[event.kind]
            curve = event.lane or f"seed_{event.seed}"
            writers[0].add_scalar(f"{called}/{curve}", event.value, event.step)
        if progress is not None:
            progress(event)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
