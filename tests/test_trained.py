"""Other questions to final states: what each scenario counts, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.errors import UserError
from cljax.evaluation.accuracy import places
from cljax.evaluation.again import Trained, evaluate
from cljax.types import Evaluation, Info, Learner, Predictor


def stream(num=4, width=1):
    """Two tasks; an example is the output that its network answers with, then its class."""
    y = np.array([0, 0, 1, 1, 2, 2, 3, 3]) % num
    guess = np.array([0, 2, 1, 3, 1, 2, 0, 2])  # task 0: right, task 1's, right, task 1's; ...
    x, task = np.stack([guess] * width + [y], 1).astype(np.float32), np.arange(8) // 4
    return cljax.streams.from_arrays(
        (x, y, task), test=(x, y, task), val=0.25, name="answers", dtype="float32"
    )


def learner(told=False):
    one_hot = lambda view, batch: jnp.eye(4)[batch.x[:, 0].astype(int)] * 1.0
    scores = Predictor(lambda state: (), one_hot, needs_task_ids=told)
    update = lambda state, batch, draws: (state, Info(jnp.zeros(())))
    return Learner(lambda key: (), lambda s, b, k: (), update, {"logits": scores})


def trained(**options):
    return Trained(lambda stream: learner(**options), stream(), (0, 1), ((), ()))


def test_each_scenario_counts_what_it_says():
    ask = lambda scenario: evaluate(trained(), stream(), scenario=scenario)
    # class: of task 0 the first and third are right, of task 1 (answers 1, 2, 0, 2) the second.
    np.testing.assert_allclose(ask("class").accuracy, [[0.5, 0.25]] * 2)
    # domain: 2 counts as 0 and 3 as 1, so task 0 is all right; of task 1 the places are 1 0 0 0.
    np.testing.assert_allclose(ask("domain").accuracy, [[1.0, 0.25]] * 2)
    # task: an answer that is not the task's leaves its two outputs equal, and the first is taken.
    np.testing.assert_allclose(ask("task").accuracy, [[0.75, 0.5]] * 2)
    assert ask("class").RA == pytest.approx(0.375)


def test_places_are_within_the_task_or_the_classes_themselves_where_tasks_share_them():
    assert places(np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool)).tolist() == [0, 0, 1, 1]
    assert places(np.ones((3, 4), bool)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: evaluate((), stream(), scenario="task"), "evaluate takes the state of a run"),
        (lambda: evaluate(trained(), stream(), scenario="all"), "scenario"),
        (lambda: evaluate(trained(), stream(width=2), scenario="task"), "The run learned answers"),
        (lambda: evaluate(trained(), stream(), scenario="task", predictor="x"), "predictor"),
        (lambda: evaluate(trained(told=True), stream(), scenario="class"), "must be told the task"),
        (lambda: evaluate(trained(told=True), stream(), scenario="class", continuum=2),
         "cannot infer that of a continuum"),
        (lambda: cljax.run(cljax.Independent(), stream(), net="mlp:2", evaluations=[
            Evaluation("inferred", scenario="class", continuum=2)]),
         "cannot infer that of a continuum"),
        (lambda: cljax.Run({}, {}, resumed=True).state, "final states are not stored"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(ask, message):
    with pytest.raises(UserError, match=message):
        ask()


def test_a_told_predictor_answers_where_the_task_is_told():
    assert evaluate(trained(told=True), stream(), scenario="task").RA == pytest.approx(0.625)
