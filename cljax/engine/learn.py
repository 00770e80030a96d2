"""``learn``: runs a method on a stream, for several seeds and settings, in compiled segments.

    for each task:  phases before it, its updates, phases after it, one row of the matrices

Every run walks the same schedule. On CPUs a thread a core takes the next segment of the next
run, and evaluations run beside them; on accelerators all runs advance in one vmapped program.
The method is an argument of the programs, so all values of its real options share them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from cljax import keys, tree
from cljax.checks import check_memory, check_method, check_network, check_offer
from cljax.engine.bundles import (
    SeedInputs,
    batching_of,
    bundle,
    hypers_of,
    resolve_lanes,
    split_runs,
)
from cljax.engine.compilation import Inputs, compile_programs, put
from cljax.engine.driver import Callbacks, Checkpoints, drive
from cljax.engine.history import History, history_of
from cljax.engine.lanes import START, Event, Lane, Place, Record, Setup, restored
from cljax.engine.options import Running, Training
from cljax.engine.programs import Carry, train_data
from cljax.engine.schedule import Item, schedule
from cljax.engine.signals import at_once
from cljax.engine.start import Start, started
from cljax.errors import UserError, check_flag, check_known, check_positive, in_words
from cljax.evaluation.accuracy import (
    Evaluation,
    TestImages,
    check_infers,
    predictors_of,
    test_images,
    test_rows,
)
from cljax.evaluation.readouts import check_readouts, fitted_rows
from cljax.keys import check_seed, is_list
from cljax.method import Method, check_features, with_features
from cljax.methods.groups.replay import ReplayOptions
from cljax.nets.transfer import slow_in_loops
from cljax.objectives import name_of
from cljax.storage import checkpoint
from cljax.streams.base import Stream, check_stream, plan
from cljax.types import Learner, Model, StepPlan

__all__ = ["Checkpoints", "Event", "History", "Hooks", "learn"]

_BESIDE = 4  # runs under way for each thread, so that the last ones end together


class Hooks(NamedTuple):
    """What ``learn`` calls while it runs, in the calling thread."""

    progress: Callable[[Event], None] | None = None  # with each event
    # Asked between segments; once it is True, the run is kept and stops.
    interrupted: Callable[[], bool] = lambda: False
    # With a run's number and its own history as soon as it ends; what it leaves is then forgotten
    # here, and the whole history is not returned.
    on_finish: Callable[[int, History], None] | None = None


def learn(
    method: Method | Sequence[Method],
    model: Model,
    stream: Stream,
    seeds: Sequence[int],
    training: Training = Training(),  # noqa: B008, it is frozen
    *,
    running: Running = Running(),  # noqa: B008, it is frozen
    hooks: Hooks = Hooks(),  # noqa: B008, it is immutable
    checkpoints: Checkpoints | None = None,
    validate: bool = False,
    start: Start | None = None,
    spent_s: float = 0.0,
) -> History | None:
    """Trains on a stream, task after task, once for each seed.

    Args:
      method: for instance ``cljax.LaMAML(...)``; or one for each run, alike but for real options.
      model: for instance ``cljax.nets.mlp(100, 100)(10)``.
      seeds: one a run.
      training: batches, epochs, evaluations and the like.
      running: how runs are cut up and how often they are kept; changes no result.
      hooks: what is called while it runs.
      checkpoints: where to go on from, and to keep what is done.
      start: states to begin with, after the stream's first tasks; None: new ones.
      validate: test on each seed's validation rows instead of the tests, for tuning.
      spent_s: seconds of preparing before this call, which the times include; those of earlier
        attempts are in the checkpoint and count too.

    Returns:
      The history of all runs; None with ``hooks.on_finish``, which got each run's own.

    Raises:
      UserError: for what the method, the network or the stream is not made for.
      Interrupted: when asked to stop, after the last checkpoint is written.
    """
    began = time.perf_counter()
    if hooks.progress is not None and not callable(hooks.progress):
        raise UserError(
            f"The hook progress is {in_words(hooks.progress)}, but it must be a function of an "
            "Event, or None."
        )
    methods, seeds = _runs(method, seeds)
    outline = _outline(methods[0], model, stream, seeds, training, validate=validate)
    policy = resolve_lanes(training.lanes)
    batching = batching_of(policy, len(seeds), running)
    labels = None if checkpoints is None else checkpoints.labels
    names = [str(i) for i in range(len(seeds))] if labels is None else labels
    hypers = hypers_of(methods, outline.class_orders(seeds))
    lanes = bundle(names, seeds, hypers, outline.inputs, batching, own_tests=outline.own_tests)
    lanes = started(lanes, start)
    emit = hooks.progress or (lambda event: None)
    emit(Event("compile"))
    workers = _cores() if policy == "threads" else 1
    with at_once(ThreadPoolExecutor(workers)) as pool:
        setup = _setup(outline, lanes[0], training, running, pool, num_runs=len(seeds))
        setup = setup if start is None else _begun(setup, start)
        compiled_s = time.perf_counter() - began
        places, spent = _resumed(setup, lanes, checkpoints, emit)
        spent["data_s"] += spent_s
        spent["compile_s"] += compiled_s
        finals: dict[int, Carry] = {}

        def finish(number: int, place: Place) -> bool:
            assert place.main is not None
            carries = split_runs(place.main, lanes[number])
            if hooks.on_finish is None:
                finals.update(carries)
                return False
            shared = {"compile_s": spent["compile_s"]}
            for member, carry in carries.items():
                hooks.on_finish(member, outline.history(setup, seeds, {member: carry}, shared))
            return True

        window = 1 if batching is not None else running.lanes_at_a_time or _BESIDE * workers
        spent["total_s"] += spent_s + time.perf_counter() - began
        spent = drive(
            setup, lanes, places, pool, Callbacks(emit, finish, hooks.interrupted),
            window=window, checkpoints=checkpoints, spent=spent,
        )  # fmt: skip
    return None if hooks.on_finish is not None else outline.history(setup, seeds, finals, spent)


def _runs(
    method: Method | Sequence[Method], seeds: Sequence[int]
) -> tuple[list[Method], list[int]]:
    """A method and a seed for each run."""
    if not is_list(seeds):
        raise UserError(f"seeds is {in_words(seeds)}, but it must be a list, one for each run.")
    seeds = [check_seed(seed) for seed in seeds]
    check_positive(seeds=len(seeds))
    methods: list[Any] = [method] * len(seeds)
    if isinstance(method, (list, tuple)):
        methods = list(method)
    for one in methods:
        check_method(one)
    if len(methods) != len(seeds):
        raise UserError(
            f"There are {len(methods)} methods and {len(seeds)} seeds, but each run has one of "
            "both."
        )
    return methods, seeds


class _Outline(NamedTuple):
    """What all runs share, before anything is compiled."""

    bind: Callable[[Method], Learner]
    stream: Stream  # as the method sees it
    evaluations: tuple[Evaluation, ...]
    loop: str
    items: list[Item]
    rows: StepPlan  # of the first seed; all have the same masks
    inputs: Mapping[int, SeedInputs]  # by seed
    validate: bool

    @property
    def own_tests(self) -> bool:
        """Whether each seed has test rows of its own."""
        return self.validate or self.stream.class_orders is not None

    def class_orders(self, seeds: Sequence[int]) -> list[np.ndarray] | None:
        """The output of each label, by run; None where all seeds share it."""
        order = self.stream.class_orders
        return None if order is None else [np.asarray(order(seed), np.int32) for seed in seeds]

    def history(
        self, setup: Setup, seeds: Sequence[int], finals: Mapping[int, Carry], spent: Any
    ) -> History:
        """What the runs in ``finals`` leave."""
        counts = self.inputs[seeds[min(finals)]].tests.counts
        return history_of(setup, seeds, finals, self.rows, counts, spent)


def _replaying(method: Method) -> Iterator[ReplayOptions]:
    """Those of a method and of the methods inside it that replay from a memory."""
    if isinstance(method, ReplayOptions):
        yield method
    for inner in method.options.values():
        if isinstance(inner, Method):
            yield from _replaying(inner)


def _outline(
    method: Method,
    model: Model,
    stream: Stream,
    seeds: Sequence[int],
    training: Training,
    *,
    validate: bool,
) -> _Outline:
    """Binds the method, checks that all fits, and lays out the plans of each seed."""
    check_stream(stream)
    check_flag(validate=validate)
    asks = method.needs.boundaries or method.needs.task_ids_train or method.needs.task_ids_test
    if asks and not stream.boundaries:
        raise UserError(
            f"{method.name} needs task boundaries, but the stream {stream.name} has none; "
            f"{method.instead_of_boundaries}."
        )
    stream = method.arrange(stream)
    spec = stream.spec(training.batch_size)
    check_network(model, spec.example, stream.num_classes, stream.name)
    for part in _replaying(method):
        check_offer(part.store, spec, part.capacity)
    bind = lambda method: with_features(method.bind(model, spec), model)
    learner = bind(method)
    _check_state(method, learner)
    evaluations = tuple(training.evaluations or ()) or (
        Evaluation(scenario="task" if stream.multi_head else "domain"),
    )
    _check_evaluations(evaluations, learner, stream)
    if training.online and stream.objective.score != "accuracy":
        raise UserError(
            f"online counts right predictions, but the tests of {stream.name} are judged by "
            f"{name_of(stream.objective.score)}; leave one of the two out."
        )
    if any(e.predictor == "features" for e in evaluations):
        check_features(method.bind(model, spec), model, spec)
    loop: str = training.loop
    if loop == "auto":
        slow = slow_in_loops(model, spec.example)
        loop = "steps" if slow else "scan"
    plans = {seed: plan(stream, seed, training.batch_size, training.epochs) for seed in set(seeds)}
    items, phase_plans = schedule(learner, stream, plans[seeds[0]], training.eval_every)
    tested = {seed: stream.valid(seed) if validate else stream.tests(seed) for seed in set(seeds)}
    longest = max(len(rows) for index in tested.values() for rows in index)
    fits = fitted_rows(stream, seeds, evaluations)
    inputs = {
        seed: SeedInputs(
            {("task", -1): rows, **phase_plans(rows)},
            test_rows(tested[seed], longest, evaluations),
            fits[seed],
        )
        for seed, rows in plans.items()
    }
    rows = plans[seeds[0]]
    return _Outline(bind, stream, evaluations, loop, items, rows, inputs, validate)


def _setup(
    outline: _Outline,
    lane: Lane,
    training: Training,
    running: Running,
    pool: ThreadPoolExecutor,
    *,
    num_runs: int,
) -> Setup:
    """Puts the data on devices and compiles all programs, for lanes of the shapes of one."""
    stream, evaluations = outline.stream, outline.evaluations
    share = lambda tree: jax.tree.map(lambda a: put(a, lane.batching, None), tree)
    data = share(train_data(stream))
    images = TestImages(*data) if outline.validate else share(test_images(stream))
    shapes = {name: rows for (name, _), rows in lane.plans.items()}
    inputs = Inputs(lane.hyper, shapes, data, images, lane.tests, lane.fits, outline.own_tests)
    programs = compile_programs(
        outline.bind, stream, inputs, evaluations,
        online=training.online, loop=outline.loop, batching=lane.batching, pool=pool,
    )  # fmt: skip
    blank = np.full((stream.num_tasks + 1, stream.num_tasks), np.nan)
    records = [Record({e.name: blank.copy() for e in evaluations}) for _ in range(num_runs)]
    before = [0, *itertools.accumulate(item.stop - item.start for item in outline.items)]
    num_steps = max(item.stop for item in outline.items if item.program == "task")
    return Setup(
        programs, data, images, stream, evaluations, training.entries, training.online,
        outline.items, running, records, before, num_steps,
    )  # fmt: skip


def _begun(setup: Setup, start: Start) -> Setup:
    """Runs that begin with a later task, and what is known of the tasks before it."""
    first = next(i for i, item in enumerate(setup.items) if item.task == start.task)
    for name, matrices in start.matrices.items():
        for record, known in zip(setup.records, matrices, strict=True):
            record.matrices[name][: start.task + 1, : start.task] = known
    return setup._replace(first=first)


def _check_state(method: Method, learner: Learner) -> None:
    """Raises UserError for a state without names, or larger than this machine's memory."""
    state = jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init")))
    if not hasattr(state, "_asdict"):
        raise UserError(
            f"The state of the method {method.name} is a {type(state).__name__}, but it must be a "
            "NamedTuple, whose fields are listed with their sizes."
        )
    check_memory("The state of a run", tree.size(state), "a smaller memory or network")


def _check_evaluations(evaluations: Sequence[Evaluation], learner: Learner, stream: Stream) -> None:
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"There are two evaluations named {twice}; give each its own name.")
    check_readouts(evaluations, stream)
    score = name_of(stream.objective.score)
    for evaluation in evaluations:
        other = evaluation.readout is not None or evaluation.continuum or evaluation.hit != "class"
        if score != "accuracy" and other:
            raise UserError(
                f"The evaluation {evaluation.name} counts right predictions, but the tests of "
                f"{stream.name} are judged by {score}; leave it out, or the score."
            )
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


def _resumed(
    setup: Setup,
    lanes: Sequence[Lane],
    checkpoints: Checkpoints | None,
    emit: Callable[[Event], None],
) -> tuple[list[Place], dict[str, float]]:
    """Where each lane goes on, from the newest whole checkpoint, and the seconds spent on it."""
    names = ("data_s", "compile_s", "train_s", "eval_s", "total_s")
    spent: dict[str, float] = {name: 0.0 for name in names}
    if checkpoints is None:
        return [START] * len(lanes), spent
    kept, skipped = checkpoint.newest(checkpoints.folder, checkpoints.identity)
    for sentence in skipped:
        emit(Event("note", note=sentence))
    if kept is None:
        return [START] * len(lanes), spent
    try:
        places = [restored(setup, lane, kept) for lane in lanes]
        return places, {**spent, **kept.position["time"]}
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
