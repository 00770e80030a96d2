"""``learn``: runs a method on a stream for several seeds, in compiled segments.

    for each task:  phases before it, its updates, phases after it, one row of the matrices

Every lane (a seed) walks the same schedule. On CPUs a thread a core takes the next segment of
the next lane, and evaluations run beside them; on accelerators all lanes advance in one vmapped
program. A lane run by threads gives the same bits as alone.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.errors import UserError, check_known, check_positive
from cljax.evaluate import Evaluation, TestData, allowed_outputs, test_data, wanted
from cljax.segments import (
    Carry,
    Programs,
    TrainData,
    begin,
    compile_programs,
    device_plan,
    train_data,
)  # fmt: skip
from cljax.streams.base import Stream, plan
from cljax.types import Array, Learner, Method, Model, PyTree, StepPlan

__all__ = ["Event", "History", "learn", "resolve_lanes"]

Lanes = Literal["auto", "threads", "sequential", "vmap"]
_SEGMENT_SECONDS = 1.0  # how long a segment aims to take: what an interruption waits for
_FIRST_SEGMENT = 4  # updates of a run's first segment, which measures the speed


class Event(NamedTuple):
    """Progress: ``kind`` is compile, segment, eval or done; ``value`` a mean loss or accuracy."""

    kind: str
    seed: int = -1
    step: int = 0
    num_steps: int = 0
    task: int = 0
    value: float | None = None


class History(NamedTuple):
    """What a run leaves. S seeds, T tasks, U updates."""

    seeds: tuple[int, ...]
    states: tuple[PyTree, ...]  # final state of each seed
    evaluations: Mapping[str, np.ndarray]  # name -> accuracy matrices [S, T+1, T], NaN: not asked
    test_counts: np.ndarray  # [T]
    losses: np.ndarray  # [S, U], mean loss each update reported
    online_correct: np.ndarray | None  # [S, U]
    batch_sizes: np.ndarray  # [U], examples of each update
    anytime: tuple[tuple[tuple[int, np.ndarray], ...], ...]  # per seed: (step, [T] accuracies)
    phase_losses: Mapping[str, tuple[tuple[np.ndarray, ...], ...]]  # name -> per seed, per task
    diverged: tuple[int | None, ...]  # per seed: first update whose loss was not finite
    time: Mapping[str, float]  # seconds; train_s and eval_s are summed over threads


class _Item(NamedTuple):
    """A stretch of one program's plan, and what is evaluated when it ends."""

    program: str  # "task", or a phase's name
    task: int
    start: int
    stop: int
    row: int | None = None  # of the matrices
    anytime: bool = False


class _Lane(NamedTuple):
    """Seeds that advance together: one, or all of them in a vmapped program."""

    seeds: tuple[int, ...]
    stacked: bool  # whether arrays have a leading axis of seeds
    plans: Mapping[tuple[str, int], StepPlan]  # (program, task) -> device plan; ("task", -1)


class _Run(NamedTuple):
    """What every lane reads, and the records that it writes, each seed its own."""

    learner: Learner
    programs: Programs
    data: TrainData
    tests: TestData
    stream: Stream
    evaluations: tuple[Evaluation, ...]
    entries: str
    segment: int | None
    items: list[_Item]
    matrices: dict[tuple[str, int], np.ndarray]  # (evaluation, seed) -> [T+1, T]
    anytime: dict[int, list[tuple[int, np.ndarray]]]
    phase_losses: dict[tuple[str, int], list[np.ndarray]]  # (phase, seed)
    diverged: dict[int, int]
    final: dict[int, Carry]


# What a unit of work reports: events, and the evaluation to run beside what follows.
_Outcome = tuple[list[Event], Callable[[], list[Event]] | None]


def resolve_lanes(lanes: Lanes) -> str:
    """The way of running lanes that ``auto`` stands for here: threads on CPUs, else vmap."""
    check_known("lanes", lanes, ("auto", "threads", "sequential", "vmap"))
    if lanes != "auto":
        return lanes
    return "threads" if jax.default_backend() == "cpu" else "vmap"


def learn(
    method: Method,
    model: Model,
    stream: Stream,
    seeds: Sequence[int],
    *,
    batch_size: int,
    epochs: int = 1,
    evaluations: Sequence[Evaluation] = (Evaluation(),),
    entries: str = "lower",
    eval_every: int = 0,
    online: bool = False,
    lanes: Lanes = "auto",
    loop: Literal["scan", "steps"] = "scan",
    segment: int | None = None,
    progress: Callable[[Event], None] | None = None,
) -> History:
    """Trains on a stream, task after task, once for each seed.

    Args:
      method: for instance ``cljax.lamaml(...)``.
      model: for instance ``cljax.nets.mlp(100, 100)(10)``.
      batch_size: examples an update.
      epochs: passes over each task.
      evaluations: ways to fill an accuracy matrix; the first is the headline.
      entries: which entries to fill: "diagonal-last", "lower" or "full".
      eval_every: also test the tasks seen so far every so many updates; 0: never.
      online: count each batch's right predictions before learning from it.
      lanes: how seeds run beside each other; part of a run's identity.
      loop: ``steps`` keeps gradients out of compiled loops.
      segment: updates a segment; None follows the clock. Any value gives the same bits.
      progress: called in the calling thread with each ``Event``.

    Raises:
      UserError: for counts below 1, an unknown choice, or a stream without what ``method`` needs.
    """
    check_positive(batch_size=batch_size, epochs=epochs, seeds=len(seeds))
    if segment is not None:
        check_positive(segment=segment)
    check_known("loop", loop, ("scan", "steps"))
    asks = method.needs.boundaries or method.needs.task_ids_train or method.needs.task_ids_test
    if asks and not stream.boundaries:
        raise UserError(
            f"{method.name} needs task boundaries, but the stream {stream.name} has none; "
            "choose a stream of tasks, such as mnist-rotations or split-mnist."
        )
    if method.arrange is not None:
        stream = method.arrange(stream)
    began = time.perf_counter()
    policy = resolve_lanes(lanes)
    learner = method.bind(model, stream.spec(batch_size))
    for evaluation in evaluations:
        check_known("predictor", evaluation.predictor, learner.predictors)
    data, tests = train_data(stream), test_data(stream)
    plans = {seed: plan(stream, seed, batch_size, epochs) for seed in seeds}
    items, phase_plans = _schedule(learner, stream, plans[seeds[0]], eval_every)
    stacked = policy == "vmap"
    walkers = [
        _lane(bundle, stacked, plans, phase_plans)
        for bundle in ([tuple(seeds)] if stacked else [(seed,) for seed in seeds])
    ]
    emit = progress or (lambda event: None)
    emit(Event("compile"))
    workers = 1 if policy == "sequential" else len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        shapes = {name: rows for (name, _), rows in walkers[0].plans.items()}
        programs = compile_programs(
            learner, stream, shapes, data, tests, tuple(evaluations),
            online=online, loop=loop, lanes=len(seeds) if stacked else None, pool=pool,
        )  # fmt: skip
        compile_s = time.perf_counter() - began
        empty = np.full((stream.num_tasks + 1, stream.num_tasks), np.nan)
        run = _Run(
            learner, programs, data, tests, stream, tuple(evaluations), entries, segment, items,
            matrices={(e.name, seed): empty.copy() for e in evaluations for seed in seeds},
            anytime={seed: [] for seed in seeds},
            phase_losses={(phase.name, seed): [] for phase in learner.phases for seed in seeds},
            diverged={}, final={},
        )  # fmt: skip
        busy = _drive([_walk(run, lane) for lane in walkers], pool, emit)
    rows = plans[seeds[0]]
    return History(
        tuple(seeds),
        tuple(run.final[seed].state for seed in seeds),
        {e.name: np.stack([run.matrices[e.name, s] for s in seeds]) for e in evaluations},
        tests.counts,
        np.stack([np.asarray(run.final[seed].losses) for seed in seeds]),
        np.stack([np.asarray(run.final[s].online_correct) for s in seeds]) if online else None,
        rows.mask.sum(axis=1),
        tuple(tuple(sorted(run.anytime[seed], key=lambda point: point[0])) for seed in seeds),
        {p.name: tuple(tuple(run.phase_losses[p.name, s]) for s in seeds) for p in learner.phases},
        tuple(run.diverged.get(seed) for seed in seeds),
        {"compile_s": compile_s, **busy},
    )


def _lane(
    bundle: tuple[int, ...],
    stacked: bool,
    plans: Mapping[int, StepPlan],
    phase_plans: Callable[[StepPlan], Mapping[tuple[str, int], StepPlan]],
) -> _Lane:
    rows = [{("task", -1): plans[seed], **phase_plans(plans[seed])} for seed in bundle]
    if not stacked:
        return _Lane(bundle, False, device_plan(rows[0]))
    return _Lane(bundle, True, jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *rows))


def _schedule(
    learner: Learner, stream: Stream, rows: StepPlan, eval_every: int
) -> tuple[list[_Item], Callable[[StepPlan], Mapping[tuple[str, int], StepPlan]]]:
    """The stretches that every lane walks, and how a seed's plan makes its phases' plans."""
    num_steps, num_tasks = len(rows.current), stream.num_tasks
    ends = [int(i) + 1 for i in np.flatnonzero(rows.last)]
    if len(ends) != num_tasks:  # task-free: a row each T-th of the stream
        ends = [round(num_steps * (t + 1) / num_tasks) for t in range(num_tasks)]
    starts = [0, *ends[:-1]]

    def phase_plans(rows: StepPlan) -> dict[tuple[str, int], StepPlan]:
        made: dict[tuple[str, int], StepPlan] = {}
        for phase in learner.phases:
            own = {}
            for task in range(num_tasks):
                part = jax.tree.map(lambda a, t=task: a[starts[t] : ends[t]], rows)
                steps = phase.plan(task, part)
                if steps is not None:
                    own[phase.name, task] = steps
            # One length for all tasks, so that one program serves them; items keep the true one.
            longest = max((len(steps.current) for steps in own.values()), default=0)
            made |= {slot: _padded(steps, longest) for slot, steps in own.items()}
        return made

    def phases(task: int, before: bool) -> Iterator[_Item]:
        part = jax.tree.map(lambda a: a[starts[task] : ends[task]], rows)
        for phase in learner.phases:
            steps = phase.plan(task, part) if phase.before == before else None
            if steps is not None:
                yield _Item(phase.name, task, 0, len(steps.current))

    items: list[_Item] = []
    for task, (start, end) in enumerate(zip(starts, ends, strict=True)):
        items += phases(task, before=True)
        first = (start // eval_every + 1) * eval_every if eval_every else end
        stops = [*range(first, end, eval_every), end] if eval_every else [end]
        for begin_at, stop in zip([start, *stops[:-1]], stops, strict=True):
            anytime = bool(eval_every) and stop % eval_every == 0
            items.append(_Item("task", task, begin_at, stop, anytime=anytime))
        items += phases(task, before=False)
        items[-1] = items[-1]._replace(row=task + 1)
    return items, phase_plans


def _padded(steps: StepPlan, length: int) -> StepPlan:
    return jax.tree.map(
        lambda a: np.pad(a, [(0, length - len(a))] + [(0, 0)] * (a.ndim - 1)), steps
    )


def _drive(
    walks: Sequence[Iterator[_Outcome]], pool: ThreadPoolExecutor, emit: Callable[[Event], None]
) -> dict[str, float]:
    """Walks every lane to its end, a unit of work at a time, through ``pool``."""
    outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    spent = {"train_s": 0.0, "eval_s": 0.0}
    pending = 0

    def submit(kind: str, unit: Callable[[], Any], walk: Iterator[_Outcome] | None = None) -> None:
        nonlocal pending
        pending += 1

        def work() -> None:
            start = time.perf_counter()
            try:
                outcomes.put((kind, unit(), walk, time.perf_counter() - start))
            except BaseException as error:  # noqa: BLE001, handed to the calling thread
                outcomes.put((kind, error, walk, 0.0))

        pool.submit(work)

    def step(walk: Iterator[_Outcome]) -> None:
        submit("train_s", lambda: next(walk, None), walk)

    try:
        for walk in walks:
            step(walk)
        while pending:
            kind, outcome, walk, seconds = outcomes.get()
            pending -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            spent[kind] += seconds
            if outcome is None:
                continue
            events, evaluation = outcome if walk is not None else (outcome, None)
            if evaluation is not None:
                submit("eval_s", evaluation)
            if walk is not None:
                step(walk)
            for event in events:
                emit(event)
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    return spent


def _walk(run: _Run, lane: _Lane) -> Iterator[_Outcome]:
    """A lane's whole run; yields after each segment, so that lanes take turns."""
    stacked, num_steps = lane.stacked, run.items[-1].stop

    def start(state: PyTree, slot: tuple[str, int]) -> Carry:
        length = lane.plans[slot].current.shape[-1]
        shape = (len(lane.seeds), length) if stacked else (length,)
        return begin(state, shape)

    def key(name: str, *counters: int) -> Array:
        made = [keys.purpose(seed, name, *counters) for seed in lane.seeds]
        return jnp.stack(made) if stacked else made[0]

    main = start(run.programs.init(key("init")), ("task", -1))
    yield [], _evaluation(run, lane, main.state, 0, 0, row=0, anytime=False)
    pace = 0.0  # seconds an update, 0 while not measured
    update_key = key("update")
    for item in run.items:
        training = item.program == "task"
        slot = ("task", -1) if training else (item.program, item.task)
        carry = main if training else start(main.state, slot)
        item_key = update_key if training else key(f"phase/{item.program}", item.task)
        at = item.start
        while at < item.stop:
            stop = min(item.stop, at + (run.segment or _length(pace, item.stop - at)))
            began = time.perf_counter()
            carry = run.programs.segments[item.program](
                carry, lane.plans[slot], run.data, item_key, np.int32(at), np.int32(stop)
            )
            losses = np.asarray(carry.losses)[..., at:stop].reshape(len(lane.seeds), -1)
            pace = (time.perf_counter() - began) / (stop - at)
            for seed, row in zip(lane.seeds, losses, strict=True):
                if not np.isfinite(row).all():
                    run.diverged.setdefault(seed, at + int(np.argmin(np.isfinite(row))))
            at = stop
            mean = float(np.mean(losses))
            step = at if training else item.start
            yield [Event("segment", s, step, num_steps, item.task, mean) for s in lane.seeds], None
            if all(seed in run.diverged for seed in lane.seeds):
                _finish(run, lane, carry)
                return
        if training:
            main = carry
        else:
            main = main._replace(state=carry.state)
            for lane_seed, losses in zip(lane.seeds, _split(carry.losses, lane), strict=True):
                run.phase_losses[item.program, lane_seed].append(np.asarray(losses)[: item.stop])
        if item.row is not None or item.anytime:
            yield [], _evaluation(run, lane, main.state, item.task, at, item.row, item.anytime)
    _finish(run, lane, main)


def _length(pace: float, room: int) -> int:
    """Updates of the next segment: about a second's worth, in equal parts of what remains."""
    if not pace:
        return min(_FIRST_SEGMENT, room)
    parts = max(1, round(room * pace / _SEGMENT_SECONDS))
    return -(-room // parts)


def _split(values: PyTree, lane: _Lane) -> list[PyTree]:
    """A value of the bundle as one value per seed."""
    if not lane.stacked:
        return [values]
    return [jax.tree.map(lambda a, i=i: a[i], values) for i in range(len(lane.seeds))]


def _finish(run: _Run, lane: _Lane, carry: Carry) -> None:
    run.final.update(zip(lane.seeds, _split(carry, lane), strict=True))


def _evaluation(
    run: _Run, lane: _Lane, state: PyTree, task: int, step: int, row: int | None, anytime: bool
) -> Callable[[], list[Event]] | None:
    """Copies what the evaluations read of ``state``, and returns the work that tests it."""
    num_tasks = run.stream.num_tasks
    tasks = set() if row is None else set(wanted(run.entries, row, num_tasks))
    asked = sorted(tasks | (set(range(task + 1)) if anytime else set()))
    if not asked:
        return None
    views = {e.name: run.programs.views[e.name](state) for e in run.evaluations}
    seen = task + 1 if row != 0 else 0
    alive = [seed for seed in lane.seeds if seed not in run.diverged]
    tests = run.tests._replace(counts=None)

    def work() -> list[Event]:
        accuracies = {}
        for e in run.evaluations:
            table = np.full((len(lane.seeds), num_tasks), np.nan)
            for t in asked:
                allowed = allowed_outputs(run.stream.class_mask, e.scenario, t, seen)
                correct = run.programs.corrects[e.name](views[e.name], tests, np.int32(t), allowed)
                table[:, t] = np.asarray(correct) / run.tests.counts[t]
            accuracies[e.name] = table
        events = []
        for i, seed in enumerate(lane.seeds):
            for name, table in accuracies.items():
                if row is not None and seed in alive:
                    run.matrices[name, seed][row, sorted(tasks)] = table[i, sorted(tasks)]
            headline = accuracies[run.evaluations[0].name][i]
            mean = float(np.nanmean(headline[asked]))
            if anytime:
                unseen = np.arange(num_tasks) > task
                run.anytime[seed].append((step, np.where(unseen, np.nan, headline)))
            events.append(Event("eval", seed, step, run.items[-1].stop, task, mean))
        return events

    return work
