"""``evaluate``: another question to the final states of a run, without training it again.

    accuracy(seed, task) = share of the task's test images that the scenario counts as right

Where a run is judged by another score, that takes the place of right and wrong, as in the run.

Which outputs may answer is decided by what the network learned, never by the tests that are asked:
in the scenario "class" all learned classes compete, for whatever part of the tasks there are tests.

Source of the scenarios: van de Ven, Tolias, "Three scenarios for continual learning", 2019
(arXiv:1904.07734).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known, check_text, given
from cljax.evaluation.accuracy import (
    TestData,
    allowed_outputs,
    check_infers,
    correct_fn,
    predictors_of,
    test_data,
)
from cljax.evaluation.readouts import check_readouts
from cljax.method import Method
from cljax.objectives import name_of, score_fn
from cljax.streams.base import Stream, check_stream, encoder_of, of_seed
from cljax.types import Array, Evaluation, Learner, PyTree

__all__ = ["Scores", "Trained", "class_names_of", "evaluate"]


class Trained(NamedTuple):
    """Final states of a run, one a seed, and what made them; ``run.state`` is one."""

    bind: Callable[[Stream], Learner]
    learned: Stream  # its tasks, all of which the states have learned, and their classes
    seeds: tuple[int, ...]
    states: tuple[PyTree, ...]
    method: Method | None = None
    # Each evaluation of the run, and its accuracies [S, T+1, T]; NaN: not evaluated.
    matrices: tuple[tuple[Evaluation, np.ndarray], ...] = ()
    folder: Path | None = None  # from which alone it can be read back


class Scores(NamedTuple):
    """Test accuracies of final states, as fractions, or the run's own score of its tests."""

    accuracy: np.ndarray  # [S, T], of each seed on each task
    RA: float  # mean over seeds and tasks: retained accuracy
    score: str = "accuracy"  # what these are


def evaluate(
    trained: Trained,
    stream: Stream,
    *,
    scenario: Literal["domain", "task", "class"] | None = None,
    predictor: str | None = None,
    continuum: int | None = None,
) -> Scores:
    """Puts another question to the final states of a run, without training.

    Args:
      trained: ``run.state`` of a run that was made in this process.
      stream: where the test images come from: the stream that was learned, or another one with
        some of its tasks or classes, in any order. Its labels are the run's outputs. A task that
        is told is the learned one with its classes. Where several have them, it is the one of the
        same number, if the stream has the learned tasks in their order: the same classes of each,
        the same transform of each, and no two transforms alike or the same training images or
        tests of each.
      scenario: what is asked of a test image. "task": which class, its task being told. "class":
        which class, among all that were learned. "domain": which of its task's classes, in their
        order, when any output may answer; for split digits, whether it is the first or the second
        of a pair. None: the question of the run's headline, which gives the run's own numbers.
        Where targets are no classes, any output answers, so it is "domain" or None.
      predictor: of the method; None: the one of its headline.
      continuum: so many images in a row share a task, which is inferred among all that were
        learned (see ``Evaluation``); scenario "class" only. None: each image is asked alone.

    Returns:
      Scores ``(accuracy [S, T], RA, score)``, T the tasks of ``stream``.

    Raises:
      UserError: for states that are not there, another kind of stream, classes that were not
        learned, an unknown name, a task that cannot be told from others with its classes, or a
        predictor that must be told the task where the scenario does not tell it.
    """
    if not isinstance(trained, Trained):
        raise UserError(
            f"evaluate takes the state of a run, run.state, but got a {type(trained).__name__}."
        )
    if scenario is not None:
        check_known("scenario", scenario, ("domain", "task", "class"))
    check_stream(stream)
    learned = trained.learned
    _check_kind(stream, learned)
    learner = trained.bind(learned)
    check_text(**given(predictor=predictor))
    question = _question(trained, learner, scenario, predictor, continuum)
    _check_question(question, learner, learned)
    scenario = question.scenario  # type: ignore[assignment]
    told = scenario == "task" or question.continuum is not None
    asked = correct_fn(question, learner.predictors, stream.transform, learned.class_mask,
                       score=score_fn(learned.objective))  # fmt: skip

    @jax.jit
    def correct(state: PyTree, data: TestData, tasks: Array, allowed: Array) -> Array:  # [T]
        views = {n: learner.predictors[n].prepare(state) for n in predictors_of(question)}
        count = lambda i: asked(views, data, i, allowed[i], tasks[i])
        return jax.lax.map(count, jnp.arange(stream.num_tasks))

    rows = []
    for seed, state in zip(trained.seeds, trained.states, strict=True):
        own, tasks = of_seed(stream, seed), [0] * stream.num_tasks
        _check_tested(own)
        labels = _labels(stream, learned, seed) if learned.labelled else []
        if told:
            ordered = _in_order(own, of_seed(learned, seed), seed)
            tasks = [_learned_task(t, y, learned, ordered) for t, y in enumerate(labels)]
        allowed = [
            allowed_outputs(learned.class_mask, scenario, t, learned.num_tasks) for t in tasks
        ]
        data = test_data(own, [question])
        result = correct(state, data, jnp.asarray(tasks, jnp.int32), jnp.asarray(allowed))
        rows.append(np.asarray(result) / data.counts)
    accuracy = np.stack(rows)
    return Scores(accuracy, float(accuracy.mean()), name_of(learned.objective.score))


def _question(
    trained: Trained,
    learner: Learner,
    scenario: Literal["domain", "task", "class"] | None,
    predictor: str | None,
    continuum: int | None,
) -> Evaluation:
    """What is asked: by scenario, or what the run's headline asks."""
    if scenario is None:
        if not trained.matrices:
            raise UserError("These states do not say how their run was judged; name a scenario.")
        own = trained.matrices[0][0]
        if own.readout is not None:
            raise UserError(
                f"The headline of this run, {own.name}, fits a layer anew; name a scenario."
            )
        return own._replace(
            predictor=predictor or own.predictor, continuum=continuum or own.continuum
        )
    headline = learner.evaluations[0].predictor if learner.evaluations else None
    name = predictor or headline or next(n for n in learner.predictors if n != "features")
    hit = "place" if scenario == "domain" else "class"
    return Evaluation(name, name, scenario, continuum, hit=hit)


def _check_kind(stream: Stream, learned: Stream) -> None:
    """Raises UserError unless the network can see the examples of ``stream``."""
    shapes = lambda s: jax.tree.map(lambda a: (a.shape, a.dtype), s.example)
    if shapes(stream) != shapes(learned):
        raise UserError(
            f"The run learned {learned.name}, whose examples have another shape or type than those "
            f"of {stream.name}; evaluate it on a stream of the same kind."
        )
    if encoder_of(stream) != encoder_of(learned):
        raise UserError(
            f"The run learned {learned.name}, whose features are of another network than those of "
            f"{stream.name}; encode both by one network with the same weights."
        )
    targets = lambda s: "classes" if s.labelled else f"floats {list(s.test_y.shape[1:])}"
    if targets(stream) != targets(learned):
        raise UserError(
            f"The run learned {learned.name}, whose targets are {targets(learned)}, but those of "
            f"{stream.name} are {targets(stream)}; evaluate it on a stream of the same kind."
        )


def _check_tested(stream: Stream) -> None:
    """Raises UserError for a task without tests."""
    empty = [t for t, rows in enumerate(stream.test_index) if not len(rows)]
    if empty:
        raise UserError(f"Task {empty[0]} of {stream.name} has no tests; leave it out.")


def _check_question(question: Evaluation, learner: Learner, learned: Stream) -> None:
    name, scenario = question.predictor, question.scenario
    if not learned.labelled and scenario != "domain":
        raise UserError(
            f"The scenario is {scenario}, but the targets of this run are no classes, so all "
            "outputs answer in each task; leave it out, or choose domain."
        )
    score = name_of(learned.objective.score)
    if score != "accuracy" and question.continuum is not None:
        raise UserError(
            f"A continuum counts right predictions, but this run is judged by {score}; leave it "
            "out."
        )
    check_known("predictor", name, learner.predictors)
    check_readouts([question], learned)
    if question.continuum is not None:
        if scenario != "class":
            raise UserError(
                f"A continuum infers the task, but the scenario is {scenario}; choose class."
            )
        if (learned.class_mask.sum(axis=0) > 1).any():
            raise UserError(
                f"The tasks of {learned.name} share their classes, so outputs cannot tell them "
                "apart; a continuum needs tasks with classes of their own, as in split-mnist."
            )
        check_known("predictor", question.infer, learner.predictors)
        check_infers(question, learner.predictors)
    elif learner.predictors[name].needs_task_ids and scenario != "task":
        raise UserError(
            f"The predictor {name} must be told the task, which the scenario {scenario} does not "
            "tell; ask for the scenario task, or for a continuum."
        )


def _labels(stream: Stream, learned: Stream, seed: int) -> list[np.ndarray]:
    """The classes that each task of ``stream`` tests, as outputs of the run of a seed.

    Raises:
      UserError: for classes that were not learned or have other outputs.
    """
    here, there = (class_names_of(s, seed) for s in (stream, learned))
    stream, learned = (of_seed(s, seed) for s in (stream, learned))
    labels = [np.unique(stream.test_y[rows]) for rows in stream.test_index]
    tested = np.unique(np.concatenate(labels))
    known = np.flatnonzero(learned.class_mask.any(axis=0))
    strange = np.setdiff1d(tested, known)
    if strange.size:
        raise UserError(
            f"{stream.name} tests the class {strange[0]}, which the network never learned: "
            f"{learned.name} taught it {len(known)} classes, {_few(known)}."
        )
    same = stream.source == learned.source and np.array_equal(stream.train_y, learned.train_y)
    if not same and here is not None and there is not None:
        moved = [c for c in tested if here[c] != there[c]]
        if moved:
            raise UserError(
                f"Output {moved[0]} is the class {here[moved[0]]} in {stream.name}, but the "
                f"network learned it as {there[moved[0]]}; choose the run's order of the classes."
            )
    return labels


def class_names_of(stream: Stream, seed: int) -> np.ndarray | None:
    """What each output is called in the data; None where the stream does not say."""
    if stream.class_orders is not None:
        outputs = stream.class_orders(seed)
        return np.argsort(np.where(outputs < 0, len(outputs), outputs), kind="stable")
    if "class_names" in stream.manifest:
        return stream.manifest["class_names"]
    order, classes = stream.manifest.get("class_order"), np.arange(stream.num_classes)
    if order is None:
        return None
    by_task = np.concatenate([np.flatnonzero(own) for own in stream.class_mask])
    return order if np.array_equal(by_task, classes) else classes  # renumbered by task, or not


def _in_order(stream: Stream, learned: Stream, seed: int) -> bool:
    """Whether task t of both is the same; cheap, and never true by chance."""
    if stream is learned:
        return True
    here, there = (jax.tree.leaves(s.transform.tables) for s in (stream, learned))
    same = lambda a, b: len(a) == len(b) and all(map(np.array_equal, a, b))
    if not np.array_equal(stream.class_mask, learned.class_mask) or not same(here, there):
        return False
    if any(np.ndim(a) and len(np.unique(a, axis=0)) == learned.num_tasks for a in there):
        return True
    tests = [(s.test_x, s.test_y, *s.test_index) for s in (stream, learned)]
    trains = [(s.train_x, s.train_y, *s.subsets(seed)) for s in (stream, learned)]
    return same(*tests) or same(*trains)


def _learned_task(task: int, labels: np.ndarray, learned: Stream, ordered: bool) -> int:
    """The learned task whose classes hold those that a task tests.

    Args:
      ordered: the tasks are the learned ones in their order, so that the number tells them apart.
    """
    result = np.flatnonzero(learned.class_mask[:, labels].all(axis=1))
    if ordered and task in result:
        return task
    if not len(result):
        raise UserError(
            f"Task {task} tests the classes {_few(labels)}, which no learned task has together, so "
            "it cannot be told which of them they are; ask for tests of one learned task at a time."
        )
    if len(result) > 1:
        raise UserError(
            f"Task {task} tests the classes {_few(labels)}, which several learned tasks have, so "
            "it cannot be told which of them it is; evaluate on the whole stream that was learned."
        )
    return int(result[0])


def _few(values: np.ndarray) -> str:
    return ", ".join(str(v) for v in values[:8]) + (", ..." if len(values) > 8 else "")
