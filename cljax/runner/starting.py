"""Going on from a finished run: what is checked, and the states that a run begins with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Sequence
from typing import Any

import jax
import numpy as np

from cljax.engine.start import Room, Start, grown
from cljax.errors import UserError, in_words
from cljax.evaluation.again import Trained
from cljax.method import Method
from cljax.objectives import name_of
from cljax.storage.checkpoint import host_copy
from cljax.streams.base import Stream
from cljax.types import Evaluation, Learner

__all__ = [
    "check_start", "digest_of_start", "judged_alike", "left_behind", "origin_of", "starting",
]  # fmt: skip


def check_start(start: Any, method: Method, seeds: Sequence[int]) -> Trained:
    """The states themselves; UserError unless a run of the method can begin with them."""
    if not isinstance(start, Trained) or start.method is None:
        raise UserError(
            f"start is {in_words(start)}, but it must be the state of a finished run, run.state, "
            "or the folder of one."
        )
    if start.method.name != method.name:
        raise UserError(
            f"The state to go on from is of {start.method.name}, but this run is of "
            f"{method.name}; go on with the same method."
        )
    missing = [seed for seed in seeds if seed not in start.seeds]
    if missing:
        raise UserError(
            f"The state to go on from has the seeds {', '.join(map(str, start.seeds))}, but not "
            f"{missing[0]}; leave seeds out, or give some of those."
        )
    return start


def starting(
    start: Trained,
    learner: Learner,
    num_tasks: int,
    num_classes: int,
    seeds: Sequence[int],
    evaluations: Sequence[Evaluation],
) -> Start:
    """What runs begin with, for the stream of what was learned and what is to be.

    Args:
      learner: of that stream. num_tasks, num_classes: of it.

    Raises:
      UserError: for states that do not fit, see ``cljax.engine.start.grown``.
    """
    learned, places = start.learned, [start.seeds.index(seed) for seed in seeds]
    room = Room((learned.num_tasks, num_tasks), (learned.num_classes, num_classes))
    states = [grown(start.states[i], learner, start.seeds[i], room) for i in places]
    known = {
        evaluation.name: matrices[places]
        for evaluation, matrices in start.matrices
        if evaluation in evaluations
    }
    return Start(learned.num_tasks, tuple(states), known)


def judged_alike(learned: Stream, stream: Stream) -> Stream:
    """The stream, judged on the scale of what was learned, whose scores stand in the same matrix.

    Raises:
      UserError: for another score.
    """
    was, now = learned.objective, stream.objective
    before, after = name_of(was.score), name_of(now.score)
    if before != after:
        raise UserError(
            f"The run to go on from was judged by {before}, but this one is judged by {after}, and "
            f"one matrix holds both; give the score {before}."
        )
    if was.variance is None or now.variance is None or len(was.variance) != len(now.variance):
        return stream
    return dataclasses.replace(stream, objective=now._replace(variance=was.variance))


def left_behind(learned: Stream, stream: Stream, asked: Container[str]) -> list[str]:
    """Notices of the loss and the weights of what was learned that the stream does not go on with.

    Args:
      asked: names of what the call itself says, which needs no notice.
    """
    was, now, notices = learned.objective, stream.objective, []
    before, after = name_of(was.loss), name_of(now.loss)
    own = was.loss != "cross-entropy" and was.loss != now.loss
    if own and "loss" not in asked:
        notices.append(
            f"The run to go on from minimised the loss {before}, this one minimises "
            f"{'another function' if after == before else after}: a loss is not taken over; give "
            "loss=... to go on with it."
        )
    if was.weights is not None and was.weights != now.weights and "weights" not in asked:
        here = "weighs them alike" if now.weights is None else "has other weights"
        notices.append(
            f"The run to go on from had weights of its classes, this one {here}: weights are not "
            "taken over; give weights=... to go on with them."
        )
    return notices


def digest_of_start(start: Trained, seeds: Sequence[int]) -> str:
    """SHA-256 over the states of these seeds and their accuracies until then."""
    total = hashlib.sha256()
    states = dict(zip(start.seeds, start.states, strict=True))
    known = [matrices for _, matrices in start.matrices]
    for seed in seeds:
        total.update(repr(seed).encode())
        own = (states[seed], [matrices[start.seeds.index(seed)] for matrices in known])
        for path, leaf in jax.tree_util.tree_leaves_with_path(own):
            array = host_copy(leaf)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            total.update(f"{name}{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def origin_of(start: Trained) -> dict[str, Any]:
    """Where a run goes on from, for its record."""
    return {
        "folder": None if start.folder is None else str(start.folder.resolve()),
        "stream": start.learned.name,
        "num_tasks": start.learned.num_tasks,
    }
