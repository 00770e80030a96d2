"""What a run may be asked for: how it trains and is tested, and how it is kept and cut up.

``Training`` decides results, ``Running`` does not. Both are options as methods are, so the command
line reads its flags and their help texts off them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from cljax.checks import check_evaluations
from cljax.errors import MOST, UserError, in_words
from cljax.evaluation.accuracy import Evaluation
from cljax.options import Bound, Check, Count, Natural, Options

__all__ = ["Entries", "Lanes", "Loop", "Running", "Training", "check_running", "interval"]

Entries: TypeAlias = Literal["diagonal-last", "lower", "full"]
Lanes: TypeAlias = Literal["auto", "threads", "sequential", "vmap", "map"]
Loop: TypeAlias = Literal["auto", "scan", "steps"]
Evaluations: TypeAlias = Annotated[Sequence[Evaluation] | None, Check(check_evaluations)]


class Training(Options):
    """What decides the results of a run, beside its method, network, stream and seeds."""

    batch_size: Count = 10
    """Examples an update."""
    epochs: Count = 1
    """Passes over each task."""
    entries: Entries = "lower"
    """Entries of the accuracy matrix."""
    eval_every: Natural = 0
    """Also test the tasks seen so far every so many updates; 0: never."""
    online: bool = False
    """Count right predictions on each batch before learning from it."""
    evaluations: Evaluations = None
    """Ways to fill an accuracy matrix; the first is the headline. None: those of the method."""
    lanes: Lanes = "auto"
    """How seeds run together: threads, one after another (sequential), or as one program by vmap
    or by map, which gives the bits of single runs."""
    loop: Loop = "auto"
    """Compiled loop (scan), or one update at a time (steps); auto is steps on a CPU for networks
    with XLA's convolutions, whose gradients are slow in compiled loops there."""


class Running(Options):
    """How a run is kept and cut up: nothing of it changes a result (devices under vmap: a bit)."""

    checkpoint_every: str = "30s"
    """Seconds (30s) or updates (500) from one checkpoint to the next; never."""
    keep: Count = 3
    """Checkpoints kept while it runs."""
    segment_seconds: Bound = 1.0
    """How long a compiled segment aims to take, which an interruption waits for."""
    segment: Count | None = None
    """Updates a segment; by default it follows the clock."""
    lanes_at_a_time: Count | None = None
    """Lanes in one program, or under way; default what fits."""
    devices: Count | None = None
    """Split lanes=vmap or lanes=map over so many; default all GPUs."""
    keep_state: bool = True
    """Keep each seed's final state in the folder, to predict with and go on from."""

    def check(self) -> None:
        """Raises UserError for an interval that is none."""
        interval(self.checkpoint_every)

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """None: no clock asks for one."""
        return (interval(self.checkpoint_every) or (None, None))[0]

    @property
    def updates_between_checkpoints(self) -> int | None:
        """Of a lane; None: no count asks for one."""
        return (interval(self.checkpoint_every) or (None, None))[1]


def check_running(running: Any) -> None:
    """Raises UserError unless this is a ``Running``."""
    if not isinstance(running, Running):
        raise UserError(
            f"running is {in_words(running)}, but it must be a cljax.Running, such as "
            'cljax.Running(checkpoint_every="60s").'
        )


def interval(text: str) -> tuple[float | None, int | None] | None:
    """``30s`` as (30.0, None) seconds, ``500`` as (None, 500) updates, ``never`` as None.

    Raises:
      UserError: for anything else.
    """
    try:
        if text == "never":
            return None
        if isinstance(text, str) and text.endswith("s"):
            if 0 <= (seconds := float(text[:-1])) < math.inf:
                return seconds, None
        elif isinstance(text, str) and 0 < int(text) <= MOST:
            return None, int(text)
    except ValueError:
        pass
    raise UserError(
        f"checkpoint_every is {text}, but it must be seconds, such as 30s, a number of updates, "
        "such as 500, or never."
    )
