"""Meta-training as steps: episodes that end and begin anew, a curriculum, a loss to scale.

    before it, optionally:  rho = tau_0 / median over E episodes of (max_{t <= target} Huber_t),
                            so that an untrained rule passes tau_0 at about step ``target``
    a step, until N episodes have ended:
        a window of S(level) inner steps in each of E episodes, and theta's update from it
        an ended episode's lane draws new classes, a new head and a source, and begins again

An episode starts teacher and student from the same weights: those of a source network, with rows
of the head for the new task drawn anew. With two new tasks it has two parts: the second begins
where the first's loss passed tau, goes on from its weights with tau larger, and its old examples
are of the source task and the first part together.

Symbols: E ``lanes``, N ``episodes``, rho ``rho``, tau and S ``Curriculum``, target ``target``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), algorithm 1 and sections 4.1 to 4.5. The paper's rho is a constant, 300 or 200;
calibrating it is an addition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.method import Problem
from cljax.types import Array, Batch, Info, Model, Params, Phase, PyTree, Spec, StepPlan
from cljax.update_rules.curriculum import Curriculum, Level, level_at
from cljax.update_rules.episodes import drawn_classes, held_rows, labelled, new_classes
from cljax.update_rules.windows import (
    EpisodeBatch,
    Estimator,
    Shown,
    StudentTeacher,
    Window,
    per_step,
    taken,
    window,
)

__all__ = ["EpisodeDraws", "MetaTrainingSetup", "Sources", "MetaTraining", "phases", "start"]

Step: TypeAlias = Callable[[Any, Batch, "EpisodeDraws"], tuple[Any, Info]]


class EpisodeDraws(NamedTuple):
    """What an episode draws when it begins; leaves have a leading axis E."""

    heads: Params  # a fresh network, of which the new tasks' rows of the head are taken
    classes: Array  # [E, P, n] int32, rows of ``Spec.held``: the classes of each part
    source: Array  # [E] int32, which source network


class Sources(NamedTuple):
    """The networks that episodes start from.

    ``draw(key, E) -> [E]`` int32, which ones; ``params(state, source []) -> Params``.
    """

    draw: Callable[[Array, int], Array]
    params: Callable[[Any, Array], Params]


class MetaTraining(NamedTuple):
    """Everything that meta-training changes besides the rule itself, the state's ``theta``."""

    opt_state: PyTree  # of the rule
    lanes: EpisodeBatch
    classes: Array  # [E, P, n] int32, of the episodes under way
    part: Array  # [E] int32, which new task
    peak: Array  # [E] the largest loss so far, while rho is calibrated
    rho: Array  # []
    episodes: Array  # [] int32, ended so far
    lengths: Array  # [N] int32, inner steps of each ended episode, in all its parts
    taken: Array  # [E] int32, inner steps of the parts before this one
    rows: Array  # [n] int32, the source task's rows; those beyond ``count`` are no rows
    count: Array  # [] int32


class MetaTrainingSetup(NamedTuple):
    """How meta-training goes; all static but for the rates."""

    pair: StudentTeacher
    curriculum: Curriculum
    optimizer: Any  # optax's, of theta
    estimator: Estimator
    lanes: int  # E
    episodes: int  # N
    windows: int  # at most
    target: int  # inner steps, of the calibration
    spec: Spec


def start(
    course: MetaTrainingSetup, theta: PyTree, params: Params, rho: Array | float | None
) -> MetaTraining:
    """The beginning, with lanes that wait to be drawn."""
    num, parts, each = course.lanes, course.spec.num_tasks - 1, new_classes(course.spec)
    spread = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a[None], (num, *a.shape)), tree)
    dtype = jax.tree.leaves(params)[0].dtype
    none = jnp.zeros(num, jnp.int32)
    lanes = EpisodeBatch(
        spread(params), spread(params), spread(course.pair.gate.start()), none,
        jnp.ones(num, bool),
    )  # fmt: skip
    return MetaTraining(
        course.optimizer.init(theta), lanes,
        jnp.zeros((num, parts, each), jnp.int32), none, jnp.zeros(num, dtype),
        jnp.asarray(1.0 if rho is None else rho, dtype), jnp.zeros((), jnp.int32),
        jnp.full(course.episodes, -1, jnp.int32), none,
        jnp.full(_most_rows(course.spec), -1, jnp.int32), jnp.zeros((), jnp.int32),
    )  # fmt: skip


def phases(
    course: MetaTrainingSetup, model: Model, sources: Sources, *, calibrate: bool
) -> tuple[Phase, ...]:
    """What follows the source task, for states with fields ``theta`` and ``training``.

    Args:
      sources: the networks that episodes start from.
      calibrate: scale the loss before.
    """
    draw = functools.partial(_draw, course, model, sources)
    begin = functools.partial(_begun, course, model, sources)
    result = [_gathered(draw, begin)]
    if calibrate:
        steps = -(-course.target // course.curriculum.steps_cap)
        result.append(_phase("calibration", course, steps, draw, _calibrated(course, begin)))
    result.append(_phase("meta-training", course, course.windows, draw, _trained(course, begin)))
    return tuple(result)


def _most_rows(spec: Spec) -> int:
    """At least as many as the source task has."""
    assert spec.train_y is not None
    return int(np.isin(spec.train_y, np.flatnonzero(spec.class_mask[0])).sum())


def _gathered(draw: Any, begin: Any) -> Phase:
    """Keeps which rows are the source task's, which differ from seed to seed; begins episodes."""

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task:
            return None
        own = np.unique(rows.index[rows.mask]).astype(np.int32)[None]
        none, one = np.zeros(1, np.int32), np.ones(1, bool)
        return StepPlan(own, np.zeros_like(own), np.ones(own.shape, bool), none, none, one, one)

    def update(state: Any, batch: Batch, chance: EpisodeDraws) -> tuple[Any, Info]:
        count = batch.index.shape[0]
        training: MetaTraining = state.training
        training = training._replace(
            rows=training.rows.at[:count].set(batch.index), count=jnp.asarray(count, jnp.int32)
        )
        state = state._replace(training=training)
        return begin(state, chance, jnp.ones_like(training.lanes.done)), Info(jnp.zeros(()))

    return Phase("source-rows", plan, draw, update, stored=True)


def _phase(name: str, course: MetaTrainingSetup, steps: int, draw: Any, update: Step) -> Phase:
    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task:
            return None
        none, one = np.zeros(steps, np.int32), np.ones(steps, bool)
        index = np.zeros((steps, 1), np.int32)  # ``select`` knows better
        return StepPlan(index, index, one[:, None], none, none, one, np.arange(steps) == steps - 1)

    return Phase(name, plan, draw, update, select=functools.partial(_selected, course))


def _selected(course: MetaTrainingSetup, state: Any, row: StepPlan, key: Array) -> StepPlan:
    """A window's rows, [K, E, old + new] end to end, each drawn from all that it may be alike."""
    training: MetaTraining = state.training
    held, each = jnp.asarray(held_rows(course.spec)), new_classes(course.spec)
    shape = (course.curriculum.steps_cap, course.lanes, 2 * course.pair.old)
    each_key = (jax.random.fold_in(key, i) for i in range(4))
    shares = [keys.flat(jax.random.uniform, own, shape) for own in each_key]
    upto = lambda share, count: jnp.minimum((share * count).astype(jnp.int32), count - 1)
    part = jnp.broadcast_to(training.part[None, :, None], shape)
    # Old examples are those of the source task, and of the parts of the episode before this one.
    place = upto(shares[0], training.count + part * each * held.shape[1])
    fresh = jnp.arange(shape[2])[None, None] >= course.pair.old
    owner = jnp.where(fresh, part, upto(shares[1], jnp.maximum(part, 1)))
    lane = jnp.arange(course.lanes)[None, :, None]
    classes = training.classes[lane, owner, upto(shares[2], jnp.full(shape, each))]
    practised = held[classes, upto(shares[3], jnp.full(shape, held.shape[1]))]
    source = training.rows[jnp.minimum(place, training.count - 1)]
    index = jnp.where(fresh | (place >= training.count), practised, source).reshape(-1)
    return row._replace(index=index, task=jnp.zeros_like(index), mask=jnp.ones(index.shape, bool))


def _draw(
    course: MetaTrainingSetup, model: Model, sources: Sources, state: Any, batch: Batch, key: Array
) -> EpisodeDraws:
    of_head, of_class, of_source = (jax.random.fold_in(key, i) for i in range(3))
    num = course.lanes
    heads = jax.vmap(lambda k: Problem(model, course.spec).variables(k).params)(
        jax.random.split(of_head, num)
    )
    classes = jax.vmap(lambda k: drawn_classes(course.spec, k))(jax.random.split(of_class, num))
    return EpisodeDraws(heads, classes, sources.draw(of_source, num))


def _begun(
    course: MetaTrainingSetup,
    model: Model,
    sources: Sources,
    state: Any,
    chance: EpisodeDraws,
    which: Array,
) -> Any:
    """The state with new episodes in the lanes ``which`` [E] bool."""
    rows_of_head = model.head
    assert rows_of_head is not None
    training: MetaTraining = state.training
    known = jnp.asarray(course.spec.class_mask[0])

    def fresh(head: Params, source: Array) -> Params:
        params = sources.params(state, source)
        return jax.tree.map(
            lambda keep, old, new: jnp.where(keep, old, new), rows_of_head(params, known), params,
            head,
        )  # fmt: skip

    params = jax.vmap(fresh)(chance.heads, chance.source)
    lanes = training.lanes
    none, no = jnp.zeros_like(lanes.step), jnp.zeros_like(lanes.done)
    new = EpisodeBatch(params, params, jax.tree.map(jnp.zeros_like, lanes.carry), none, no)
    pick = lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    after = training._replace(
        lanes=jax.tree.map(pick, new, lanes),
        classes=pick(chance.classes, training.classes),
        part=pick(none, training.part),
        taken=pick(none, training.taken),
        peak=pick(jnp.zeros_like(training.peak), training.peak),
    )
    return state._replace(training=after)


def _trained(course: MetaTrainingSetup, begin: Any) -> Step:
    """A step of meta-training; nothing once enough episodes have ended."""

    def step(state: Any, batch: Batch, chance: EpisodeDraws) -> tuple[Any, Info]:
        training: MetaTraining = state.training
        lanes, rho = training.lanes, training.rho
        level = level_at(course.curriculum, training.episodes)
        # A second part goes on from where the first one ended, so it is allowed more.
        bound = level.threshold + course.curriculum.threshold_step * training.part
        level = level._replace(threshold=bound.astype(rho.dtype))
        shown = _shown(course, training, batch)
        theta, opt_state = state.theta, training.opt_state
        if course.estimator == "window":
            grads, seen = window(course.pair, theta, lanes, shown, level, rho)
            updates, moved = course.optimizer.update(grads, opt_state, theta)
            some = jnp.any(seen.live)
            theta = jax.tree.map(lambda p, u: jnp.where(some, p + u, p), theta, updates)
            opt_state = jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, opt_state)
        else:
            theta, opt_state, seen = per_step(
                course.pair, theta, opt_state, course.optimizer, lanes, shown, level, rho
            )
        training = _moved_on(course, training._replace(opt_state=opt_state), seen)
        state = state._replace(theta=theta, training=training)
        state = begin(state, chance, _over(course, state.training))
        return state, Info(jnp.sum(seen.losses) / jnp.maximum(jnp.sum(seen.live), 1))

    def unless_over(state: Any, batch: Batch, chance: EpisodeDraws) -> tuple[Any, Info]:
        idle = lambda state: (state, Info(jnp.zeros((), state.training.rho.dtype)))
        return jax.lax.cond(
            state.training.episodes < course.episodes,
            lambda state: step(state, batch, chance),
            idle,
            state,
        )

    return unless_over


def _calibrated(course: MetaTrainingSetup, begin: Any) -> Step:
    """A step of calibration: the rule as it is, no bound, the largest loss of each episode."""

    def step(state: Any, batch: Batch, chance: EpisodeDraws) -> tuple[Any, Info]:
        training: MetaTraining = state.training
        one, step = jnp.ones_like(training.rho), batch.clock.step
        left = jnp.minimum(
            course.target - step * course.curriculum.steps_cap, course.curriculum.steps_cap
        )
        level = Level(jnp.full_like(training.peak, jnp.inf), left)
        shown = _shown(course, training, batch)
        seen = taken(course.pair, state.theta, training.lanes, shown, level, one)
        peak = jnp.maximum(training.peak, jnp.max(seen.losses, axis=0))
        middle = jnp.maximum(jnp.median(peak), jnp.finfo(peak.dtype).tiny)
        last = batch.clock.last
        rho = jnp.where(last, course.curriculum.threshold / middle, training.rho)
        training = training._replace(lanes=seen.lanes, peak=peak, rho=rho.astype(peak.dtype))
        state = state._replace(training=training)
        return begin(state, chance, jnp.broadcast_to(last, peak.shape)), Info(jnp.mean(peak))

    return step


def _moved_on(course: MetaTrainingSetup, training: MetaTraining, seen: Window) -> MetaTraining:
    """Records the episodes that ended in a window; others with parts left begin the next one."""
    over = _over(course, training._replace(lanes=seen.lanes))
    further = seen.lanes.done & ~over
    lengths = training.taken + seen.lanes.step
    order = training.episodes + jnp.cumsum(over) - 1
    where = jnp.where(over, order, course.episodes)
    zero = jnp.zeros_like(seen.lanes.step)
    return training._replace(
        lanes=seen.lanes._replace(
            step=jnp.where(further, zero, seen.lanes.step), done=seen.lanes.done & ~further
        ),
        part=training.part + further,
        taken=jnp.where(further, lengths, training.taken),
        lengths=training.lengths.at[where].set(lengths, mode="drop"),
        episodes=training.episodes + jnp.sum(over, dtype=jnp.int32),
    )


def _over(course: MetaTrainingSetup, training: MetaTraining) -> Array:
    """[E] bool, the lanes whose episodes have no part left."""
    return training.lanes.done & (training.part + 1 >= course.spec.num_tasks - 1)


def _shown(course: MetaTrainingSetup, training: MetaTraining, batch: Batch) -> Shown:
    """A window's examples, leaves [K, E, n, ...], labelled as its episodes number their classes."""
    shape = (course.curriculum.steps_cap, course.lanes, 2 * course.pair.old)
    x = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), batch.x)
    return Shown(x, *labelled(course.spec, batch.y.reshape(shape), training.classes))
