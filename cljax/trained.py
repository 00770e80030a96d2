"""``evaluate``: another question to the final states of a run, without training it again.

    accuracy(seed, task) = share of the task's test images that the scenario counts as right

Source of the scenarios: van de Ven, Tolias, "Three scenarios for continual learning", 2019
(arXiv:1904.07734).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known
from cljax.evaluate import TestData, allowed_outputs, correct_fn, test_data
from cljax.streams.base import Stream, check_stream, of_seed
from cljax.types import Array, Evaluation, Learner, PyTree

__all__ = ["Scores", "Trained", "evaluate"]


class Trained(NamedTuple):
    """Final states of a run, one a seed, and what made them; ``run.state`` is one."""

    bind: Callable[[Stream], Learner]
    learned: Stream
    seeds: tuple[int, ...]
    states: tuple[PyTree, ...]


class Scores(NamedTuple):
    """Test accuracies of final states, as fractions."""

    accuracy: np.ndarray  # [S, T], of each seed on each task
    RA: float  # mean over seeds and tasks: retained accuracy


def evaluate(
    trained: Trained,
    stream: Stream,
    *,
    scenario: Literal["domain", "task", "class"],
    predictor: str | None = None,
) -> Scores:
    """Puts another question to the final states of a run, without training.

    Args:
      trained: ``run.state`` of a run that was made in this process.
      stream: where the test images come from; its examples and classes are those of the run's.
      scenario: what is asked of a test image. "task": which class, its task being told. "class":
        which class, among all. "domain": which of its task's classes, in their order, when any
        output may answer; for split digits, whether it is the first or the second of a pair.
      predictor: of the method; None: the one of its headline.

    Returns:
      Scores ``(accuracy [S, T], RA)``.

    Raises:
      UserError: for states that are not there, another kind of stream, an unknown name, or a
        predictor that must be told the task where the scenario does not tell it.
    """
    if not isinstance(trained, Trained):
        raise UserError(
            f"evaluate takes the state of a run, run.state, but got a {type(trained).__name__}."
        )
    check_known("scenario", scenario, ("domain", "task", "class"))
    check_stream(stream)
    shapes = lambda s: [s.num_classes, jax.tree.map(lambda a: a.shape[1:], s.train_x)]
    if shapes(stream) != shapes(trained.learned):
        raise UserError(
            f"The run learned {trained.learned.name}, whose examples or classes are not those of "
            f"{stream.name}; evaluate it on a stream of the same kind."
        )
    learner = trained.bind(stream)
    headline = learner.evaluations[0].predictor if learner.evaluations else None
    name = predictor or headline or next(n for n in learner.predictors if n != "features")
    check_known("predictor", name, learner.predictors)
    if learner.predictors[name].needs_task_ids and scenario != "task":
        raise UserError(
            f"The predictor {name} must be told the task, which the scenario {scenario} does not "
            "tell; ask for the scenario task."
        )
    hit = "place" if scenario == "domain" else "class"
    question = Evaluation(name, name, scenario, hit=hit)
    tasks = range(stream.num_tasks)
    allowed = [allowed_outputs(stream.class_mask, scenario, t, len(tasks)) for t in tasks]
    asked = correct_fn(question, learner.predictors, stream.transform, stream.class_mask)

    @jax.jit
    def correct(state: PyTree, data: TestData, allowed: Array) -> Array:  # [T]
        views = {name: learner.predictors[name].prepare(state)}
        count = lambda task: asked(views, data, task, allowed[task])
        return jax.lax.map(count, jnp.arange(len(tasks)))

    rows = []
    for seed, state in zip(trained.seeds, trained.states, strict=True):
        data = test_data(of_seed(stream, seed))
        rows.append(np.asarray(correct(state, data, jnp.asarray(allowed))) / data.counts)
    accuracy = np.stack(rows)
    return Scores(accuracy, float(accuracy.mean()))
