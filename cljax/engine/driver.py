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
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cljax.engine.lanes import Event, Lane, Place, Setup, advance, agreed, recorded, snapshot
from cljax.engine.signals import waits
from cljax.errors import Diverged, Interrupted
from cljax.storage import checkpoint
from cljax.storage.checkpoint import Snapshot

__all__ = ["Checkpoints", "drive"]


class Checkpoints(NamedTuple):
    """Where a run is kept, and when: every so many seconds, or updates of a lane, or both."""

    folder: Path
    identity: Mapping[str, Any]  # what must be the same to go on
    every_s: float | None = 30.0
    every_updates: int | None = None
    keep: int = 3


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
    *,
    window: int,
    emit: Callable[[Event], None],
    finish: Callable[[int, Place], bool],
    checkpoints: Checkpoints | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    spent: Mapping[str, float] | None = None,
    began: float | None = None,
) -> dict[str, float]:
    """Advances every lane to its end, a unit of work at a time.

    Args:
      places: where each lane starts.
      window: lanes under way at a time; the next one starts when one ends.
      finish: called in the calling thread with each lane that ended; True if what it left is
        kept elsewhere, so that no checkpoint need hold it.
      interrupted: asked after each unit; once it is True, lanes stop at their segments' ends.
      spent: seconds before and in earlier attempts, counted on; ``total_s`` is of the clock.
      began: when this attempt did, by ``time.perf_counter``; None is now.

    Returns:
      Seconds of training and of evaluation, summed over threads, and the others of ``spent``.

    Raises:
      Interrupted: when asked to stop, after the last checkpoint is written.
      Diverged: as ``emit`` does, after a checkpoint that was being collected is written.
      KeyboardInterrupt: by a second signal, without waiting for what the threads do.
    """
    end = len(setup.items)
    outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    seconds = {"train_s": 0.0, "eval_s": 0.0, "total_s": 0.0} | dict(spent or {})
    began = time.perf_counter() if began is None else began
    at = list(places)
    waiting = collections.deque(i for i, place in enumerate(at) if place.item < end)
    ended = {i for i, place in enumerate(at) if place.item == end}
    active, elsewhere = set[int](), set[int]()  # under way; ended and kept elsewhere
    tests: dict[int, int] = {}  # running evaluation -> its lane
    collecting: _Round | None = None
    pending, serial = 0, 0
    stopping, saving, last = False, False, False
    diverged: Diverged | None = None
    saved_at, advanced = time.monotonic(), collections.Counter[int]()
    number = 0 if checkpoints is None else checkpoint.next_number(checkpoints.folder)
    # Programs over several processes must compute in one order: one after another, right here.
    alone = jax.process_count() == 1
    saver = ThreadPoolExecutor(1)

    def submit(
        kind: str, of: int, unit: Callable[[], Any], where: ThreadPoolExecutor = pool
    ) -> None:
        nonlocal pending
        pending += 1

        def work() -> None:
            start = time.perf_counter()
            try:
                outcomes.put((kind, of, unit(), time.perf_counter() - start))
            except BaseException as error:  # noqa: BLE001, raised by the calling thread
                outcomes.put((kind, of, error, 0.0))

        if alone:
            where.submit(work)
        else:
            work()

    def counted() -> dict[str, float]:
        return {**seconds, "total_s": seconds["total_s"] + time.perf_counter() - began}

    def report(events: Sequence[Event]) -> None:
        for event in events:
            emit(event)

    def step(lane: int) -> None:
        active.add(lane)
        submit("train_s", lane, lambda: advance(setup, lanes[lane], at[lane]))

    def test(lane: int, evaluation: Callable[[], list[Event]]) -> None:
        nonlocal serial
        serial += 1
        own = serial
        tests[own] = lane
        submit("eval_s", lane, lambda: (own, evaluation()))

    def due() -> bool:
        if checkpoints is None or collecting is not None or saving:
            return False
        most = max(advanced.values(), default=0)
        if checkpoints.every_updates is not None and most >= checkpoints.every_updates:
            return True
        waited = agreed(time.monotonic() - saved_at)
        return checkpoints.every_s is not None and waited >= checkpoints.every_s

    def save(copies: Mapping[int, Snapshot]) -> None:
        """Writes the copies, and the lanes that are not under way."""
        nonlocal saving, number
        assert checkpoints is not None
        folder, identity, keep = checkpoints.folder, checkpoints.identity, checkpoints.keep
        standing = {
            lane: snapshot(setup, lanes[lane], place)
            for lane, place in enumerate(at)
            if lane not in active | elsewhere and place.item >= 0
        }
        whole, own = _whole(setup, lanes, {**standing, **copies}, counted()), number
        saving, number = True, number + 1
        if jax.process_index() == 0:
            write = lambda: checkpoint.save(folder, whole, identity, number=own, keep=keep)
            submit("save", -1, write, saver)
        else:
            submit("save", -1, lambda: None)

    def close(lane: int) -> None:
        """Ends a lane once all its evaluations are in."""
        if lane in ended and lane not in tests.values() and finish(lane, at[lane]):
            elsewhere.add(lane)
            at[lane] = at[lane]._replace(carry=None, main=None)

    def segment_ended(lane: int, place: Place) -> None:
        nonlocal collecting
        advanced[lane] += _updates(setup, at[lane], place)
        at[lane] = place
        if due():
            running = {own for own, of in tests.items() if of in ended}
            collecting = _Round(frozenset(active), {}, running)
        if collecting is not None and lane in collecting.lanes - collecting.copies.keys():
            collecting.copies[lane] = snapshot(setup, lanes[lane], place)
            collecting.tests.update(own for own, of in tests.items() if of == lane)
        if place.item == end:
            active.discard(lane)
            ended.add(lane)
            close(lane)
            if waiting and not stopping:
                step(waiting.popleft())
        elif not stopping:
            step(lane)

    try:
        for lane in sorted(ended):
            close(lane)
        for _ in range(min(window, len(waiting))):
            step(waiting.popleft())
        while pending:
            kind, lane, outcome, took = outcomes.get()
            pending -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            if agreed(interrupted()) and not stopping:
                stopping, collecting = True, None
            if kind == "train_s":
                seconds[kind] += took
                place, (events, evaluation) = outcome
                try:
                    report(events)  # first: a run that stops here is not to be kept as it is
                except Diverged as error:  # what was copied before it is, once its tests are in
                    diverged, stopping, last = diverged or error, True, True
                    continue
                if evaluation is not None:
                    test(lane, evaluation)
                segment_ended(lane, place)
            elif kind == "eval_s":
                seconds[kind] += took
                own, events = outcome
                del tests[own]
                if collecting is not None:
                    collecting.tests.discard(own)
                report(events)
                close(lane)
            else:
                saving, saved_at = False, time.monotonic()
                advanced.clear()
                report([Event("checkpoint")])
            if collecting is not None and not collecting.tests:
                if collecting.lanes == collecting.copies.keys():
                    save(collecting.copies)
                    collecting = None
            if stopping and not pending and not last and checkpoints is not None:
                last = True
                active.clear()  # all stand still
                save({})
        if diverged is not None:
            raise diverged
        if stopping and len(ended) < len(lanes):
            raise Interrupted("Interrupted at a segment's end.")
    except BaseException as error:
        pool.shutdown(wait=waits(error), cancel_futures=True)
        raise
    finally:
        saver.shutdown(wait=True)
    return counted()


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
        own = {f"place/{name}": array for name, array in copy.arrays.items()}
        for i, record in enumerate(records):
            own |= {f"{i}/{name}": array for name, array in record.arrays.items()}
        arrays |= {f"{lane.label}/{name}": array for name, array in own.items()}
        position["lanes"][lane.label] = {
            **copy.position,
            "records": [record.position for record in records],
        }
    return Snapshot(arrays, position)
