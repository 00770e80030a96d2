"""A stream with another loss, weights of its classes or a score."""

from __future__ import annotations

import dataclasses

import numpy as np

from cljax.errors import UserError
from cljax.objectives import Loss, Score, Weights, objective_of
from cljax.streams.base import Stream, check_stream

__all__ = ["with_objective"]


def with_objective(
    stream: Stream,
    *,
    loss: Loss | str | None = None,
    weights: Weights | None = None,
    score: Score | str | None = None,
) -> Stream:
    """The stream with another loss, weights of its classes or a score; see ``cljax.objectives``.

    What is None stays as the stream has it.

    Raises:
      UserError: as ``cljax.objectives.objective_of``, and for weights where each seed has its own
        order of the classes.
    """
    check_stream(stream)
    own = stream.objective
    if weights is not None and stream.class_orders is not None:
        raise UserError(
            f"weights are of classes, but the stream {stream.name} has an order of its classes for "
            "each seed; choose one order for all seeds, or leave weights out."
        )
    score = own.score if score is None and (loss is None or stream.labelled) else score
    made = objective_of(
        np.asarray(stream.train_y),
        stream.num_classes,
        loss=own.loss if loss is None else loss,
        weights=own.weights if weights is None else weights,
        score=score,
        heads=stream.multi_head,
    )
    return dataclasses.replace(stream, objective=made)
