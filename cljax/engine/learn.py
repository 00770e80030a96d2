"""``learn``: runs a method on a stream, for several seeds and settings, in compiled segments.

    for each task:  phases before it, its updates, phases after it, one row of the matrices

Every run walks the same schedule. On CPUs a thread a core takes the next segment of the next
run, and evaluations run beside them; on accelerators all runs advance in one vmapped program.
Real hyper-parameters are arguments of the programs, so all settings share them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys, tree
from cljax.checks import (
    check_evaluations,
    check_memory,
    check_method,
    check_network,
    check_progress,
)
from cljax.engine.driver import Checkpoints, drive
from cljax.engine.lanes import START, Divergence, Event, Lane, Place, Record, Setup, restored
from cljax.engine.programs import (
    CLASS_ORDER,
    METHOD,
    Batching,
    Carry,
    arriving,
    compile_programs,
    device_plan,
    put,
    train_data,
)
from cljax.engine.schedule import schedule
from cljax.engine.signals import at_once
from cljax.errors import (
    Diverged,
    UserError,
    check_above_zero,
    check_counts,
    check_flag,
    check_known,
    check_positive,
    in_words,
)
from cljax.evaluation.accuracy import (
    Evaluation,
    TestImages,
    TestRows,
    check_infers,
    predictors_of,
    test_images,
    test_rows,
)
from cljax.evaluation.readout import check_readouts, fitted_rows
from cljax.keys import check_seed
from cljax.method import Method, check_features, with_features
from cljax.nets.transfer import convolves
from cljax.options import real_options
from cljax.storage import checkpoint
from cljax.streams.base import Stream, check_stream, plan
from cljax.types import Learner, Model, PyTree, StepPlan

__all__ = ["Checkpoints", "Event", "History", "learn", "resolve_lanes"]

Lanes = Literal["auto", "threads", "sequential", "vmap", "map"]
_BESIDE = 4  # runs under way for each thread, so that the last ones end together


class History(NamedTuple):
    """What runs leave. S runs, T tasks, U updates."""

    seeds: tuple[int, ...]
    states: tuple[PyTree, ...]  # final state of each run
    evaluations: Mapping[str, np.ndarray]  # name -> accuracy matrices [S, T+1, T], NaN: not asked
    test_counts: np.ndarray  # [T]
    losses: np.ndarray  # [S, U], mean loss each update reported
    online_correct: np.ndarray | None  # [S, U], right among the new examples of each update
    batch_sizes: np.ndarray  # [U], examples of each update
    # by evaluation, per run: (step, [T] accuracies)
    anytime: Mapping[str, tuple[tuple[tuple[int, np.ndarray], ...], ...]]
    phase_losses: Mapping[str, tuple[tuple[np.ndarray, ...], ...]]  # name -> per run, per task
    diverged: tuple[Divergence | None, ...]  # per run: where something was first not finite
    time: Mapping[str, float]  # seconds; train_s and eval_s are summed over threads
    # per run: row of the matrix -> histogram of learned rates, see ``cljax.runner.snapshots``
    rates: tuple[Mapping[int, np.ndarray], ...] = ()
    online_sizes: np.ndarray | None = None  # [U], new examples of each update


def resolve_lanes(lanes: Lanes) -> str:
    """The way of running lanes that ``auto`` stands for here: threads on CPUs, else vmap."""
    check_known("lanes", lanes, ("auto", "threads", "sequential", "vmap", "map"))
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
    evaluations: Sequence[Evaluation] | None = None,
    entries: str = "lower",
    eval_every: int = 0,
    online: bool = False,
    settings: Sequence[Mapping[str, float]] | None = None,
    labels: Sequence[str] | None = None,
    validate: bool = False,
    lanes: Lanes = "auto",
    lanes_at_a_time: int | None = None,
    devices: int | None = None,
    loop: Literal["auto", "scan", "steps"] = "auto",
    segment: int | None = None,
    segment_seconds: float = 1.0,
    on_nonfinite: Literal["mask", "stop"] = "mask",
    progress: Callable[[Event], None] | None = None,
    checkpoints: Checkpoints | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    on_finish: Callable[[int, History], None] | None = None,
    spent_s: float = 0.0,
) -> History | None:
    """Trains on a stream, task after task, once for each seed.

    Args:
      method: for instance ``cljax.LaMAML(...)``.
      model: for instance ``cljax.nets.mlp(100, 100)(10)``.
      seeds: one a run.
      batch_size: examples an update.
      epochs: passes over each task.
      evaluations: ways to fill an accuracy matrix; the first is the headline. None: one of the
        logits, over the example's own head in multi-head streams, else over all outputs.
      entries: which entries to fill: "diagonal-last", "lower" or "full".
      eval_every: also test the tasks seen so far every so many updates; 0: never.
      online: count right predictions on each batch's new examples before learning from them, over
        the outputs that the losses see.
      settings: for each run, other values of the method's real options.
      validate: test on each seed's validation rows instead of the tests, for tuning.
      labels: a name for each run, by which a checkpoint knows it again; None: its number.
      lanes: how runs go beside each other, part of their identity: threads, one after another
        (sequential), or as one program by vmap or by map, which gives the bits of single runs.
      lanes_at_a_time: runs in one program (vmap, map), or under way at a time (threads).
      devices: split those programs over so many devices; None is all (one on CPUs).
      loop: ``scan`` runs updates in a compiled loop, ``steps`` one after another; ``auto`` is
        steps for networks that convolve on a CPU, where gradients are slow in compiled loops.
      segment: updates a segment; None follows the clock. Any value gives the same bits.
      segment_seconds: how long a segment aims to take, which an interruption waits for.
      on_nonfinite: "mask" goes on with the other runs; "stop" raises.
      progress: called in the calling thread with each ``Event``.
      checkpoints: where to go on from, and to keep what is done.
      interrupted: asked between segments; once it is True, the run is kept and stops.
      on_finish: called with a run's number and its own history as soon as it ends; what it
        leaves is then forgotten here, and the whole history is not returned.
      spent_s: seconds of preparing before this call, which the times include; those of earlier
        attempts are in the checkpoint and count too.

    Raises:
      UserError: for counts below 1, an unknown choice, a stream without what ``method`` needs, or
        a network with fewer outputs than the stream has classes.
      Diverged: with on_nonfinite="stop", where a loss or a parameter is no longer finite.
      Interrupted: when asked to stop, after the last checkpoint is written.
    """
    check_method(method)
    check_stream(stream)
    if isinstance(seeds, (str, bytes)) or not np.iterable(seeds):
        raise UserError(f"seeds is {in_words(seeds)}, but it must be a list, one for each run.")
    check_positive(batch_size=batch_size, epochs=epochs, seeds=len(seeds))
    check_counts(eval_every=eval_every)
    check_flag(online=online, validate=validate)
    check_evaluations(evaluations)
    check_above_zero(segment_seconds=segment_seconds)
    check_progress(progress)
    seeds = [check_seed(seed) for seed in seeds]
    if segment is not None:
        check_positive(segment=segment)
    if lanes_at_a_time is not None:
        check_positive(lanes_at_a_time=lanes_at_a_time)
    check_known("entries", entries, ("diagonal-last", "lower", "full"))
    check_known("loop", loop, ("auto", "scan", "steps"))
    check_known("on_nonfinite", on_nonfinite, ("mask", "stop"))
    asks = method.needs.boundaries or method.needs.task_ids_train or method.needs.task_ids_test
    if asks and not stream.boundaries:
        raise UserError(
            f"{method.name} needs task boundaries, but the stream {stream.name} has none; "
            "choose a stream of tasks, such as mnist-rotations or split-mnist."
        )
    stream = method.arrange(stream)
    began = time.perf_counter()
    policy = resolve_lanes(lanes)
    spec = stream.spec(batch_size)
    check_network(model, spec.example, stream.num_classes, stream.name)
    bind = lambda method: with_features(method.bind(model, spec), model)
    learner = bind(method)
    if evaluations is None:
        evaluations = (Evaluation(scenario="task" if stream.multi_head else "domain"),)
    state = jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init")))
    if not hasattr(state, "_asdict"):
        raise UserError(
            f"The state of the method {method.name} is a {type(state).__name__}, but it must be a "
            "NamedTuple, whose fields are listed with their sizes."
        )
    check_memory("The state of a run", tree.size(state), "a smaller memory or network")
    _check_evaluations(evaluations, learner, stream)
    if any(e.predictor == "features" for e in evaluations):
        check_features(method.bind(model, spec), model, spec)
    if loop == "auto":
        slow = jax.default_backend() == "cpu" and convolves(model, spec.example)
        loop = "steps" if slow else "scan"
    hypers = _hypers(method, settings or [{}] * len(seeds))
    if stream.class_orders is not None:
        orders = {seed: np.asarray(stream.class_orders(seed), np.int32) for seed in set(seeds)}
        hypers = [{**own, CLASS_ORDER: orders[s]} for own, s in zip(hypers, seeds, strict=True)]
    batching = _batching(policy, len(seeds), lanes_at_a_time, devices)
    share = lambda tree: jax.tree.map(lambda a: put(a, batching, None), tree)
    data = share(train_data(stream))
    images = TestImages(*data) if validate else share(test_images(stream))
    tested = {seed: stream.valid(seed) if validate else stream.tests(seed) for seed in set(seeds)}
    longest = max(len(rows) for index in tested.values() for rows in index)
    tests = {seed: test_rows(index, longest, evaluations) for seed, index in tested.items()}
    fits = fitted_rows(stream, seeds, evaluations)
    plans = {seed: plan(stream, seed, batch_size, epochs) for seed in set(seeds)}
    items, phase_plans = schedule(learner, stream, plans[seeds[0]], eval_every)
    made_of = {
        seed: _Seed({("task", -1): rows, **phase_plans(rows)}, tests[seed], fits[seed])
        for seed, rows in plans.items()
    }
    size = 1 if batching is None else batching.lanes
    bundles = [range(i, min(i + size, len(seeds))) for i in range(0, len(seeds), size)]
    names = [str(i) for i in range(len(seeds))] if labels is None else labels
    if batching is None:
        made_of = {seed: _on_device(own) for seed, own in made_of.items()}
    own_tests = validate or stream.class_orders is not None
    made = [_lane(bundle, names, seeds, hypers, made_of, batching, own_tests) for bundle in bundles]
    emit = progress or (lambda event: None)
    emit(Event("compile"))
    workers = _cores() if policy == "threads" else 1
    with at_once(ThreadPoolExecutor(workers)) as pool:
        shapes = {name: rows for (name, _), rows in made[0].plans.items()}
        programs = compile_programs(
            lambda hyper: bind(hyper[METHOD]),
            made[0].hyper, stream, shapes, data, images, made[0].tests, made[0].fits,
            tuple(evaluations), own_tests=own_tests, online=online, loop=loop, batching=batching,
            pool=pool,
        )  # fmt: skip
        compiled_s = time.perf_counter() - began
        blank = np.full((stream.num_tasks + 1, stream.num_tasks), np.nan)
        setup = Setup(
            programs, data, images, stream, tuple(evaluations), entries, items, segment,
            segment_seconds, None if checkpoints is None else checkpoints.every_updates,
            [Record({e.name: blank.copy() for e in evaluations}) for _ in seeds],
        )  # fmt: skip
        places, earlier = _resumed(setup, made, checkpoints, emit)
        spent = {name: earlier.get(name, 0.0) for name in ("train_s", "eval_s")} | {
            "data_s": earlier.get("data_s", 0.0) + spent_s,
            "compile_s": earlier.get("compile_s", 0.0) + compiled_s,
            "total_s": earlier.get("total_s", 0.0) + spent_s,
        }
        finals: dict[int, Carry] = {}

        def history(finals: Mapping[int, Carry], spent: Mapping[str, float]) -> History:
            numbers = sorted(finals)
            return _history(
                setup, learner, [seeds[i] for i in numbers], [finals[i] for i in numbers],
                [setup.records[i] for i in numbers], plans[seeds[0]], online,
                tests[seeds[numbers[0]]].counts, spent,
            )  # fmt: skip

        def finish(number: int, place: Place) -> bool:
            assert place.main is not None
            lane = made[number]
            own = dict(zip(lane.members, _split(place.main, lane), strict=True))
            if on_finish is None:
                finals.update(own)
                return False
            for member, carry in own.items():
                on_finish(member, history({member: carry}, {"compile_s": spent["compile_s"]}))
            return True

        def watch(event: Event) -> None:
            emit(event)
            if event.kind == "diverged" and on_nonfinite == "stop":
                raise Diverged(
                    f"{method.name} diverged in task {event.task} at update {event.step}: "
                    f"{event.note} is not finite; try smaller rates."
                )

        window = 1 if batching is not None else lanes_at_a_time or _BESIDE * workers
        spent = drive(
            setup, made, places, pool, window=window, emit=watch, finish=finish,
            checkpoints=checkpoints, interrupted=interrupted, spent=spent, began=began,
        )  # fmt: skip
    return None if on_finish is not None else history(finals, spent)


def _check_evaluations(evaluations: Sequence[Evaluation], learner: Learner, stream: Stream) -> None:
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"There are two evaluations named {twice}; give each its own name.")
    check_readouts(evaluations, stream)
    for evaluation in evaluations:
        for name in predictors_of(evaluation):
            check_known("predictor", name, learner.predictors)
        check_infers(evaluation, learner.predictors)
        check_known("hit", evaluation.hit, ("class", "task", "place"))
        shared = bool(np.any(stream.class_mask.sum(axis=0) > 1))
        if shared and (evaluation.continuum is not None or evaluation.hit == "task"):
            raise UserError(
                f"The tasks of {stream.name} share their classes, so outputs cannot tell them "
                "apart; a continuum needs tasks with classes of their own, as in split-mnist."
            )
        if evaluation.scenario == "task" and evaluation.continuum is not None:
            raise UserError(
                f"The evaluation {evaluation.name} infers the task of a continuum, but its "
                "scenario 'task' tells it; choose 'class'."
            )


def _hypers(method: Method, settings: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each run's method with its setting, an argument of its programs; leaves are arrays."""
    names, dtype = real_options(method), jnp.result_type(float)
    made = []
    for setting in settings:
        for name in setting:
            check_known(f"real option of {method.name}", name, names)
        own = method.replace(**setting)
        with np.errstate(over="ignore"):  # what is too large for the type diverges, and is told
            made.append({METHOD: jax.tree.map(lambda leaf: np.asarray(leaf, dtype), own)})
    return made


def _batching(policy: str, num: int, at_a_time: int | None, devices: int | None) -> Batching | None:
    """How runs are batched; None: each is a lane of its own."""
    if devices is not None:
        check_positive(devices=devices)
    on_cpu = jax.default_backend() == "cpu"
    count = devices or (1 if on_cpu and jax.process_count() == 1 else jax.device_count())
    if policy not in ("vmap", "map"):
        if count > 1:
            raise UserError(
                f"devices is {count} with lanes={policy}, but only lanes=vmap and lanes=map are "
                "split over devices; choose one of them."
            )
        return None
    if count > jax.device_count():
        raise UserError(f"devices is {count}, but there are {jax.device_count()} here.")
    size = -(-(at_a_time or num) // count) * count
    mesh = None
    if count > 1:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("lane",))
    return Batching(size, policy, mesh)  # type: ignore[arg-type]


class _Seed(NamedTuple):
    """What a seed decides of a lane."""

    plans: Mapping[tuple[str, int], StepPlan]
    tests: TestRows
    fits: PyTree  # rows and mask of what readouts are fitted on; () without any


def _on_device(own: _Seed) -> _Seed:
    """All but the counts of tests."""
    there = device_plan(own)
    return there._replace(tests=there.tests._replace(counts=own.tests.counts))


def _lane(
    bundle: Sequence[int],
    labels: Sequence[str],
    seeds: Sequence[int],
    hypers: Sequence[Mapping[str, Any]],
    made_of: Mapping[int, _Seed],
    batching: Batching | None,
    own_tests: bool,
) -> Lane:
    """A lane of one or more runs; a batched one is filled up with copies of its last run."""
    if batching is None:
        (i,) = bundle
        plans, (rows, mask, counts), fits = made_of[seeds[i]]
        hyper = jax.tree.map(jnp.asarray, hypers[i])
        return Lane((i,), labels[i], (seeds[i],), hyper, plans, (rows, mask), fits, counts, None)
    filled = tuple(bundle) + (bundle[-1],) * (batching.lanes - len(bundle))
    stack = lambda *leaves: put(np.stack(leaves), batching)
    plans = jax.tree.map(stack, *[made_of[seeds[i]].plans for i in filled])
    hyper = jax.tree.map(stack, *[dict(hypers[i]) for i in filled])
    tests = [made_of[seeds[i]].tests for i in filled]
    rows_mask = [(own.rows, own.mask) for own in tests]
    if own_tests:
        shown = jax.tree.map(stack, *rows_mask)
    else:
        shown = jax.tree.map(lambda a: put(a, batching, None), rows_mask[0])
    fits = jax.tree.map(stack, *[made_of[seeds[i]].fits for i in filled])
    label = "+".join(labels[i] for i in bundle)
    if len(bundle) > 1:
        label = f"{len(bundle)}-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
    counts = np.stack([own.counts for own in tests])
    own_seeds = tuple(seeds[i] for i in filled)
    return Lane(filled, label, own_seeds, hyper, plans, shown, fits, counts, batching)


def _resumed(
    setup: Setup,
    lanes: Sequence[Lane],
    checkpoints: Checkpoints | None,
    emit: Callable[[Event], None],
) -> tuple[list[Place], Mapping[str, float]]:
    """Where each lane goes on, from the newest whole checkpoint, and the seconds spent on it."""
    if checkpoints is None:
        return [START] * len(lanes), {}
    kept, skipped = checkpoint.newest(checkpoints.folder, checkpoints.identity)
    for sentence in skipped:
        emit(Event("note", note=sentence))
    if kept is None:
        return [START] * len(lanes), {}
    try:
        return [restored(setup, lane, kept) for lane in lanes], kept.position["time"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"The checkpoint in {checkpoints.folder} does not fit this run ({error}); remove it, "
            "or run in another folder."
        ) from error


def _cores() -> int:
    """Cores that this process may use; where nobody says, those that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(values: PyTree, lane: Lane) -> list[PyTree]:
    """A value of a lane as one value a run."""
    if lane.batching is None:
        return [values]
    if lane.batching.mesh is not None:
        values = jax.tree.map(checkpoint.host_copy, values)
    return [jax.tree.map(lambda a, i=i: a[i], values) for i in range(len(lane.members))]


def _history(
    setup: Setup,
    learner: Learner,
    seeds: Sequence[int],
    finals: Sequence[Carry],
    records: Sequence[Record],
    rows: StepPlan,
    online: bool,
    counts: np.ndarray,
    spent: Mapping[str, float],
) -> History:
    phases = {phase.name: range(setup.stream.num_tasks) for phase in learner.phases}
    return History(
        tuple(seeds),
        tuple(carry.state for carry in finals),
        {e.name: np.stack([r.matrices[e.name] for r in records]) for e in setup.evaluations},
        counts,
        np.stack([np.asarray(carry.losses) for carry in finals]),
        np.stack([np.asarray(carry.online_correct) for carry in finals]) if online else None,
        rows.mask.sum(axis=1),
        {e.name: tuple(_curve(r, e.name) for r in records) for e in setup.evaluations},
        {
            name: tuple(
                tuple(r.phase_losses[name, t] for t in tasks if (name, t) in r.phase_losses)
                for r in records
            )
            for name, tasks in phases.items()
        },
        tuple(record.divergence for record in records),
        dict(spent),
        tuple(dict(sorted(record.rates.items())) for record in records),
        _new_examples(rows, setup.stream).sum(axis=1) if online else None,
    )


def _new_examples(rows: StepPlan, stream: Stream) -> np.ndarray:
    """[U, B] bool, the examples of a plan that online accuracy counts."""
    return arriving(
        rows.mask, rows.index, rows.task, rows.current, rows.first_pass,
        boundaries=stream.boundaries,
    )  # fmt: skip


def _curve(record: Record, name: str) -> tuple[tuple[int, np.ndarray], ...]:
    """(step, [T] accuracies) of an evaluation, in order."""
    return tuple((step, row) for (own, step), row in sorted(record.anytime.items()) if own == name)
