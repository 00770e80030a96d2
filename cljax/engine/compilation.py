"""Compilation: the programs of a run, for one lane or for several, on one device or a mesh.

A program is lowered in the calling thread and compiled in a pool of threads, side by side with the
others. With lanes in one program its arguments have a leading axis of lanes, by ``vmap``, or by
``map``, which keeps the bits of a single lane; over a mesh that axis is split over the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cljax import keys
from cljax.engine.programs import (
    Carry,
    Hyper,
    Step,
    TrainData,
    begin,
    check_leaves,
    make_segment,
    make_step,
    make_update,
    online_correct,
)
from cljax.evaluation.accuracy import (
    MOST_CONFUSED,
    Evaluation,
    Tally,
    TestData,
    TestImages,
    predictors_of,
    tally_fn,
)
from cljax.evaluation.readouts import readout_fn
from cljax.method import Method
from cljax.objectives import score_fn
from cljax.streams.base import Stream
from cljax.types import Array, Learner, PyTree, StepPlan

__all__ = ["Batching", "Inputs", "Programs", "compile_programs", "put", "read_by"]

Axes = tuple[int | None, ...]  # of the arguments of a program: 0 by lanes, None shared


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
            confusion=evaluation is evaluations[0]
            and stream.num_classes <= MOST_CONFUSED
            and stream.objective.score == "accuracy",
        )
        for evaluation in evaluations
    }
    keys.purpose(0, "shape")  # its operations, which lanes need first, compile beside the programs
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

    def waiting(name: str, plan: StepPlan) -> Callable[[], Callable[..., Carry]]:
        def segment(
            hyper: Hyper, carry: Carry, plan: StepPlan, data: TrainData, key: Array, *bounds: Array
        ) -> Carry:
            step, data = step_of(hyper, name), _ordered(data, hyper)
            if loop == "steps":  # the check of all leaves is a program of its own
                return make_update(step)(carry, plan, data, key, *bounds)
            return check_leaves(make_segment(step)(carry, plan, data, key, *bounds))

        num_steps = plan.current.shape[-1]
        carry = compiler.shape_of(lambda state: begin(state, num_steps), (0,), state)
        axes = (0, 0, 0, None, 0, *(None for _ in bounds))
        args = (inputs.hyper, carry, plan, inputs.data, key, *bounds)
        future = compiler.compiled(segment, axes, *args, donate=1)
        if loop == "scan":
            return future.result
        end = compiler.compiled(check_leaves, (0,), carry, donate=0)
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
        tested = TestData(*_ordered(images, hyper), *tests, None)  # type: ignore
        if evaluation.readout is None:
            score = score_fn(stream.objective)
            tally = tally_fn(*made_of, confusion=confusion, score=score)
            return tally(views, tested, task, allowed)
        fitted = TestData(*_ordered(data, hyper), *fits, None)  # type: ignore
        return Tally(readout_fn(*made_of)(views, tested, fitted, task))

    axes = (0, 0, 0 if inputs.own_tests else None, None, 0, None, None, None)
    return compiler.compiled(
        tally, axes, inputs.hyper, {name: shown[name] for name in predictors_of(evaluation)},
        inputs.tests, inputs.images, *read_by(evaluation, inputs.fits, inputs.data),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct(stream.class_mask.shape[1:], bool),
    )  # fmt: skip


def read_by(evaluation: Evaluation, fits: PyTree, data: TrainData) -> tuple[PyTree, PyTree]:
    """The arguments ``fits`` and ``data`` of an evaluation's program: () unless it reads them."""
    return ((), ()) if evaluation.readout is None else (fits, data)


def _ordered(images: Any, hyper: Hyper) -> Any:
    """``TrainData`` or ``TestImages`` with outputs for labels, by the seed's order of classes."""
    order = hyper.class_order
    return images if order is None else images._replace(y=order[images.y])


def put(value: Any, batching: Batching | None, axis: int | None = 0) -> Any:
    """An array on the device of its lane; over a mesh, split by lanes (axis 0) or on every one."""
    where = _sharding(batching, axis)
    if where is None:
        return jax.device_put(value)  # jnp.asarray would compile a program for each shape
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(np.asarray(jax.random.key_data(value)), batching, axis)
        return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(value)))
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


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


def _sharding(batching: Batching | None, axis: int | None) -> NamedSharding | None:
    """Where an argument of a batched program lies: split by lanes (0), or on every device."""
    if batching is None or batching.mesh is None:
        return None
    return NamedSharding(batching.mesh, PartitionSpec("lane") if axis == 0 else PartitionSpec())


def _placed(arg: Any, axis: int | None, batching: Batching | None) -> Any:
    """Shapes of an argument, with the placing that the program is compiled for."""
    where = _sharding(batching, axis)
    if where is None:
        return arg
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), arg)


def _batched(fn: Callable[..., Any], axes: Axes, batching: Batching) -> Callable[..., Any]:
    """``fn`` of one lane as a function of all lanes."""
    if batching.how == "vmap":
        mapped = jax.vmap(fn, in_axes=axes)
    else:

        def mapped(*args: Any) -> Any:
            by_lane = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

            def lane(of_lane: list[Any]) -> Any:
                rest = iter(of_lane)
                pairs = zip(args, axes, strict=True)
                return fn(*(next(rest) if axis == 0 else arg for arg, axis in pairs))

            return jax.lax.map(lane, by_lane)

    if batching.mesh is None:
        return mapped
    specs = tuple(PartitionSpec("lane") if axis == 0 else PartitionSpec() for axis in axes)
    return jax.shard_map(
        mapped, mesh=batching.mesh, in_specs=specs, out_specs=PartitionSpec("lane"), check_vma=False
    )


def _stepped(
    program: Callable[..., Carry], check: Callable[[Carry], Carry]
) -> Callable[..., Carry]:
    """A segment as a loop outside the compiled ``program`` of one update."""

    def segment(
        hyper: Hyper, carry: Carry, plan: StepPlan, data: TrainData, key: Array, start: Any,
        stop: Any,
    ) -> Carry:  # fmt: skip
        for i in range(int(start), int(stop)):
            carry = program(hyper, carry, plan, data, key, np.int32(i))
        return check(carry)

    return segment
