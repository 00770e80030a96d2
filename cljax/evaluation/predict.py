"""``predict``: what final states say of new examples, by the evaluation that a run is judged by.

    for each batch of the examples, the last one padded and masked:
        scores = predictor.scores(view, transform(x))       # -inf where an output does not compete
        label  = argmax(scores)

Predictor, outputs that compete, and what it is told are those of the evaluation after the last
task, so that on a stream's own tests the share of right labels is the accuracy of the run. The
task is told, and must be given, where the evaluation tells it, or where the stream shows the same
image differently in each task. With a continuum of p, every p rows in a row share a task, which is
inferred; the last ones may be fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, in_words
from cljax.evaluation.accuracy import (
    Evaluation,
    TestImages,
    allowed_outputs,
    predictors_of,
    scores_fn,
    unlabelled,
)
from cljax.evaluation.again import Trained
from cljax.losses import as_targets
from cljax.streams.base import Stream, Transform
from cljax.types import Array, PyTree

__all__ = ["Prediction", "Question", "as_stored", "predict", "question", "seed_among"]

_MOST = 1024  # rows a batch; fewer rows make the next smaller power of two that holds them


class Prediction(NamedTuple):
    """What a run says of N examples. C classes, in the numbering of the stream's labels."""

    scores: np.ndarray  # [N, C], of the predictor; -inf for classes that did not compete
    # [N] int32, the class with the highest score; where targets are no classes, the outputs in
    # their shape, [N] or [N, C]
    labels: np.ndarray


class Question(NamedTuple):
    """An evaluation put to the states of a run: compiled once for every size of a batch."""

    evaluation: Evaluation
    learned: Stream
    seeds: tuple[int, ...]
    views: Callable[[int], Mapping[str, PyTree]]  # of the state of a seed
    # (views, x [B, ...] as stored, tables, mask [B], task [], allowed [C]) -> [B, C]
    scores: Callable[..., Array]
    told: str  # why the task must be given; "": it must not


def question(trained: Trained, evaluation: Evaluation) -> Question:
    """Puts an evaluation to final states; nothing is compiled before the first prediction.

    Raises:
      UserError: for an evaluation with a readout, which fits a layer to each task's own examples.
    """
    if evaluation.readout is not None:
        raise UserError(
            f"The evaluation {evaluation.name} fits a linear layer to each task's training "
            "examples, so it predicts nothing of others; choose another evaluation."
        )
    learned, learner = trained.learned, trained.bind(trained.learned)
    predictors = {name: learner.predictors[name] for name in predictors_of(evaluation)}
    prepare = jax.jit(lambda state: {name: p.prepare(state) for name, p in predictors.items()})
    scores_of = scores_fn(evaluation, predictors, learned.class_mask)
    states = dict(zip(trained.seeds, trained.states, strict=True))

    @functools.lru_cache(maxsize=1)  # means and adapted networks take a while
    def views(seed: int) -> Mapping[str, PyTree]:
        return prepare(states[seed])

    @jax.jit
    def scores(
        views: Mapping[str, PyTree], x: Array, tables: PyTree, mask: Array, task: Array,
        allowed: Array,
    ) -> Array:  # fmt: skip
        images = TestImages(x, task, tables)
        batch = unlabelled(images, learned.transform, jnp.arange(len(x)), mask, task)
        return scores_of(views, batch, task, allowed)

    told = ""
    if evaluation.scenario == "task":
        told = f"the evaluation {evaluation.name} tells it"
    elif predictors[evaluation.predictor].needs_task_ids and evaluation.continuum is None:
        told = f"the predictor {evaluation.predictor} needs it"
    elif _by_task(learned):
        told = f"{learned.name} shows an image differently in each task"
    return Question(evaluation, learned, trained.seeds, views, scores, told)


def predict(
    asked: Question, x: Any, *, seed: int | None = None, task: int | None = None
) -> Prediction:
    """The scores and labels of examples, by the final state of a seed.

    Args:
      x: [N, ...] as the stream stores its examples, see ``as_stored``.
      seed: of the run; None: its first one.
      task: number of the task that all of them belong to, where it must be told.

    Raises:
      UserError: for examples of another shape or type, an unknown seed or task, a task that is
        missing or that nothing asks for.
    """
    evaluation, learned = asked.evaluation, asked.learned
    rows = as_stored(x, learned)
    seed = seed_among(asked.seeds, seed)
    task = _task(asked, task)
    outputs = _outputs(learned, seed)
    allowed = allowed_outputs(learned.class_mask, evaluation.scenario, task, learned.num_tasks)
    size, views = _batch_size(len(rows), evaluation.continuum), asked.views(seed)
    tables = jax.tree.map(jnp.asarray, learned.transform.tables)
    parts = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        mask = np.arange(size) < len(part)
        # Padding repeats a row: zeros may be no example, such as of tokens.
        filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        result = asked.scores(views, filled, tables, mask, np.int32(task), allowed)
        parts.append(np.asarray(result)[: len(part)])
    none = np.zeros((0, learned.num_classes), jnp.result_type(float))
    scores = np.concatenate(parts) if parts else none
    if not learned.labelled:
        return Prediction(scores, np.asarray(as_targets(scores, learned.train_y[:1])))
    if outputs is None:
        return Prediction(scores, np.argmax(scores, axis=-1).astype(np.int32))
    labels = np.full(learned.num_classes, -1, np.int32)  # output -> label
    labels[outputs[outputs >= 0]] = np.flatnonzero(outputs >= 0)
    named = np.where(outputs[None] >= 0, scores[:, outputs], -np.inf)
    return Prediction(named, labels[np.argmax(scores, axis=-1)])


def seed_among(seeds: Sequence[int], seed: int | None) -> int:
    """The seed that is asked for, by default the first one.

    Raises:
      UserError: if there is none such.
    """
    if seed is not None and seed not in seeds:
        raise UserError(
            f"There is no final state of seed {seed!r}; those there are have the seeds "
            f"{', '.join(map(str, seeds))}."
        )
    return seeds[0] if seed is None else seed


def as_stored(x: Any, stream: Stream) -> np.ndarray:
    """Examples as a stream stores them.

    Args:
      x: [N, ...] of the shape of the stored ones, or of as many values where those are flat. Where
        the stream stores uint8, whole numbers from 0 to 255, or floats in [0, 1], which are rounded
        to the 256 levels. Where it stores floats, any numbers but uint8.

    Raises:
      UserError: for another shape or type, or values out of range.
    """
    kind, shape = stream.test_x.dtype, stream.test_x.shape[1:]
    try:
        x = np.asarray(x)
    except ValueError:
        x = np.empty(0, object)
    if x.dtype.kind not in "iuf":
        raise UserError(
            f"The examples are of type {x.dtype}, but {stream.name} stores {kind}; give an array "
            f"[N, {_listed(shape)}] of numbers."
        )
    given = x.shape[1:]
    flat = len(shape) == 1 and np.prod(given, dtype=int) == shape[0]
    if not x.ndim or not (given == shape or flat or _grey(given) == _grey(shape)):
        one = x.shape == shape or _grey(x.shape) == _grey(shape)
        raise UserError(
            f"The examples have the shape {list(x.shape)}, but {stream.name} stores examples of "
            f"shape {list(shape)}; give [N, {_listed(shape)}]"
            f"{', or images of as many values' if len(shape) == 1 else ''}"
            f"{', such as x[None]' if one else ''}."
        )
    return _of_type(x.reshape(len(x), *shape), stream)


def _of_type(x: np.ndarray, stream: Stream) -> np.ndarray:
    kind, name = stream.test_x.dtype, stream.name
    low, high = (x.min(), x.max()) if x.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("The examples hold values that are not finite; put them right first.")
    if kind.kind == "f":
        if x.dtype == np.uint8:
            raise UserError(
                f"The examples are uint8, but {name} stores {kind}, whose range is its own; give "
                "them as the stream stores its examples."
            )
        return x.astype(kind)
    if x.dtype.kind == "f":
        if kind != np.uint8 or stream.transform.name.startswith("packed"):
            raise UserError(
                f"The examples are {x.dtype}, but {name} stores {kind}; give them as the stream "
                "stores its examples."
            )
        if low < 0 or high > 1:
            raise UserError(
                f"The examples are floats from {low:g} to {high:g}, but images as floats are in "
                "[0, 1]; divide grey levels by 255, or give uint8."
            )
        return np.rint(x * 255).astype(np.uint8)
    limits = np.iinfo(kind)
    if low < limits.min or high > limits.max:
        raise UserError(
            f"The examples are whole numbers from {low} to {high}, but {name} stores {kind}; give "
            f"values from {limits.min} to {limits.max}."
        )
    return x.astype(kind)


def _grey(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of an image without the axis of a single channel."""
    return shape[:-1] if len(shape) == 3 and shape[-1] == 1 else shape


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _task(asked: Question, task: int | None) -> int:
    tasks, name = asked.learned.num_tasks, asked.learned.name
    if task is None and not asked.told:
        return 0
    which = f"a number from 0 to {tasks - 1}"
    if task is None:
        raise UserError(f"The task must be given, because {asked.told}; task is {which}.")
    if not asked.told:
        raise UserError(
            f"task is {task}, but the evaluation {asked.evaluation.name} of this run tells no "
            "task; leave it out."
        )
    whole = isinstance(task, (int, np.integer)) and not isinstance(task, bool)
    if not whole or not 0 <= task < tasks:
        raise UserError(
            f"task is {in_words(task)}, but {name} has {tasks} tasks, so it must be {which}."
        )
    return int(task)


def _outputs(stream: Stream, seed: int) -> np.ndarray | None:
    """The output of each label in a seed's order of the classes; None: labels are outputs."""
    if stream.class_orders is None:
        return None
    return np.asarray(stream.class_orders(seed), np.int32)


def _batch_size(rows: int, continuum: int | None) -> int:
    """Rows a batch: a power of two, of whole continua."""
    whole = 1 if continuum is None else continuum
    few = min(max(rows, 1), max(_MOST, whole))
    return whole * 2 ** int(np.ceil(np.log2(max(few / whole, 1))))


def _by_task(stream: Stream) -> bool:
    """Whether what the network sees of an example depends on its task."""
    transform: Transform = stream.transform
    x = jax.ShapeDtypeStruct((1, *stream.test_x.shape[1:]), stream.test_x.dtype)
    task = jax.ShapeDtypeStruct((1,), np.int32)
    # What is traced last depends on the task if any of its arguments does.
    traced = jax.make_jaxpr(transform.apply)(transform.tables, x, task)
    reached = {traced.jaxpr.invars[-1]}
    for step in traced.jaxpr.eqns:
        if any(not hasattr(v, "val") and v in reached for v in step.invars):
            reached.update(step.outvars)
    return any(not hasattr(v, "val") and v in reached for v in traced.jaxpr.outvars)
