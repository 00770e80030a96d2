"""Lanes: how a run walks its schedule, segment by segment, and how it is kept and restored.

    place = (item, at, carry)              where a lane stands; data, so it can be kept
    place, outcome = advance(place)        one segment, and what is tested after it
    place <-> snapshot                     the same as host arrays

A lane is one run, or several that one batched program advances together. What a lane records is
the same bits whenever it is computed, so what a checkpoint lacks is only computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.engine.compilation import Batching, Programs, put, read_by
from cljax.engine.options import Running
from cljax.engine.programs import Carry, Hyper, TrainData, leaf_names
from cljax.engine.rates import rates_of
from cljax.engine.schedule import Item
from cljax.evaluation.accuracy import Evaluation, TestImages, allowed_outputs, predictors_of, wanted
from cljax.objectives import name_of
from cljax.storage import checkpoint
from cljax.storage.checkpoint import Snapshot, host_copy
from cljax.streams.base import Stream
from cljax.types import Array, PyTree, StepPlan

__all__ = [
    "START", "Divergence", "Event", "Lane", "Outcome", "Place", "Record", "Setup",
    "advance", "agreed", "recorded", "restored", "snapshot",
]  # fmt: skip

_FIRST_SEGMENT = 4  # updates of a run's first segment, which measures the speed


class Event(NamedTuple):
    """Progress: ``kind`` is compile, segment, eval, checkpoint, diverged or note.

    ``value`` is a mean loss or accuracy; ``note`` the leaf that is not finite, a sentence, or what
    stands in the place of accuracy.
    """

    kind: str
    run: int = -1  # number of the run
    seed: int = -1
    step: int = 0  # updates of tasks so far; those of phases do not count
    num_steps: int = 0  # of the whole run
    task: int = 0
    value: float | None = None
    note: str = ""
    num_tasks: int = 0
    share: float = 0.0  # of all updates of the run, those of phases included
    lane: str = ""  # in a sweep, what the run is called; in a comparison, also the method


class Divergence(NamedTuple):
    """The first update that left something not finite, and what."""

    task: int
    step: int
    leaf: str


class Lane(NamedTuple):
    """Runs that advance together: one, or those of a batched program, with a leading axis."""

    members: tuple[int, ...]  # numbers of the runs
    label: str  # names the lane in checkpoints
    seeds: tuple[int, ...]
    hyper: Hyper
    plans: Mapping[tuple[str, int], StepPlan]  # (program, task) -> device plan; ("task", -1)
    tests: tuple[Array, Array]  # rows and their mask
    fits: PyTree  # the same of what readouts are fitted on; () without any
    counts: np.ndarray  # [T] or [L, T], test images of each task
    batching: Batching | None
    start: PyTree = None  # the state that it begins with; None: a new one


@dataclass
class Record:
    """What one run has shown so far."""

    matrices: dict[str, np.ndarray]  # evaluation -> [T+1, T]
    # (evaluation, step) -> [T]
    anytime: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    phase_losses: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    rates: dict[int, np.ndarray] = field(default_factory=dict)  # row -> histogram
    # row -> [C, C], the headline's predictions of each class of the tests of that row
    confusion: dict[int, np.ndarray] = field(default_factory=dict)
    divergence: Divergence | None = None


class Setup(NamedTuple):
    """What every lane reads."""

    programs: Programs
    data: TrainData
    images: TestImages
    stream: Stream
    evaluations: tuple[Evaluation, ...]
    entries: str
    online: bool  # whether right predictions are counted before learning
    items: list[Item]
    running: Running
    records: list[Record]
    before: list[int]  # of each item, the updates of all items before it; at the end of all
    num_steps: int  # updates of all tasks
    first: int = 0  # the item that runs begin with, of the first task that is not learned yet

    @property
    def begins_at(self) -> int:
        """The number of the first update."""
        rest = (item for item in self.items[self.first :] if item.program == "task")
        return next(item.start for item in rest)

    def updates(self, number: int, at: int) -> int:
        """Updates of tasks that are done at position ``at`` of item ``number``."""
        if self.items[number].program == "task":
            return at
        done = (item.stop for item in self.items[self.first : number] if item.program == "task")
        return max(done, default=self.begins_at)

    def share(self, number: int, at: int) -> float:
        """The share of all updates, those of phases included, that is done there."""
        before = self.before[self.first]
        done = self.before[number] - before + at - self.items[number].start
        return done / max(self.before[-1] - before, 1)


class Place(NamedTuple):
    """Where a lane stands: before update ``at`` of item ``item``; -1: before its beginning."""

    item: int
    at: int
    carry: Carry | None  # of the item's program
    main: Carry | None  # of the task's; its state is the carry's while a phase runs
    pace: float = 0.0  # seconds an update, 0 while not measured


START = Place(-1, 0, None, None)
# What a unit of work reports: events, and the evaluation to run beside what follows.
Outcome = tuple[list[Event], Callable[[], list[Event]] | None]


def advance(setup: Setup, lane: Lane, place: Place) -> tuple[Place, Outcome]:
    """One segment of a lane, at most, and what follows from it."""
    items, programs = setup.items, setup.programs
    if place.item < 0:
        row, task = items[setup.first].task, max(items[setup.first].task - 1, 0)
        if lane.start is None:
            state = programs.init(lane.hyper, _key(lane, "init"))
        else:  # a copy, because segments donate what they are given
            state = _copied(lane.start)
        main = _fresh(setup, lane, state, "task", -1)
        test = _evaluation(setup, lane, state, task, setup.begins_at, row=row, anytime=False)
        return _arrived(setup, lane, main, setup.first, place.pace), ([], test)
    item, carry = items[place.item], place.carry
    assert carry is not None and place.main is not None
    training = item.program == "task"
    slot = ("task", -1) if training else (item.program, item.task)
    name, counters = ("update", ()) if training else (f"phase/{item.program}", (item.task,))
    length = _length(setup.running, place.pace, item.stop - place.at)
    stop = min(item.stop, place.at + length)
    pace, events = place.pace, []
    if stop > place.at:  # where tasks are more than updates, some end as they begin
        began = time.perf_counter()
        carry = programs.segments[item.program](
            lane.hyper, carry, lane.plans[slot], setup.data, _key(lane, name, *counters),
            np.int32(place.at), np.int32(stop),
        )  # fmt: skip
        losses = host_copy(carry.losses).reshape(len(lane.members), -1)[:, place.at : stop]
        pace = agreed((time.perf_counter() - began) / (stop - place.at))
        events = _health(setup, lane, place.item, carry, stop)
        step, share = setup.updates(place.item, stop), setup.share(place.item, stop)
        events += [
            Event(
                "segment",
                member,
                seed,
                step,
                setup.num_steps,
                item.task,
                float(np.mean(row)),
                num_tasks=setup.stream.num_tasks,
                share=share,
            )  # fmt: skip
            for member, seed, row in zip(lane.members, lane.seeds, losses, strict=True)
        ]
    main = carry if training else place.main._replace(state=carry.state)
    if all(setup.records[member].divergence for member in lane.members):
        return Place(len(items), stop, main, main, pace), (events, None)
    if stop < item.stop:
        return Place(place.item, stop, carry, main, pace), (events, None)
    if not training:
        rows = host_copy(carry.losses).reshape(len(lane.members), -1)
        for member, row in zip(lane.members, rows, strict=True):
            setup.records[member].phase_losses[item.program, item.task] = row[: item.stop]
    test = None
    if item.row is not None or item.anytime:
        step = setup.updates(place.item, stop)
        test = _evaluation(setup, lane, main.state, item.task, step, item.row, item.anytime)
    return _arrived(setup, lane, main, place.item + 1, pace), (events, test)


@jax.jit
def _copied(state: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, state)


def _arrived(setup: Setup, lane: Lane, main: Carry, number: int, pace: float) -> Place:
    """The place at the beginning of an item, or at the end of all."""
    if number == len(setup.items):
        return Place(number, setup.items[-1].stop, main, main, pace)
    item = setup.items[number]
    if item.program == "task":
        return Place(number, item.start, main, main, pace)
    carry = _fresh(setup, lane, main.state, item.program, item.task)
    return Place(number, 0, carry, main, pace)


def _fresh(setup: Setup, lane: Lane, state: PyTree, program: str, task: int) -> Carry:
    """The carry at the beginning of a program's plan."""
    blank = _blank(setup, lane, lane.plans[program, task].current.shape[-1])
    return Carry(state, *(put(value, lane.batching) for value in blank))


def _blank(setup: Setup, lane: Lane, length: int) -> tuple[np.ndarray, ...]:
    """All of a new carry but its state, on the host."""
    lead = () if lane.batching is None else (lane.batching.lanes,)
    names = len(leaf_names(setup.programs.state))
    return (
        np.zeros((*lead, length), np.float32),
        np.zeros((*lead, length), np.int32),
        np.full(lead, -1, np.int32),
        np.ones((*lead, names), bool),
    )


def _key(lane: Lane, name: str, *counters: int) -> Array:
    made = [keys.purpose(seed, name, *counters) for seed in lane.seeds]
    if lane.batching is None:
        return made[0]
    return put(jnp.stack(made), lane.batching)


def _length(running: Running, pace: float, room: int) -> int:
    """Updates of the next segment: in equal parts of what remains, of about the asked time."""
    if running.segment is not None:
        return running.segment
    if not pace:
        return min(_FIRST_SEGMENT, room)
    parts = max(1, round(room * pace / running.segment_seconds))
    length = -(-room // parts)
    most = running.updates_between_checkpoints
    return length if most is None else min(length, most)


def agreed(value: float) -> float:
    """The same value on every process of a program that spans several: the first one's."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def _health(setup: Setup, lane: Lane, number: int, carry: Carry, stop: int) -> list[Event]:
    """Records and reports the runs whose loss or parameters are no longer finite."""
    bad = host_copy(carry.bad).reshape(-1)
    sound = host_copy(carry.sound).reshape(len(lane.members), -1)
    if (bad < 0).all() and sound.all():
        return []
    names, task, events = leaf_names(setup.programs.state), setup.items[number].task, []
    for i, (member, seed) in enumerate(zip(lane.members, lane.seeds, strict=True)):
        broken = [name for name, ok in zip(names, sound[i], strict=True) if not ok]
        broken.sort(key=lambda name: not name.startswith("params"))
        # Other leaves may be infinite on purpose, such as the distance to what is not there.
        lost = bad[i] >= 0 or (broken and broken[0].startswith("params"))
        if not lost or setup.records[member].divergence is not None:
            continue
        step = setup.updates(number, int(bad[i]) if bad[i] >= 0 else stop - 1)
        result = Divergence(task, step, broken[0] if broken else "loss")
        setup.records[member].divergence = result
        events.append(
            Event("diverged", member, seed, step, setup.num_steps, task, None, result.leaf)
        )
    return events


def _evaluation(
    setup: Setup, lane: Lane, state: PyTree, task: int, step: int, row: int | None, anytime: bool
) -> Callable[[], list[Event]] | None:
    """Copies what the evaluations read of ``state``, and returns the work that tests it."""
    num_tasks = setup.stream.num_tasks
    if row is not None:
        result = rates_of(state, None if lane.batching is None else lane.batching.lanes)
        for member, rates in zip(lane.members, result, strict=True):
            if rates is not None and setup.records[member].divergence is None:
                setup.records[member].rates[row] = rates
    tasks = set() if row is None else set(wanted(setup.entries, row, num_tasks))
    asked = sorted(tasks | (set(range(task + 1)) if anytime else set()))
    if not asked:
        return None
    views = {name: view(lane.hyper, state) for name, view in setup.programs.views.items()}
    seen = task + 1 if row != 0 else 0
    alive = [member for member in lane.members if setup.records[member].divergence is None]

    def work() -> list[Event]:
        accuracies: dict[str, np.ndarray] = {}
        confusion: Any = 0  # [L, C, C], the headline's
        for e in setup.evaluations:
            table = np.full((len(lane.members), num_tasks), np.nan)
            own = {name: views[name] for name in predictors_of(e)}
            for t in asked:
                allowed = allowed_outputs(setup.stream.class_mask, e.scenario, t, seen)
                tally = setup.programs.tallies[e.name](
                    lane.hyper, own, lane.tests, setup.images,
                    *read_by(e, lane.fits, setup.data), np.int32(t), allowed,
                )  # fmt: skip
                table[:, t] = host_copy(tally.correct) / lane.counts[..., t]
                if t in tasks and not isinstance(tally.confusion, tuple):
                    confusion = confusion + host_copy(tally.confusion)
            accuracies[e.name] = table
        events = []
        for i, (member, seed) in enumerate(zip(lane.members, lane.seeds, strict=True)):
            record = setup.records[member]
            for name, table in accuracies.items():
                if row is not None and member in alive:
                    record.matrices[name][row, sorted(tasks)] = table[i, sorted(tasks)]
                if anytime:
                    unseen = np.arange(num_tasks) > task
                    record.anytime[name, step] = np.where(unseen, np.nan, table[i])
            if row is not None and member in alive and np.ndim(confusion):
                record.confusion[row] = confusion.reshape(-1, *confusion.shape[-2:])[i]
            headline = accuracies[setup.evaluations[0].name][i]
            score = name_of(setup.stream.objective.score)
            if member in alive and not np.isfinite(headline[asked]).all():
                events.append(Event("note", member, seed, note=_no_number(score, seed, task)))
            numbers = headline[asked][np.isfinite(headline[asked])]
            mean = float(np.mean(numbers)) if len(numbers) else None
            note = "" if score == "accuracy" else score
            events.append(Event("eval", member, seed, step, setup.num_steps, task, mean, note))
        return events

    return work


def _no_number(score: str, seed: int, task: int) -> str:
    return (
        f"The {score} of seed {seed} is no finite number on some tests after task {task}; measures "
        "that need it are absent."
    )


def snapshot(setup: Setup, lane: Lane, place: Place) -> Snapshot:
    """Where a lane stands, as host arrays that what follows cannot change."""
    assert place.carry is not None and place.main is not None
    aside = place.main._replace(state=())
    leaves = jax.tree_util.tree_leaves_with_path({"carry": place.carry, "main": aside})
    arrays = {_name(path): host_copy(leaf) for path, leaf in leaves}
    return Snapshot(arrays, {"item": place.item, "at": place.at})


def recorded(record: Record) -> Snapshot:
    """A run's record, as copies."""
    arrays = {f"matrix/{name}": matrix.copy() for name, matrix in record.matrices.items()}
    arrays |= {
        f"anytime/{name}/{step}": row.copy() for (name, step), row in list(record.anytime.items())
    }
    arrays |= {
        f"phase/{name}/{task}": row.copy()
        for (name, task), row in list(record.phase_losses.items())
    }
    arrays |= {f"rates/{row}": rates.copy() for row, rates in list(record.rates.items())}
    arrays |= {f"confusion/{row}": counts.copy() for row, counts in list(record.confusion.items())}
    position = {"divergence": record.divergence and list(record.divergence)}
    return Snapshot(arrays, position)


def restored(setup: Setup, lane: Lane, snapshot: Snapshot) -> Place:
    """The place of a lane, and the records of its runs, from a checkpoint; else the start.

    Raises:
      ValueError: if the arrays are not those of this run.
    """
    position = snapshot.position["lanes"].get(lane.label)
    if position is None:
        return START
    own = _within(snapshot.arrays, f"{lane.label}/")
    for i, member in enumerate(lane.members):
        record, arrays = setup.records[member], _within(own, f"{i}/")
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            if kind == "matrix":
                record.matrices[rest][:] = array
            elif kind == "anytime":
                evaluation, _, step = rest.rpartition("/")
                record.anytime[evaluation or _headline(setup), int(step)] = array
            elif kind == "rates":
                record.rates[int(rest)] = array
            elif kind == "confusion":
                record.confusion[int(rest)] = array
            else:
                phase, _, task = rest.rpartition("/")
                record.phase_losses[phase, int(task)] = array
        divergence = position["records"][i]["divergence"]
        record.divergence = None if divergence is None else Divergence(*divergence)

    def carry(program: str, task: int, state: PyTree) -> Any:
        blank = _blank(setup, lane, lane.plans[program, task].current.shape[-1])
        shapes = (jax.ShapeDtypeStruct(value.shape, value.dtype) for value in blank)
        return Carry(state, *shapes)

    number, items = position["item"], setup.items
    item = items[min(number, len(items) - 1)]
    training = number == len(items) or item.program == "task"
    like = {
        "carry": carry(
            *(("task", -1) if training else (item.program, item.task)), setup.programs.state
        ),
        "main": carry("task", -1, ()),
    }
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = [
        put(checkpoint.revived(own[f"place/{_name(path)}"], leaf), lane.batching)
        for path, leaf in paths
    ]
    result = jax.tree.unflatten(structure, leaves)
    main = result["carry"] if training else result["main"]
    return Place(number, position["at"], result["carry"], main)


def _headline(setup: Setup) -> str:
    """Whose curve a checkpoint holds that names no evaluation: earlier versions kept only that."""
    if len(setup.evaluations) != 1:
        raise ValueError("it holds the curve of the first evaluation only, by an earlier version")
    return setup.evaluations[0].name


def _within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
