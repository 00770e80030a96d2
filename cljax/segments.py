"""Segments: the compiled programs of a run, over one state pytree.

    carry = (state, losses, online_correct)
    segment(carry, start, stop):  for i in start..stop:  carry = step(carry, plan[i], key_i)

A segment is one compiled program with traced bounds, run again and again: any length gives the
same bits, so its length is free to follow the clock. ``whole`` is the same step in one
``lax.scan``, for use under a user's own ``vmap`` or ``grad``. Phases run through the same
programs with their own plans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.evaluate import Evaluation, TestData, correct_fn
from cljax.streams.base import Stream, Transform
from cljax.types import Array, Batch, Clock, Info, Learner, Phase, PyTree, StepPlan

__all__ = ["Carry", "Programs", "TrainData", "batch_of", "begin", "compile_programs", "device_plan",
           "train_data", "whole"]  # fmt: skip

Step = Callable[[PyTree, "Row", "TrainData", Array, Array], tuple[PyTree, Info, Array]]


class TrainData(NamedTuple):
    """Training images once, and the tables of the stream's transform."""

    x: Array  # [N, ...]
    y: Array  # [N] int32
    tables: PyTree


Row = StepPlan  # a row of a plan: the same fields without the leading axis


class Carry(NamedTuple):
    """What a segment passes on: the state, and what each update of the plan reported."""

    state: PyTree
    losses: Any  # [S] float32
    online_correct: Any  # [S] int32, examples classified right before learning from them


class Programs(NamedTuple):
    """The compiled programs of a run; ``segments`` and ``draws`` of phases by their names."""

    init: Callable[[Array], PyTree]
    segments: dict[str, Callable[..., Carry]]  # (carry, plan, data, key, start, stop)
    views: dict[str, Callable[[PyTree], PyTree]]  # state -> what the evaluation reads, copied
    corrects: dict[str, Callable[..., Array]]  # (view, tests, task, allowed) -> [] int32


def train_data(stream: Stream) -> TrainData:
    """Puts a stream's training images on the device."""
    tables = jax.tree.map(jnp.asarray, stream.transform.tables)
    return TrainData(jnp.asarray(stream.train_x), jnp.asarray(stream.train_y, jnp.int32), tables)


def device_plan(plan: Any) -> Any:
    """Puts a plan, or a pytree of plans, on the device."""
    return jax.tree.map(jnp.asarray, plan)


def batch_of(row: Row, data: TrainData, transform: Transform, step: Array) -> Batch:
    """The batch that a row of a plan describes."""
    x = transform.apply(data.tables, data.x[row.index], row.task)
    clock = Clock(row.current, row.epoch, step, row.first_pass, row.last)
    return Batch(x, data.y[row.index], row.task, row.mask, row.index, clock)


def begin(state: PyTree, shape: tuple[int, ...]) -> Carry:
    """A carry for a plan of ``shape`` updates, ``(S,)`` or with a leading axis of seeds."""
    return Carry(state, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))


def make_step(
    source: Learner | Phase, transform: Transform, online: Callable[[PyTree, Batch], Array] | None
) -> Step:
    """``(state, row, data, key, i) -> (state, info, online_correct)``: one update of a plan."""

    def step(
        state: PyTree, row: Row, data: TrainData, key: Array, i: Array
    ) -> tuple[PyTree, Info, Array]:
        batch = batch_of(row, data, transform, i)
        correct = jnp.zeros((), jnp.int32) if online is None else online(state, batch)
        draws = source.draw(state, batch, jax.random.fold_in(key, i))
        state, info = source.update(state, batch, draws)
        return state, info, correct

    return step


def online_correct(learner: Learner, class_mask: np.ndarray) -> Callable[[PyTree, Batch], Array]:
    """Counts a batch's examples that the state classifies right before learning from them."""
    predictor = learner.predictors["logits"]
    allowed = jnp.asarray(class_mask.any(axis=0))

    def count(state: PyTree, batch: Batch) -> Array:
        scores = predictor.scores(predictor.prepare(state), batch)
        guess = jnp.argmax(jnp.where(allowed[None], scores, -jnp.inf), axis=-1)
        return jnp.sum((guess == batch.y) & batch.mask, dtype=jnp.int32)

    return count


def whole(
    learner: Learner, transform: Transform
) -> Callable[[PyTree, StepPlan, TrainData, Array], tuple[PyTree, Array]]:
    """A whole plan as one ``lax.scan``: ``(state, plan, data, key) -> (state, losses [S])``.

    A pure function of its arguments and of everything the learner closes over, so it goes under
    ``vmap`` over keys and hyper-parameters, and ``grad`` through a run.
    """
    step = make_step(learner, transform, None)

    def run(state: PyTree, plan: StepPlan, data: TrainData, key: Array) -> tuple[PyTree, Array]:
        def body(state: PyTree, i_row: tuple[Array, Row]) -> tuple[PyTree, Array]:
            i, row = i_row
            state, info, _ = step(state, row, data, key, i)
            return state, info.loss

        return jax.lax.scan(body, state, (jnp.arange(plan.current.shape[0]), plan))

    return run


def compile_programs(
    learner: Learner,
    stream: Stream,
    plans: dict[str, StepPlan],
    data: TrainData,
    tests: TestData,
    evaluations: tuple[Evaluation, ...],
    *,
    online: bool,
    loop: Literal["scan", "steps"],
    lanes: int | None,
    pool: Any,
) -> Programs:
    """Compiles everything a run calls, the programs side by side in ``pool``.

    Args:
      plans: device plans by program name, "task" and the phases'; only shapes are read, and with
        ``lanes`` they have a leading axis of that size.
      loop: ``scan`` compiles the loop; ``steps`` compiles one update and loops outside, for
        networks whose gradients are slow inside a compiled loop (convolutions on CPUs).
      lanes: size of a bundle of lanes advanced by one vmapped program, or None for one lane.
    """
    cpu = jax.default_backend() == "cpu"
    # Lanes run in threads, one core each: XLA's own threads would only get in their way.
    options = {"xla_cpu_multi_thread_eigen": False} if cpu else {}

    def batched(fn: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
        return fn if lanes is None else jax.vmap(fn, in_axes=axes)

    def compiled(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
        lowered = jax.jit(fn, donate_argnums=donate).lower(*args)
        return pool.submit(lowered.compile, compiler_options=options)

    key = keys.purpose(0, "shape")
    if lanes is not None:
        key = jnp.stack([key] * lanes)
    init = batched(learner.init, (0,))
    state = jax.eval_shape(init, key)
    bound = jax.ShapeDtypeStruct((), jnp.int32)
    sources: dict[str, Learner | Phase] = {"task": learner}
    sources |= {phase.name: phase for phase in learner.phases}
    count = online_correct(learner, stream.class_mask) if online else None

    segments = {}
    for name, plan in plans.items():
        step = make_step(sources[name], stream.transform, count if name == "task" else None)
        num_steps = plan.current.shape[-1]
        carry = Carry(
            state,
            jax.ShapeDtypeStruct((*_lead(lanes), num_steps), jnp.float32),
            jax.ShapeDtypeStruct((*_lead(lanes), num_steps), jnp.int32),
        )
        body = _segment(step) if loop == "scan" else _single(step)
        program = batched(body, (0, 0, None, 0, None, None)[: 6 if loop == "scan" else 5])
        bounds = (bound, bound) if loop == "scan" else (bound,)
        segments[name] = compiled(program, carry, plan, data, key, *bounds, donate=(0,))

    views, corrects = {}, {}
    allowed = jax.ShapeDtypeStruct(stream.class_mask.shape[1:], bool)
    for evaluation in evaluations:
        predictor = learner.predictors[evaluation.predictor]
        # A copy, because the next segment donates the state.
        view_fn = batched(lambda s, p=predictor: jax.tree.map(jnp.copy, p.prepare(s)), (0,))
        view = jax.eval_shape(view_fn, state)
        correct = batched(correct_fn(predictor, stream.transform), (0, None, None, None))
        views[evaluation.name] = compiled(view_fn, state)
        corrects[evaluation.name] = compiled(
            correct, view, tests._replace(counts=None), bound, allowed
        )
    init_program = compiled(init, key)

    loops = {name: future.result() for name, future in segments.items()}
    if loop == "steps":
        loops = {name: _stepped(program) for name, program in loops.items()}
    return Programs(
        init_program.result(),
        loops,
        {name: future.result() for name, future in views.items()},
        {name: future.result() for name, future in corrects.items()},
    )


def _lead(lanes: int | None) -> tuple[int, ...]:
    return () if lanes is None else (lanes,)


def _single(step: Step) -> Callable[..., Carry]:
    def single(carry: Carry, plan: StepPlan, data: TrainData, key: Array, i: Array) -> Carry:
        row = jax.tree.map(lambda a: a[i], plan)
        state, info, correct = step(carry.state, row, data, key, i)
        losses = carry.losses.at[i].set(info.loss.astype(jnp.float32))
        return Carry(state, losses, carry.online_correct.at[i].set(correct))

    return single


def _segment(step: Step) -> Callable[..., Carry]:
    single = _single(step)

    def segment(
        carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Array, stop: Array
    ) -> Carry:
        return jax.lax.fori_loop(start, stop, lambda i, c: single(c, plan, data, key, i), carry)

    return segment


def _stepped(program: Callable[..., Carry]) -> Callable[..., Carry]:
    def segment(
        carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Array, stop: Array
    ) -> Carry:
        for i in range(int(start), int(stop)):
            carry = program(carry, plan, data, key, np.int32(i))
        return carry

    return segment
