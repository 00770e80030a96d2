"""The driver: lanes take turns through a pool of threads, and are kept in checkpoints.

    a lane's segment ends  ->  its evaluation runs beside what follows  ->  its next segment
    a checkpoint is due    ->  each lane is copied at its next segment's end  ->  all are written

One thread, the caller's, decides; the pool computes; another thread writes checkpoints.
"""

from __future__ import annotations

import collections
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cljax.engine.lanes import Event, Lane, Place, Setup, advance, agreed, recorded, snapshot
from cljax.engine.signals import waits
from cljax.errors import Diverged, Interrupted
from cljax.storage import checkpoint
from cljax.storage.checkpoint import Snapshot

__all__ = ["Callbacks", "Checkpoints", "drive"]


class Checkpoints(NamedTuple):
    """Where a run is kept; how often, its ``Running`` says."""

    folder: Path
    identity: Mapping[str, Any]  # what must be the same to go on
    labels: Sequence[str] | None = None  # a name for each run, which tells it; None: its number


class Callbacks(NamedTuple):
    """What a driver asks and tells its caller, in the caller's thread.

    ``emit`` gets each event; what it raises as ``Diverged`` stops all lanes. ``finish`` gets the
    number and place of each lane that ended, and is True if what it left is kept elsewhere, so that
    no checkpoint need hold it. ``interrupted`` is asked after each unit of work; once it is True,
    lanes stop at their segments' ends.
    """

    emit: Callable[[Event], None]
    finish: Callable[[int, Place], bool]
    interrupted: Callable[[], bool] = lambda: False


class _Outcome(NamedTuple):
    """What a unit of work left: of training, of an evaluation, or of writing a checkpoint."""

    kind: str  # train_s, eval_s or save
    of: int  # lane, or number of the evaluation
    result: Any  # or the error that it raised
    seconds: float


class _Round(NamedTuple):
    """A checkpoint being collected."""

    lanes: frozenset[int]  # those under way when it began; copied at their next segment's end
    copies: dict[int, Snapshot]
    tests: set[int]  # evaluations begun before those ends and still running


def drive(
    setup: Setup,
    lanes: Sequence[Lane],
    places: Sequence[Place],
    pool: ThreadPoolExecutor,
    callbacks: Callbacks,
    *,
    window: int,
    checkpoints: Checkpoints | None = None,
    spent: Mapping[str, float],
) -> dict[str, float]:
    """Advances every lane to its end, a unit of work at a time.

    Args:
      places: where each lane starts.
      window: lanes under way at a time; the next one starts when one ends.
      spent: seconds before and in earlier attempts, counted on; ``total_s`` is of the clock.

    Returns:
      Seconds of training and of evaluation, summed over threads, and the others of ``spent``.

    Raises:
      Interrupted: when asked to stop, after the last checkpoint is written.
      Diverged: as ``emit`` does, after a checkpoint that was being collected is written.
      KeyboardInterrupt: by a second signal, without waiting for what the threads do.
    """
    driver = _Driver(setup, lanes, list(places), pool, callbacks, checkpoints, dict(spent))
    try:
        driver.begin(window)
        while driver.pending:
            driver.take(driver.outcomes.get())
        driver.end()
    except BaseException as error:
        pool.shutdown(wait=waits(error), cancel_futures=True)
        raise
    finally:
        driver.saver.shutdown(wait=True)
    return driver.counted()


@dataclass
class _Driver:
    """What the deciding thread knows; nothing else touches it."""

    setup: Setup
    lanes: Sequence[Lane]
    at: list[Place]
    pool: ThreadPoolExecutor
    callbacks: Callbacks
    checkpoints: Checkpoints | None
    seconds: dict[str, float]

    outcomes: queue.SimpleQueue[_Outcome] = field(default_factory=queue.SimpleQueue)
    saver: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    began: float = field(default_factory=time.perf_counter)
    pending: int = 0  # units of work submitted and not taken
    waiting: collections.deque[int] = field(default_factory=collections.deque)
    active: set[int] = field(default_factory=set)  # lanes under way
    ended: set[int] = field(default_factory=set)
    elsewhere: set[int] = field(default_factory=set)  # ended, and kept elsewhere
    tests: dict[int, int] = field(default_factory=dict)  # running evaluation -> its lane
    num_tests: int = 0
    collecting: _Round | None = None
    saving: bool = False
    saved_at: float = field(default_factory=time.monotonic)
    advanced: collections.Counter[int] = field(default_factory=collections.Counter)  # since then
    number: int = 0  # of the next checkpoint
    stopping: bool = False
    last: bool = False  # the last checkpoint was begun, or there is to be none
    diverged: Diverged | None = None

    def begin(self, window: int) -> None:
        """Starts the first lanes."""
        end = len(self.setup.items)
        if self.checkpoints is not None:
            self.number = checkpoint.next_number(self.checkpoints.folder)
        self.waiting.extend(i for i, place in enumerate(self.at) if place.item < end)
        self.ended.update(i for i, place in enumerate(self.at) if place.item == end)
        for lane in sorted(self.ended):
            self._close(lane)
        for _ in range(min(window, len(self.waiting))):
            self._step(self.waiting.popleft())

    def take(self, outcome: _Outcome) -> None:
        """Decides what follows from a unit of work that ended."""
        self.pending -= 1
        if isinstance(outcome.result, BaseException):
            raise outcome.result
        if agreed(self.callbacks.interrupted()) and not self.stopping:
            self.stopping, self.collecting = True, None
        if outcome.kind == "train_s":
            self.seconds["train_s"] += outcome.seconds
            if not self._trained(outcome.of, *outcome.result):
                return
        elif outcome.kind == "eval_s":
            self.seconds["eval_s"] += outcome.seconds
            self._tested(*outcome.result)
        else:
            self.saving, self.saved_at = False, time.monotonic()
            self.advanced.clear()
            self.callbacks.emit(Event("checkpoint"))
        whole = self.collecting
        if whole is not None and not whole.tests and whole.lanes == whole.copies.keys():
            self._save(whole.copies)
            self.collecting = None
        if self.stopping and not self.pending and not self.last and self.checkpoints is not None:
            self.last = True
            self.active.clear()  # all stand still
            self._save({})

    def end(self) -> None:
        """Raises what stopped the lanes before their ends, if anything did."""
        if self.diverged is not None:
            raise self.diverged
        if self.stopping and len(self.ended) < len(self.lanes):
            raise Interrupted("Interrupted at a segment's end.")

    def counted(self) -> dict[str, float]:
        """Seconds until now."""
        total = self.seconds["total_s"] + time.perf_counter() - self.began
        return {**self.seconds, "total_s": total}

    def _submit(
        self, kind: str, of: int, unit: Callable[[], Any], where: ThreadPoolExecutor
    ) -> None:
        self.pending += 1

        def work() -> None:
            start = time.perf_counter()
            try:
                done = _Outcome(kind, of, unit(), time.perf_counter() - start)
            except BaseException as error:  # noqa: BLE001, raised by the calling thread
                done = _Outcome(kind, of, error, 0.0)
            self.outcomes.put(done)

        # Programs over several processes must compute in one order: one after another, right here.
        if jax.process_count() == 1:
            where.submit(work)
        else:
            work()

    def _step(self, lane: int) -> None:
        self.active.add(lane)
        place = self.at[lane]
        unit = lambda: advance(self.setup, self.lanes[lane], place)
        self._submit("train_s", lane, unit, self.pool)

    def _trained(self, lane: int, place: Place, news: tuple[Sequence[Event], Any]) -> bool:
        """What follows from a segment's end; False if its run diverged and all is to stop."""
        events, evaluation = news
        try:  # first: a run that stops here is not to be kept as it is
            for event in events:
                self.callbacks.emit(event)
        except Diverged as error:  # what was copied before it is, once its tests are in
            self.diverged = self.diverged or error
            self.stopping = self.last = True
            return False
        if evaluation is not None:
            self.num_tests += 1
            number = self.num_tests
            self.tests[number] = lane
            self._submit("eval_s", number, lambda: (number, evaluation()), self.pool)
        self._arrive(lane, place)
        return True

    def _arrive(self, lane: int, place: Place) -> None:
        """Notes where a lane stands now, copies it if a checkpoint is due, and goes on."""
        self.advanced[lane] += _updates(self.setup, self.at[lane], place)
        self.at[lane] = place
        if self._due():
            running = {number for number, of in self.tests.items() if of in self.ended}
            self.collecting = _Round(frozenset(self.active), {}, running)
        collecting = self.collecting
        if collecting is not None and lane in collecting.lanes - collecting.copies.keys():
            collecting.copies[lane] = snapshot(self.setup, self.lanes[lane], place)
            collecting.tests.update(number for number, of in self.tests.items() if of == lane)
        if place.item == len(self.setup.items):
            self.active.discard(lane)
            self.ended.add(lane)
            self._close(lane)
            if self.waiting and not self.stopping:
                self._step(self.waiting.popleft())
        elif not self.stopping:
            self._step(lane)

    def _tested(self, number: int, events: Sequence[Event]) -> None:
        lane = self.tests.pop(number)
        if self.collecting is not None:
            self.collecting.tests.discard(number)
        for event in events:
            self.callbacks.emit(event)
        self._close(lane)

    def _close(self, lane: int) -> None:
        """Ends a lane once all its evaluations are in."""
        if lane not in self.ended or lane in self.tests.values():
            return
        if self.callbacks.finish(lane, self.at[lane]):
            self.elsewhere.add(lane)
            self.at[lane] = self.at[lane]._replace(carry=None, main=None)

    def _due(self) -> bool:
        """Whether a checkpoint is to be begun."""
        if self.checkpoints is None or self.collecting is not None or self.saving:
            return False
        running = self.setup.running
        updates, seconds = running.updates_between_checkpoints, running.seconds_between_checkpoints
        if updates is not None and max(self.advanced.values(), default=0) >= updates:
            return True
        waited = agreed(time.monotonic() - self.saved_at)
        return seconds is not None and waited >= seconds

    def _save(self, copies: Mapping[int, Snapshot]) -> None:
        """Writes the copies, and the lanes that are not under way."""
        assert self.checkpoints is not None
        folder, identity = self.checkpoints.folder, self.checkpoints.identity
        standing = {
            lane: snapshot(self.setup, self.lanes[lane], place)
            for lane, place in enumerate(self.at)
            if lane not in self.active | self.elsewhere and place.item >= 0
        }
        whole = _whole(self.setup, self.lanes, {**standing, **copies}, self.counted())
        number, keep = self.number, self.setup.running.keep
        self.saving, self.number = True, number + 1
        write = lambda: checkpoint.save(folder, whole, identity, number=number, keep=keep)
        if jax.process_index() > 0:  # of several: the first one writes
            write = lambda: None
        self._submit("save", -1, write, self.saver)


def _updates(setup: Setup, before: Place, after: Place) -> int:
    """Updates between two places of a lane."""
    if before.item < 0:
        return 0
    same = after.item == before.item
    return (after.at if same else setup.items[before.item].stop) - before.at


def _whole(
    setup: Setup,
    lanes: Sequence[Lane],
    copies: Mapping[int, Snapshot],
    seconds: Mapping[str, float],
) -> Snapshot:
    """All lanes' places and records as one snapshot."""
    arrays, position = {}, {"lanes": {}, "time": dict(seconds)}
    for number, copy in copies.items():
        lane = lanes[number]
        records = [recorded(setup.records[member]) for member in lane.members]
        of_lane = {f"place/{name}": array for name, array in copy.arrays.items()}
        for i, record in enumerate(records):
            of_lane |= {f"{i}/{name}": array for name, array in record.arrays.items()}
        arrays |= {f"{lane.label}/{name}": array for name, array in of_lane.items()}
        position["lanes"][lane.label] = {
            **copy.position,
            "records": [record.position for record in records],
        }
    return Snapshot(arrays, position)
