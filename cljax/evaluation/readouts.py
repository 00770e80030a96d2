"""Readout accuracy in an evaluation: a linear layer fitted anew on a state's frozen features.

    F, F' = predictor.scores(view, .)         the task's training and test examples, in chunks
    right = round(M readout(F, y, F', y'))    over the task's own classes, numbered from 0

The training examples are those that the task learns from, as its tests are seen: with the stream's
transform, without augmentation. Only the task that is asked for is fitted.

Symbols: M test examples of the task; ``readout`` is that of ``cljax.evaluation.readout``.

Source: "Learning to Remember from a Multi-Task Teacher", the readout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_finite, check_positive
from cljax.evaluation.accuracy import Evaluation, TestData, test_rows, unlabelled
from cljax.evaluation.linear import readout
from cljax.streams.base import Stream, Transform
from cljax.types import Array, Features, Predictor, PyTree

__all__ = ["check_readouts", "fitted_rows", "readout_fn"]


def readout_fn(
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    transform: Transform,
    class_mask: np.ndarray,
) -> Callable[..., Array]:
    """``(views, tests, fits, task) -> []``, how many test examples a fresh readout gets right.

    As ``cljax.evaluation.accuracy.correct_fn``; ``fits`` are training examples in the form of
    ``tests``.
    """
    name, options = evaluation.predictor, evaluation.readout
    assert options is not None
    predictor = predictors[name]
    # A task's own classes in order, then those of others, which take no part.
    own = class_mask.sum(axis=1)
    number = np.argsort(np.argsort(~class_mask, axis=1, kind="stable"), axis=1)
    widest = int(own.max())

    def correct(views: Mapping[str, PyTree], tests: TestData, fits: TestData, task: Array) -> Array:
        def features(data: TestData) -> Array:
            def chunk(_: None, rows_mask: tuple[Array, Array]) -> tuple[None, Array]:
                rows, mask = rows_mask
                batch = unlabelled(data, transform, rows, mask, task)
                if predictor.needs_task_ids:
                    batch = batch._replace(task=jnp.full(rows.shape, task, jnp.int32))
                return None, predictor.scores(views[name], batch)

            result = jax.lax.scan(chunk, None, (data.rows[task], data.mask[task]))[1]
            return result.reshape(-1, result.shape[-1])

        def labels(data: TestData) -> Array:
            return jnp.asarray(number)[task][data.y[data.rows[task]]].reshape(-1)

        def of_task(data: TestData) -> Features:
            return Features(features(data), labels(data), data.mask[task].reshape(-1))

        fitted = readout(
            of_task(fits), of_task(tests), num_classes=widest,
            outputs=jnp.arange(widest) < jnp.asarray(own)[task], steps=options.steps, lr=options.lr,
        )  # fmt: skip
        return jnp.round(fitted.accuracy * jnp.sum(tests.mask[task])).astype(jnp.int32)

    return correct


def fitted_rows(
    stream: Stream, seeds: Sequence[int], evaluations: Sequence[Evaluation]
) -> dict[int, tuple[np.ndarray, np.ndarray] | tuple[()]]:
    """Of each seed, rows and mask [T, N, B] of the examples that readouts are fitted on.

    ``()`` where no evaluation has a readout.
    """
    if all(evaluation.readout is None for evaluation in evaluations):
        return dict.fromkeys(seeds, ())
    subsets = {seed: stream.subsets(seed) for seed in set(seeds)}
    longest = max(len(rows) for index in subsets.values() for rows in index)
    laid = {seed: test_rows(index, longest) for seed, index in subsets.items()}
    return {seed: (own.rows, own.mask) for seed, own in laid.items()}  # type: ignore[misc]


def check_readouts(evaluations: Sequence[Evaluation], stream: Stream) -> None:
    """Checks what evaluations with a readout ask for.

    Raises:
      UserError: for counts below 1, a rate that is not positive, another scenario than "task", a
        continuum, or a task of one class; and for features that no readout reads.
    """
    for evaluation in evaluations:
        name, options = evaluation.name, evaluation.readout
        if options is None:
            if evaluation.predictor == "features":
                raise UserError(
                    f"The evaluation {name} takes the largest feature for a class; give it a "
                    "readout, or another predictor."
                )
            continue
        check_positive(steps=options.steps)
        check_finite(lr=options.lr)
        if options.lr <= 0:
            raise UserError(f"lr is {options.lr}, but a readout needs a positive rate.")
        if evaluation.scenario != "task" or evaluation.continuum or evaluation.hit != "class":
            raise UserError(
                f"The evaluation {name} has a readout of each task's own classes; its scenario "
                "must be 'task', without a continuum, and its hit 'class'."
            )
        own = stream.class_mask.sum(axis=1)
        if own.min() < 2:
            raise UserError(
                f"The evaluation {name} has a readout, but task {int(own.argmin())} of "
                f"{stream.name} has {own.min()} class; a readout tells at least 2 apart."
            )
