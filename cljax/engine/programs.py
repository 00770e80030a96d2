"""Segments: the compiled programs of a run, over one state pytree.

    carry = (state, losses, online_correct, health)
    segment(hyper, carry, start, stop):  for i in start..stop:  carry = step(carry, plan[i], key_i)

A segment is one compiled program with traced bounds, run again and again: any length gives the
same bits, so its length is free to follow the clock. ``whole`` is the same step in one
``lax.scan``, for use under a user's own ``vmap`` or ``grad``. Phases run through the same
programs with their own plans.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cljax import keys
from cljax.evaluation.accuracy import (
    MOST_CONFUSED,
    Evaluation,
    Tally,
    TestData,
    TestImages,
    predictors_of,
    tally_fn,
)
from cljax.evaluation.readout import readout_fn
from cljax.method import Method
from cljax.streams.base import Stream, Transform
from cljax.types import Array, Batch, Clock, Info, Learner, Phase, PyTree, Recall, StepPlan

__all__ = [
    "Batching", "Carry", "Hyper", "Inputs", "Programs", "TrainData", "arriving", "batch_of",
    "begin", "compile_programs", "device_plan", "leaf_names", "make_step", "put", "read_by",
    "train_data", "whole",
]  # fmt: skip

Axes = tuple[int | None, ...]  # of the arguments of a program: 0 by lanes, None shared
Step = Callable[[PyTree, "Row", "TrainData", Array, Array], tuple[PyTree, Info, Array]]


class Hyper(NamedTuple):
    """What differs between the lanes of a program."""

    method: Method  # its leaves are arrays, [] or [L]
    class_order: Any = None  # [labels] or [L, labels] int32, where each seed has its own order


class TrainData(NamedTuple):
    """Training images once, and the tables of the stream's transform."""

    x: Array  # [N, ...]
    y: Array  # [N] int32
    tables: PyTree


# Purposes of keys beside the draws' own.
_AUGMENT, _SELECT = zlib.crc32(b"augment"), zlib.crc32(b"select")
Row = StepPlan  # a row of a plan: the same fields without the leading axis


class Carry(NamedTuple):
    """What a segment passes on: the state, what each update of the plan reported, and health."""

    state: PyTree
    losses: Any  # [S] float32
    online_correct: Any  # [S] int32, new examples classified right before learning from them
    bad: Any  # [] int32, the first update whose loss was not finite; -1: none
    sound: Any  # [N] bool, whether each leaf of ``leaf_names`` is finite at the segment's end


class Programs(NamedTuple):
    """The compiled programs of a run; ``segments`` of phases by their names."""

    init: Callable[[Hyper, Array], PyTree]
    segments: dict[str, Callable[..., Carry]]  # (hyper, carry, plan, data, key, start, stop)
    views: dict[str, Callable[..., PyTree]]  # predictor -> (hyper, state) -> its view, copied
    # (hyper, views, tests, images, fits, data, task, allowed) -> Tally; see ``read_by``
    tallies: dict[str, Callable[..., Tally]]
    state: PyTree  # shapes and types of the state, with a leading axis where lanes are stacked


class Inputs(NamedTuple):
    """Arguments that programs are compiled for; of most only shapes and types are read.

    With lanes in one program ``hyper``, ``plans`` and ``fits`` have a leading axis of lanes, and
    so have ``tests`` where each lane has its own.
    """

    hyper: Hyper
    plans: Mapping[str, StepPlan]  # by program: "task", and the phases' names
    data: TrainData
    images: TestImages
    tests: tuple[Array, Array]  # rows of each task's tests, and their mask
    fits: PyTree  # rows of what readouts are fitted on; () where there are none
    own_tests: bool  # whether each lane has test rows of its own


class Batching(NamedTuple):
    """How L lanes are one program: ``vmap``, or ``map`` (one after another, the bits of one)."""

    lanes: int
    how: Literal["vmap", "map"] = "vmap"
    mesh: Mesh | None = None  # its axis "lane" splits them over devices


def train_data(stream: Stream) -> TrainData:
    """Puts a stream's training images on the device."""
    tables = jax.tree.map(jnp.asarray, stream.transform.tables)
    return TrainData(jnp.asarray(stream.train_x), jnp.asarray(stream.train_y, jnp.int32), tables)


def device_plan(plan: Any) -> Any:
    """Puts a plan, or a pytree of plans, on the device."""
    return jax.tree.map(jnp.asarray, plan)


def leaf_names(state: PyTree) -> list[str]:
    """Names of the leaves that ``Carry.sound`` speaks of: those of floating type."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _sound(state: PyTree) -> Array:
    floating = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floating], bool)


def batch_of(
    state: PyTree,
    row: Row,
    data: TrainData,
    transform: Transform,
    step: Array,
    *,
    recall: Recall | None = None,
    key: Array | None = None,
    stored: bool = False,
) -> Batch:
    """The batch that a row of a plan describes.

    Args:
      state: what ``recall`` reads.
      key: augments the examples, if the stream does; None leaves them as they are.
      stored: leave examples as the stream stores them.
    """
    x, y = data.x[row.index], data.y[row.index]
    if recall is not None:
        x, y = recall(state, x, y, row.index)
    if not stored:
        augment = transform.augment
        if key is not None and augment is not None:
            x = augment.apply(x, augment.draw(key, row.index.shape[0]))
        x = transform.apply(data.tables, x, row.task)
    clock = Clock(row.current, row.epoch, step, row.first_pass, row.last)
    return Batch(x, y, row.task, row.mask, row.index, clock)


def begin(state: PyTree, num_steps: int) -> Carry:
    """The carry at the beginning of a plan of ``num_steps`` updates, for one lane."""
    losses, correct = jnp.zeros(num_steps, jnp.float32), jnp.zeros(num_steps, jnp.int32)
    return Carry(state, losses, correct, jnp.asarray(-1, jnp.int32), _sound(state))


def make_step(
    source: Learner | Phase, transform: Transform, online: Callable[[PyTree, Batch], Array] | None
) -> Step:
    """``(state, row, data, key, i) -> (state, info, online_correct)``: one update of a plan."""
    stored, augmented, select = False, True, None
    if isinstance(source, Phase):
        stored, augmented, select = source.stored, source.augment, source.select

    def step(
        state: PyTree, row: Row, data: TrainData, key: Array, i: Array
    ) -> tuple[PyTree, Info, Array]:
        key = jax.random.fold_in(key, i)
        own = jax.random.fold_in(key, _AUGMENT) if augmented else None
        if select is not None:
            row = select(state, row, jax.random.fold_in(key, _SELECT))
        batch = batch_of(
            state, row, data, transform, i, recall=source.recall, key=own, stored=stored
        )
        correct = jnp.zeros((), jnp.int32) if online is None else online(state, batch)
        draws = source.draw(state, batch, key)
        state, info = source.update(state, batch, draws)
        return state, info, correct

    return step


def arriving(
    mask: Any, index: Any, task: Any, current: Any, first_pass: Any, *, boundaries: bool
) -> Any:
    """[..., B] bool, the examples of updates that come for the first time, not again.

    Later passes, remembered examples and those of earlier tasks come again. Host arrays or traced.

    Args:
      mask, index, task: [..., B]. current, first_pass: [...], of a ``StepPlan`` or a ``Batch``.
      boundaries: whether the stream says which task is being learned.
    """
    new = mask & (index >= 0) & first_pass[..., None]
    return new & (task == current[..., None]) if boundaries else new


def online_correct(learner: Learner, stream: Stream) -> Callable[[PyTree, Batch], Array]:
    """Counts a batch's new examples that the state classifies right before learning from them.

    The outputs that compete are those of the losses: the example's own task's in multi-head
    streams, else all.
    """
    names = [name for name in learner.predictors if name != "features"]
    predictor = learner.predictors["logits" if "logits" in names else names[0]]
    owner = jnp.asarray(stream.class_mask)

    def count(state: PyTree, batch: Batch) -> Array:
        scores = predictor.scores(predictor.prepare(state), batch)
        allowed = owner[batch.task] if stream.multi_head else jnp.any(owner, axis=0)[None]
        guess = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
        _, y, task, mask, index, clock = batch
        new = arriving(
            mask, index, task, clock.task, clock.first_pass, boundaries=stream.boundaries
        )
        return jnp.sum((guess == y) & new, dtype=jnp.int32)

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


class _Compiler(NamedTuple):
    """Compiles programs side by side in a pool of threads, for one lane or for several."""

    batching: Batching | None
    pool: Any

    def compiled(
        self, fn: Callable[..., Any], axes: Axes, *args: Any, donate: int | None = None
    ) -> Any:
        """A future of the program of ``fn``.

        Args:
          axes: which arguments have a leading axis of lanes (0) and which are shared (None).
        """
        # Lanes run in threads, one core each: XLA's own threads would only get in their way.
        cpu = jax.default_backend() == "cpu"
        options = {"xla_cpu_multi_thread_eigen": False} if cpu else {}
        program = fn if self.batching is None else _batched(fn, axes, self.batching)
        args = tuple(
            _placed(arg, axis, self.batching) for arg, axis in zip(args, axes, strict=True)
        )
        donated = () if donate is None else (donate,)
        lowered = jax.jit(program, donate_argnums=donated).lower(*args)
        return self.pool.submit(lowered.compile, compiler_options=options)

    def shape_of(self, fn: Callable[..., Any], axes: Axes, *args: Any) -> Any:
        """Shapes and types of what the program of ``fn`` returns."""
        return jax.eval_shape(fn if self.batching is None else jax.vmap(fn, in_axes=axes), *args)


def compile_programs(
    bind: Callable[[Method], Learner],
    stream: Stream,
    inputs: Inputs,
    evaluations: Sequence[Evaluation],
    *,
    online: bool,
    loop: str,
    batching: Batching | None,
    pool: Any,
) -> Programs:
    """Compiles everything a run calls, the programs side by side in ``pool``.

    Args:
      bind: makes the learner of a method, which is an argument of every program: one program
        serves all its real options.
      loop: ``scan`` compiles the loop; ``steps`` compiles one update and loops outside, for
        networks whose gradients are slow inside a compiled loop (convolutions on CPUs).
      batching: how lanes are advanced together by one program; None: one lane.
    """
    compiler = _Compiler(batching, pool)
    key = jax.eval_shape(lambda: keys.purpose(0, "shape"))
    if batching is not None:
        key = jax.ShapeDtypeStruct((batching.lanes,), key.dtype)

    def init(hyper: Hyper, key: Array) -> PyTree:
        return bind(hyper.method).init(key)

    state = compiler.shape_of(init, (0, 0), inputs.hyper, key)
    waiting = compiler.compiled(init, (0, 0), inputs.hyper, key)
    segments = _segments(compiler, bind, stream, inputs, state, key, online=online, loop=loop)
    views, shown = _views(compiler, bind, inputs.hyper, evaluations, state)
    tallies = {
        evaluation.name: _tally(
            compiler,
            bind,
            stream,
            inputs,
            evaluation,
            shown,
            confusion=evaluation is evaluations[0] and stream.num_classes <= MOST_CONFUSED,
        )
        for evaluation in evaluations
    }
    return Programs(
        waiting.result(),
        {name: finish() for name, finish in segments.items()},
        {name: future.result() for name, future in views.items()},
        {name: future.result() for name, future in tallies.items()},
        state,
    )


def _segments(
    compiler: _Compiler,
    bind: Callable[[Method], Learner],
    stream: Stream,
    inputs: Inputs,
    state: PyTree,
    key: Any,
    *,
    online: bool,
    loop: str,
) -> dict[str, Callable[[], Callable[..., Carry]]]:
    """By name, what waits for the program that advances a carry along a plan."""
    bound = jax.ShapeDtypeStruct((), jnp.int32)
    bounds = (bound, bound) if loop == "scan" else (bound,)

    def step_of(hyper: Hyper, name: str) -> Step:
        learner = bind(hyper.method)
        if name == "task":
            count = online_correct(learner, stream) if online else None
            return make_step(learner, stream.transform, count)
        phase = next(phase for phase in learner.phases if phase.name == name)
        return make_step(phase, stream.transform, None)

    def checked(carry: Carry) -> Carry:
        return carry._replace(sound=_sound(carry.state))

    def waiting(name: str, plan: StepPlan) -> Callable[[], Callable[..., Carry]]:
        def segment(
            hyper: Hyper, carry: Carry, plan: StepPlan, data: TrainData, key: Array, *bounds: Array
        ) -> Carry:
            step, data = step_of(hyper, name), _ordered(data, hyper)
            if loop == "steps":  # the check of all leaves is a program of its own
                return _single(step)(carry, plan, data, key, *bounds)
            return checked(_segment(step)(carry, plan, data, key, *bounds))

        num_steps = plan.current.shape[-1]
        carry = compiler.shape_of(lambda state: begin(state, num_steps), (0,), state)
        axes = (0, 0, 0, None, 0, *(None for _ in bounds))
        args = (inputs.hyper, carry, plan, inputs.data, key, *bounds)
        future = compiler.compiled(segment, axes, *args, donate=1)
        if loop == "scan":
            return future.result
        end = compiler.compiled(checked, (0,), carry, donate=0)
        return lambda: _stepped(future.result(), end.result())

    return {name: waiting(name, plan) for name, plan in inputs.plans.items()}


def _views(
    compiler: _Compiler,
    bind: Callable[[Method], Learner],
    hyper: Hyper,
    evaluations: Sequence[Evaluation],
    state: PyTree,
) -> tuple[dict[str, Any], dict[str, PyTree]]:
    """By predictor, a future of the program that copies its view of a state, and its shapes."""

    def view_of(name: str) -> Callable[[Hyper, PyTree], PyTree]:
        # A copy, because the next segment donates the state.
        return lambda hyper, state: jax.tree.map(
            jnp.copy, bind(hyper.method).predictors[name].prepare(state)
        )

    names = dict.fromkeys(n for evaluation in evaluations for n in predictors_of(evaluation))
    shown = {name: compiler.shape_of(view_of(name), (0, 0), hyper, state) for name in names}
    return {name: compiler.compiled(view_of(name), (0, 0), hyper, state) for name in names}, shown


def _tally(
    compiler: _Compiler,
    bind: Callable[[Method], Learner],
    stream: Stream,
    inputs: Inputs,
    evaluation: Evaluation,
    shown: Mapping[str, PyTree],
    *,
    confusion: bool,
) -> Any:
    """A future of the program that counts an evaluation's predictions of one task."""

    def tally(
        hyper: Hyper, views: PyTree, tests: tuple[Array, Array], images: TestImages,
        fits: PyTree, data: PyTree, task: Array, allowed: Array,
    ) -> Tally:  # fmt: skip
        predictors = bind(hyper.method).predictors
        made_of = (evaluation, predictors, stream.transform, stream.class_mask)
        asked = TestData(*_ordered(images, hyper), *tests, None)  # type: ignore
        if evaluation.readout is None:
            return tally_fn(*made_of, confusion=confusion)(views, asked, task, allowed)
        fitted = TestData(*_ordered(data, hyper), *fits, None)  # type: ignore
        return Tally(readout_fn(*made_of)(views, asked, fitted, task))

    axes = (0, 0, 0 if inputs.own_tests else None, None, 0, None, None, None)
    return compiler.compiled(
        tally, axes, inputs.hyper, {name: shown[name] for name in predictors_of(evaluation)},
        inputs.tests, inputs.images, *read_by(evaluation, inputs.fits, inputs.data),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct(stream.class_mask.shape[1:], bool),
    )  # fmt: skip


def _ordered(images: Any, hyper: Hyper) -> Any:
    """``TrainData`` or ``TestImages`` with outputs for labels, by the seed's order of classes."""
    order = hyper.class_order
    return images if order is None else images._replace(y=order[images.y])


def read_by(evaluation: Evaluation, fits: PyTree, data: TrainData) -> tuple[PyTree, PyTree]:
    """The arguments ``fits`` and ``data`` of an evaluation's program: () unless it reads them."""
    return ((), ()) if evaluation.readout is None else (fits, data)


def _sharding(batching: Batching | None, axis: int | None) -> NamedSharding | None:
    """Where an argument of a batched program lies: split by lanes (0), or on every device."""
    if batching is None or batching.mesh is None:
        return None
    return NamedSharding(batching.mesh, PartitionSpec("lane") if axis == 0 else PartitionSpec())


def put(value: Any, batching: Batching | None, axis: int | None = 0) -> Any:
    """An array on the device of its lane; over a mesh, as ``sharding`` says."""
    where = _sharding(batching, axis)
    if where is None:
        return jnp.asarray(value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(np.asarray(jax.random.key_data(value)), batching, axis)
        return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(value)))
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def _placed(arg: Any, axis: int | None, batching: Batching | None) -> Any:
    """Shapes of an argument, with the placing that the program is compiled for."""
    where = _sharding(batching, axis)
    if where is None:
        return arg
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), arg)


def _batched(fn: Callable[..., Any], axes: Axes, batching: Batching) -> Callable[..., Any]:
    if batching.how == "vmap":
        mapped = jax.vmap(fn, in_axes=axes)
    else:

        def mapped(*args: Any) -> Any:
            own = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

            def one(own: list[Any]) -> Any:
                rest = iter(own)
                return fn(
                    *(
                        next(rest) if axis == 0 else arg
                        for arg, axis in zip(args, axes, strict=True)
                    )
                )

            return jax.lax.map(one, own)

    if batching.mesh is None:
        return mapped
    specs = tuple(PartitionSpec("lane") if axis == 0 else PartitionSpec() for axis in axes)
    return jax.shard_map(
        mapped, mesh=batching.mesh, in_specs=specs, out_specs=PartitionSpec("lane"), check_vma=False
    )


def _single(step: Step) -> Callable[..., Carry]:
    def single(carry: Carry, plan: StepPlan, data: TrainData, key: Array, i: Array) -> Carry:
        row = jax.tree.map(lambda a: a[i], plan)
        state, info, correct = step(carry.state, row, data, key, i)
        loss = info.loss.astype(jnp.float32)
        bad = jnp.where((carry.bad < 0) & ~jnp.isfinite(loss), i, carry.bad)
        return Carry(
            state,
            carry.losses.at[i].set(loss),
            carry.online_correct.at[i].set(correct),
            bad,
            carry.sound,
        )

    return single


def _segment(step: Step) -> Callable[..., Carry]:
    single = _single(step)

    def segment(
        carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Array, stop: Array
    ) -> Carry:
        return jax.lax.fori_loop(start, stop, lambda i, c: single(c, plan, data, key, i), carry)

    return segment


def _stepped(
    program: Callable[..., Carry], checked: Callable[[Carry], Carry]
) -> Callable[..., Carry]:
    def segment(
        hyper: Hyper, carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Any,
        stop: Any,
    ) -> Carry:  # fmt: skip
        for i in range(int(start), int(stop)):
            carry = program(hyper, carry, plan, data, key, np.int32(i))
        return checked(carry)

    return segment
