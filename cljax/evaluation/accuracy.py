"""Accuracy on each task's test images, counted in one compiled program for all tasks.

    for each chunk of a task's test rows:
        scores  = predictor.scores(view, chunk)         # [B, C]
        guess   = argmax(scores within the allowed outputs)
        correct += sum(guess == y);   confusion[y, guess] += 1

The allowed outputs are the scenario: a task's own (``task``), those of the tasks seen so far
(``class``), or all of them (``domain``). With a continuum the task is inferred first, from p
examples in a row; the last ones of a task may be fewer. What is right is the class, the task
(``hit="task"``), or the place of the class within its task (``hit="place"``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as AnyArray
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError, check_known, check_positive
from cljax.streams.base import Stream, Transform, targets_on_device
from cljax.streams.orders import permutation
from cljax.types import Array, Batch, Clock, Evaluation, Predictor, PyTree

__all__ = [
    "MOST_CONFUSED", "Evaluation", "Tally", "TestData", "TestImages", "TestRows",
    "allowed_outputs", "check_infers", "correct_fn", "infer_task", "places", "predictors_of",
    "scores_fn", "tally_fn", "test_data", "test_images", "test_rows", "unlabelled", "wanted",
]  # fmt: skip

MOST_CONFUSED = 200  # classes of a stream whose confusion matrices are counted
_CHUNK = 1000  # test images a step: large enough for full speed, small enough for any memory


class TestImages(NamedTuple):
    """Test images once, and the tables of the stream's transform."""

    x: Array  # [M, ...]
    y: Array  # [M] int32, or targets
    tables: PyTree


class TestRows(NamedTuple):
    """Each task's test images, as rows of ``TestImages`` in chunks."""

    rows: Array  # [T, N, B] int32
    mask: Array  # [T, N, B] bool
    counts: np.ndarray  # [T] test images of each task, on the host


class TestData(NamedTuple):
    """The fields of both."""

    x: Array
    y: Array
    tables: PyTree
    rows: Array
    mask: Array
    counts: np.ndarray


class Tally(NamedTuple):
    """Test images of a task, counted."""

    correct: Array  # [] int32, those that come out right; or [] the sum of their scores
    confusion: Any = ()  # [C, C] int32, by their class and by the predicted one; (): not counted


def test_data(stream: Stream, evaluations: Sequence[Evaluation] = ()) -> TestData:
    """A stream's tests on the device, as ``correct_fn`` takes them.

    Args:
      evaluations: as ``test_rows`` takes them.

    Raises:
      UserError: for a stream with a class order for each seed; take ``of_seed`` of it.
    """
    if stream.class_orders is not None:
        raise UserError(
            f"The stream {stream.name} has a class order for each seed, so its tests are those of "
            "a seed; take cljax.streams.base.of_seed(stream, seed)."
        )
    rows, mask, counts = test_rows(stream.test_index, evaluations=evaluations)
    rows, mask = jax.device_put((rows, mask))
    return TestData(*test_images(stream), rows, mask, counts)


def test_images(stream: Stream) -> TestImages:
    """Puts a stream's test images on the device."""
    x, tables = jax.device_put((stream.test_x, stream.transform.tables))
    return TestImages(x, targets_on_device(stream.test_y), tables)


def test_rows(
    index: Sequence[np.ndarray],
    longest: int | None = None,
    evaluations: Sequence[Evaluation] = (),
) -> TestRows:
    """Lays out each task's rows for ``correct_fn``; unequal tasks are padded and masked.

    Args:
      index: T arrays of rows. longest: rows of the longest task anywhere; None: of these.
      evaluations: where any has a continuum, a task's rows are shuffled, the same way for every
        seed, and chunks hold whole continua.

    Raises:
      UserError: for a continuum below 1, or longer than a task.
    """
    counts = np.array([len(rows) for rows in index])
    longest = int(counts.max()) if longest is None else longest
    sizes = [e.continuum for e in evaluations if e.continuum is not None]
    for size in sizes:
        check_positive(continuum=size)
        if size > counts.min():
            raise UserError(
                f"The continuum is {size}, but task {int(counts.argmin())} has only "
                f"{counts.min()} test examples."
            )
    chunk = min(_CHUNK, longest)
    if sizes:
        whole = math.lcm(*sizes)
        chunk = max(chunk // whole, 1) * whole
    num = -(-longest // chunk)
    rows = np.zeros((len(counts), num * chunk), np.int32)
    mask = np.zeros(rows.shape, bool)
    for task, tests in enumerate(index):
        if sizes:
            tests = tests[permutation(len(tests), "continuum", task)]
        rows[task, : len(tests)], mask[task, : len(tests)] = tests, True
    shape = (len(counts), num, chunk)
    return TestRows(rows.reshape(shape), mask.reshape(shape), counts)  # type: ignore[arg-type]


def predictors_of(evaluation: Evaluation) -> tuple[str, ...]:
    """Names of the predictors whose views an evaluation reads."""
    if evaluation.continuum is None:
        return (evaluation.predictor,)
    return tuple(dict.fromkeys((evaluation.predictor, evaluation.infer)))


def check_infers(evaluation: Evaluation, predictors: Mapping[str, Predictor]) -> None:
    """Raises UserError where what infers a continuum's task must itself be told the task."""
    if evaluation.continuum is not None and predictors[evaluation.infer].needs_task_ids:
        raise UserError(
            f"The predictor {evaluation.infer} must be told the task, so it cannot infer that of a "
            "continuum; ask for the scenario task, or let another predictor infer."
        )


def correct_fn(*made_of: Any, **options: Any) -> Callable[..., Array]:
    """As ``tally_fn``, which takes the same arguments: ``correct`` alone."""
    tally = tally_fn(*made_of, **options)
    return lambda *args: tally(*args).correct


def tally_fn(
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    transform: Transform,
    class_mask: np.ndarray,
    *,
    confusion: bool = False,
    score: Callable[[Array, Array], Array] | None = None,
) -> Callable[..., Tally]:
    """``(views, data, task, allowed, learned=None) -> Tally`` of the tests of ``task``.

    ``views`` are the views of ``predictors_of(evaluation)`` by name; ``task`` [] int32 and
    ``allowed`` [C] bool are traced, so one program serves every entry. ``learned`` [] int32 is the
    row of ``class_mask`` that the tests belong to; None: tests are numbered as it is.

    Args:
      class_mask: [T, C] bool, of the stream that was learned, whatever tests are asked.
      confusion: count each class's predictions too.
      score: (scores [B, C], targets) -> [B], summed instead of right predictions.
    """
    scores_of = scores_fn(evaluation, predictors, class_mask)
    owner, place = jnp.asarray(class_mask), jnp.asarray(places(class_mask))

    def tally(
        views: Mapping[str, PyTree], data: TestData, task: Array, allowed: Array,
        learned: Array | None = None,
    ) -> Tally:  # fmt: skip
        learned = task if learned is None else learned

        def chunk(total: Tally, rows_mask: tuple[Array, Array]) -> tuple[Tally, None]:
            rows, mask = rows_mask
            batch = unlabelled(data, transform, rows, mask, task)
            scores = scores_of(views, batch, learned, allowed)
            if score is not None:
                own = jnp.where(mask, score(scores, data.y[rows]), 0.0)
                return total._replace(correct=total.correct + jnp.sum(own)), None
            guess = jnp.argmax(scores, axis=-1)
            if evaluation.hit == "class":
                hits = guess == data.y[rows]
            elif evaluation.hit == "place":
                hits = place[guess] == place[data.y[rows]]
            else:
                hits = owner[learned][guess]
            correct = total.correct + jnp.sum(hits & mask, dtype=jnp.int32)
            counts = total.confusion
            if confusion:
                counts = counts.at[data.y[rows], guess].add(mask.astype(jnp.int32))
            return Tally(correct, counts), None

        zero, classes = jnp.zeros((), jnp.int32), owner.shape[1]
        if score is not None:
            zero = jnp.zeros((), jnp.result_type(float))
        none = Tally(zero, jnp.zeros((classes, classes), jnp.int32) if confusion else ())
        return jax.lax.scan(chunk, none, (data.rows[task], data.mask[task]))[0]

    return tally


def scores_fn(
    evaluation: Evaluation, predictors: Mapping[str, Predictor], class_mask: np.ndarray
) -> Callable[[Mapping[str, PyTree], Batch, Array, Array], Array]:
    """``(views, batch, task, allowed) -> [B, C]``: scores, -inf for outputs that do not compete.

    Arguments as those of ``tally_fn``; ``task`` [] is told to predictors that need it, or with a
    continuum the inferred one in its stead.
    """
    predictor, owner = predictors[evaluation.predictor], jnp.asarray(class_mask)

    def scores(views: Mapping[str, PyTree], batch: Batch, task: Array, allowed: Array) -> Array:
        tasks = jnp.full(batch.mask.shape, task, jnp.int32)
        outputs = jnp.broadcast_to(allowed[None], (*tasks.shape, *allowed.shape))
        if evaluation.continuum is not None:
            result = predictors[evaluation.infer].scores(views[evaluation.infer], batch)
            tasks = infer_task(result, batch.mask, owner & allowed[None], evaluation.continuum)
            outputs = owner[tasks] & outputs
        if predictor.needs_task_ids:
            batch = batch._replace(task=tasks)
        result = predictor.scores(views[evaluation.predictor], batch)
        return jnp.where(outputs, result, -jnp.inf)

    return scores


def places(class_mask: np.ndarray) -> np.ndarray:
    """[C] int, each class's place among those of its task; its own number where tasks share any.

    Args:
      class_mask: [T, C] bool.
    """
    if (class_mask.sum(axis=0) > 1).any():
        return np.arange(class_mask.shape[1])
    within = np.cumsum(class_mask, axis=1) - 1
    return np.where(class_mask, within, 0).max(axis=0)


def unlabelled(
    data: TestData | TestImages, transform: Transform, rows: Array, mask: Array, task: Array | int
) -> Batch:
    """Examples as a predictor gets them: rows [B] seen as ``task``, which it is not told of."""
    x = transform.apply(data.tables, data.x[rows], jnp.full(rows.shape, task, jnp.int32))
    unknown, zero = jnp.full(rows.shape, -1, jnp.int32), jnp.zeros((), jnp.int32)
    clock = Clock(zero, zero, zero, jnp.zeros((), bool), jnp.zeros((), bool))
    return Batch(x, unknown, unknown, mask, unknown, clock)


def infer_task(
    scores: Float[AnyArray, "B C"],
    mask: Bool[AnyArray, " B"],
    outputs: Bool[AnyArray, "T C"],
    continuum: int,
) -> Int[AnyArray, " B"]:
    """The task of each continuum of ``continuum`` examples in a row, told to each of them.

    The task whose largest score, averaged over the continuum's valid examples, is highest; the
    first of equal ones (iTAML, arXiv:2003.11652, Algorithm 2).

    Args:
      scores: raw ones, logits. outputs: those of each task, none of a task not yet seen.
    """
    within = jnp.where(outputs[None], scores[:, None], -jnp.inf)
    largest = jnp.where(mask[:, None], jnp.max(within, axis=-1), 0.0)  # [B, T]
    summed = jnp.sum(largest.reshape(-1, continuum, outputs.shape[0]), axis=1)
    return jnp.repeat(jnp.argmax(summed, axis=-1).astype(jnp.int32), continuum)


def allowed_outputs(class_mask: np.ndarray, scenario: str, task: int, seen: int) -> Any:
    """[C] bool, the outputs among which a test image of ``task`` is classified.

    Args:
      class_mask: [T, C] bool.
      seen: tasks learned so far; at 0 the first task counts as seen.

    Raises:
      UserError: for an unknown scenario.
    """
    check_known("scenario", scenario, ("domain", "task", "class"))
    if scenario == "task":
        return class_mask[task]
    if scenario == "class":
        return np.any(class_mask[: max(seen, 1)], axis=0)
    return np.any(class_mask, axis=0)


def wanted(entries: str, row: int, num_tasks: int) -> range:
    """The tasks tested in ``row`` (0: before training, t + 1: after task t).

    Args:
      entries: ``diagonal-last`` (enough for RA, LA and BTI), ``lower`` (also forgetting and
        curves) or ``full`` (also forward transfer).

    Raises:
      UserError: for an unknown choice of entries.
    """
    check_known("entries", entries, ("diagonal-last", "lower", "full"))
    if row == num_tasks or entries == "full" or (entries == "lower" and row == 0):
        return range(num_tasks)
    return range(row) if entries == "lower" else range(max(row - 1, 0), row)
