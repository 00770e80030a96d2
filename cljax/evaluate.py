"""Accuracy on each task's test images, counted in one compiled program for all tasks.

    for each chunk of a task's test rows:
        scores  = predictor.scores(view, chunk)         # [B, C]
        correct += sum(argmax(scores within the allowed outputs) == y)

The allowed outputs are the scenario: a task's own (``task``), those of the tasks seen so far
(``class``), or all of them (``domain``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import check_known
from cljax.streams.base import Stream, Transform
from cljax.types import Array, Batch, Clock, Predictor, PyTree

__all__ = [
    "Evaluation", "TestData", "TestImages", "TestRows", "allowed_outputs", "correct_fn",
    "test_data", "test_images", "test_rows", "wanted",
]  # fmt: skip

_CHUNK = 1000  # test images a step: large enough for full speed, small enough for any memory


class Evaluation(NamedTuple):
    """One way to fill an accuracy matrix: which predictor, over which outputs."""

    name: str = "logits"
    predictor: str = "logits"
    scenario: Literal["domain", "task", "class"] = "domain"


class TestImages(NamedTuple):
    """Test images once, and the tables of the stream's transform."""

    x: Array  # [M, ...]
    y: Array  # [M] int32
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


def test_data(stream: Stream) -> TestData:
    """A stream's tests on the device, as ``correct_fn`` takes them."""
    rows, mask, counts = test_rows(stream.test_index)
    return TestData(*test_images(stream), jnp.asarray(rows), jnp.asarray(mask), counts)


def test_images(stream: Stream) -> TestImages:
    """Puts a stream's test images on the device."""
    tables = jax.tree.map(jnp.asarray, stream.transform.tables)
    return TestImages(jnp.asarray(stream.test_x), jnp.asarray(stream.test_y, jnp.int32), tables)


def test_rows(index: Sequence[np.ndarray], longest: int | None = None) -> TestRows:
    """Lays out each task's rows for ``correct_fn``; unequal tasks are padded and masked.

    Args:
      index: T arrays of rows. longest: rows of the longest task anywhere; None: of these.
    """
    counts = np.array([len(rows) for rows in index])
    longest = int(counts.max()) if longest is None else longest
    chunk = min(_CHUNK, longest)
    num = -(-longest // chunk)
    rows = np.zeros((len(counts), num * chunk), np.int32)
    mask = np.zeros(rows.shape, bool)
    for task, own in enumerate(index):
        rows[task, : len(own)], mask[task, : len(own)] = own, True
    shape = (len(counts), num, chunk)
    return TestRows(rows.reshape(shape), mask.reshape(shape), counts)  # type: ignore[arg-type]


def correct_fn(predictor: Predictor, transform: Transform) -> Callable[..., Array]:
    """``(view, data, task, allowed) -> []``, how many test images of ``task`` come out right.

    ``task`` [] int32 and ``allowed`` [C] bool are traced, so one program serves every entry.
    """

    def correct(view: PyTree, data: TestData, task: Array, allowed: Array) -> Array:
        def chunk(total: Array, rows_mask: tuple[Array, Array]) -> tuple[Array, None]:
            rows, mask = rows_mask
            tasks = jnp.full(rows.shape, task, jnp.int32)
            x = transform.apply(data.tables, data.x[rows], tasks)
            unknown = jnp.full(rows.shape, -1, jnp.int32)
            zero = jnp.zeros((), jnp.int32)
            clock = Clock(zero, zero, zero, jnp.zeros((), bool), jnp.zeros((), bool))
            told = tasks if predictor.needs_task_ids else unknown
            batch = Batch(x, unknown, told, mask, unknown, clock)
            scores = jnp.where(allowed[None], predictor.scores(view, batch), -jnp.inf)
            hits = (jnp.argmax(scores, axis=-1) == data.y[rows]) & mask
            return total + jnp.sum(hits, dtype=jnp.int32), None

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.scan(chunk, zero, (data.rows[task], data.mask[task]))[0]

    return correct


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
