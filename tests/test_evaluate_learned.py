"""What the network learned decides which outputs may answer, whatever tests are asked."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.errors import UserError
from cljax.evaluation.again import Trained, evaluate
from cljax.method import logits_predictor
from cljax.methods.bic import Bias, Correction, corrected_predictor
from cljax.methods.nearest import nearest_mean
from cljax.streams.base import first_tasks, on_validation
from cljax.types import Evaluation, Info, Learner, Model, Output, Predictor, Variables

T, C, EACH = 3, 6, 12


def scores_of(num: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples that are the network's six outputs; the last classes win too often."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(C), num)
    x = rng.normal(size=(len(y), C)) + 1.5 * np.eye(C)[y] + 0.4 * np.arange(C)
    return x.astype(np.float32), y, y // 2


TRAIN, TEST = scores_of(4, 0), scores_of(EACH, 1)


def stream(tests=TEST, train=TRAIN, **options):
    options = {"scenario": "class", "val": 0.0, **options}
    return cljax.streams.from_arrays(train, test=tests, dtype="float32", **options)


def part(data, keep, tasks=None):
    """The examples of some tasks, renumbered from 0 unless ``tasks`` says how."""
    x, y, task = data
    rows = np.isin(task, keep)
    order = np.argsort(keep) if tasks is None else np.asarray(tasks)
    number = np.zeros(T, int)
    number[np.sort(keep)] = order
    return x[rows], y[rows], number[task[rows]]


def asked(keep, tasks=None, **options):
    return stream(part(TEST, keep, tasks), part(TRAIN, keep, tasks), **options)


def learner(predictors, evaluations=()) -> Learner:
    update = lambda state, batch, draws: (state, Info(jnp.zeros(())))
    return Learner(lambda key: (), lambda s, b, k: (), update, predictors, evaluations=evaluations)


LOGITS = Predictor(lambda state: (), lambda view, batch: batch.x)
TOLD = Predictor(
    lambda state: (),
    # Its answer says which task it was told of: the first class of that.
    lambda view, batch: jax.nn.one_hot(2 * batch.task, C),
    needs_task_ids=True,
)
PLAIN = Trained(lambda s: learner({"logits": LOGITS, "told": TOLD}), stream(), (0,), ((),))


def by_hand(keep, among=tuple(range(C))):
    """Accuracy on the tests of each task in ``keep``: the largest of the outputs ``among``."""
    x, y, task = TEST
    outputs = np.asarray(list(among))
    guess = outputs[x[:, outputs].argmax(axis=1)]
    return [np.mean(guess[task == t] == y[task == t]) for t in keep]


PARTS = {
    "the first two tasks": ([0, 1], None),
    "the last task alone": ([2], None),
    "the first task alone": ([0], None),
    "tasks without the one between": ([0, 2], None),
    "tasks in another order": ([0, 1, 2], [2, 0, 1]),
}


@pytest.mark.parametrize("name", PARTS)
def test_all_learned_classes_compete_for_tests_of(name):
    keep, numbers = PARTS[name]
    tested = asked(keep, numbers, num_classes=C)
    found = evaluate(PLAIN, tested, scenario="class").accuracy[0]
    expected = np.array(by_hand(keep))
    order = np.arange(len(keep)) if numbers is None else np.asarray(numbers)
    np.testing.assert_allclose(found[order], expected, rtol=1e-6)
    within = [by_hand([t], (2 * t, 2 * t + 1))[0] for t in keep]
    told = evaluate(PLAIN, tested, scenario="task").accuracy[0]
    np.testing.assert_allclose(told[order], within, rtol=1e-6)
    if 0 in keep:  # the last classes take some of the first ones' examples
        assert found[order][0] < within[0]


def test_a_stream_that_knows_only_its_own_classes_lets_the_others_compete_too():
    few = asked([0], None)
    assert few.num_classes == 2
    assert evaluate(PLAIN, few, scenario="class").RA == pytest.approx(by_hand([0])[0])


def test_tests_of_one_class_of_a_task_still_leave_its_other_class_allowed():
    x, y, task = TEST
    one = y == 2
    tested = stream((x[one], y[one], 0 * task[one]), (x[one], y[one], 0 * task[one]))
    right = np.mean(x[one][:, [2, 3]].argmax(axis=1) == 0)
    assert right < 1
    assert evaluate(PLAIN, tested, scenario="task").RA == pytest.approx(right)


def test_places_are_those_within_the_learned_task():
    x, y, task = TEST
    odd = y % 2 == 1  # second classes only: their place is the second, of the learned pair
    tested = stream((x[odd], y[odd], task[odd]), (x[odd], y[odd], task[odd]))
    guess = x[odd].argmax(axis=1) % 2
    expected = [np.mean(guess[task[odd] == t] == 1) for t in range(T)]
    found = evaluate(PLAIN, tested, scenario="domain").accuracy[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_predictor_is_told_the_task_that_was_learned_not_the_number_in_the_tests():
    tested = asked([1, 2], None, num_classes=C)  # tests 0 and 1 are of the learned tasks 1 and 2
    found = evaluate(PLAIN, tested, scenario="task", predictor="told").accuracy[0]
    np.testing.assert_allclose(found, [0.5, 0.5])  # the first class of the right pair


def test_tasks_that_share_classes_are_told_by_their_order_or_not_at_all():
    def shared(numbers):
        data = lambda x, y, task: (x, y % 2, np.asarray(numbers)[task])
        return stream(data(*TEST), data(*TRAIN), scenario="domain")

    told = Predictor(
        lambda state: (), lambda view, batch: jax.nn.one_hot(batch.task, 2), needs_task_ids=True
    )
    trained = Trained(lambda s: learner({"told": told}), shared([0, 1, 0]), (0,), ((),))
    ask = lambda s: evaluate(trained, s, scenario="task").accuracy[0]
    # The class is the number of the task that was told: right for half of the tests.
    np.testing.assert_allclose(ask(shared([0, 1, 0])), [0.5, 0.5])
    fewer = dataclasses.replace(
        shared([0, 1, 0]), test_index=tuple(rows[1:] for rows in shared([0, 1, 0]).test_index)
    )
    assert ask(fewer).size == 2  # other tests of the tasks that were learned
    for other in (shared([1, 0, 1]), shared([0, 0, 0])):
        with pytest.raises(UserError, match="which several learned tasks have"):
            ask(other)


def test_a_continuum_is_inferred_among_all_learned_tasks():
    ask = lambda s: evaluate(PLAIN, s, scenario="class", continuum=3).accuracy[0]
    whole = ask(stream())
    assert whole[0] < whole[2]  # task 2's outputs take continua of task 0
    # The tests are shuffled by their task's number, which is the same here.
    np.testing.assert_allclose(ask(asked([0], None)), whole[:1])
    np.testing.assert_allclose(ask(asked([0, 1], None)), whole[:2])


class Kept(NamedTuple):
    x: Any
    y: Any
    task: Any
    mask: Any


class State(NamedTuple):
    params: Any = ()
    model_state: Any = ()
    exemplars: Any = ()
    own: Any = ()


MODEL = Model(
    lambda key, x: Variables((), ()), lambda variables, x, train: (Output(x, x), ())
)  # the network's features and logits are the example


@pytest.mark.parametrize("keep", [[0], [1], [0, 1], [2, 0]])
def test_nearest_means_are_of_all_learned_classes(keep):
    x, y, task = TRAIN
    state = State(
        exemplars=Kept(jnp.asarray(x), jnp.asarray(y), jnp.asarray(task), jnp.ones(len(y), bool))
    )
    bind = lambda s: learner({"nearest-mean": nearest_mean(MODEL, s.spec(4))})
    trained = Trained(bind, stream(), (0,), (state,))
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    means = unit(np.stack([unit(x[y == c]).mean(axis=0) for c in range(C)]))
    tx, ty, tt = TEST
    right = (unit(tx) @ means.T).argmax(axis=1) == ty
    found = evaluate(trained, asked(sorted(keep), None), scenario="class").accuracy[0]
    np.testing.assert_allclose(found, [right[tt == t].mean() for t in sorted(keep)], rtol=1e-6)


def test_a_correction_stays_with_the_outputs_of_the_task_that_it_was_fitted_to():
    pair = Correction(jnp.array([1.0, 1.0, 0.5]), jnp.array([0.0, 0.3, -2.0]))
    bind = lambda s: learner({"logits": corrected_predictor(logits_predictor(MODEL), s.class_mask)})
    trained = Trained(bind, stream(), (0,), (State(own=Bias(pair, ())),))
    x, y, task = TEST
    z = np.asarray(pair.scale)[np.arange(C) // 2] * x + np.asarray(pair.shift)[np.arange(C) // 2]
    right = z.argmax(axis=1) == y
    found = evaluate(trained, asked([1, 2], None), scenario="class").accuracy[0]
    np.testing.assert_allclose(found, [right[task == t].mean() for t in (1, 2)], rtol=1e-6)


def with_orders(order) -> Any:
    """The stream whose seed s numbers class c as output ``order(s)[c]``."""
    return dataclasses.replace(stream(), class_orders=lambda seed: order(seed), test_index=())


def test_each_seed_is_asked_with_its_own_order_of_the_classes():
    rolled = lambda seed: np.roll(np.arange(C), seed).astype(np.int32)
    other = lambda seed: np.arange(C)[::-1].astype(np.int32)
    bind = lambda s: learner({"logits": LOGITS})
    trained = Trained(bind, with_orders(rolled), (0, 1), ((), ()))
    found = evaluate(trained, with_orders(rolled), scenario="class").accuracy
    x, y, _ = TEST
    for seed in (0, 1):
        output = rolled(seed)[y]
        right = x.argmax(axis=1) == output
        expected = [right[output // 2 == t].mean() for t in range(T)]
        np.testing.assert_allclose(found[seed], expected, rtol=1e-6)
    with pytest.raises(UserError, match="Output 0 is the class 5 in arrays, but the network"):
        evaluate(trained, with_orders(other), scenario="class")


def test_a_stream_of_one_seed_is_asked_of_that_seed():
    rolled = lambda seed: np.roll(np.arange(C), seed).astype(np.int32)
    learned = dataclasses.replace(
        stream(val=0.5), class_orders=rolled, test_index=(), name="rolled"
    )
    trained = Trained(lambda s: learner({"logits": LOGITS}), learned, (1,), ((),))
    held = dataclasses.replace(learned, valid=lambda seed: ([0, 1], [8, 9], [16, 17]))
    assert evaluate(trained, on_validation(held, 1), scenario="class").accuracy.shape == (1, T)


def renumbered(order, **options):
    manifest = {"class_order": np.asarray(order)}
    return dataclasses.replace(stream(**options), manifest=manifest, source="pictures")


def test_outputs_that_mean_other_classes_are_refused():
    learned = renumbered([3, 1, 2, 0, 4, 5])
    trained = PLAIN._replace(learned=learned)
    other = dataclasses.replace(
        renumbered([0, 1, 2, 3, 4, 5]), train_y=(learned.train_y + 1) % C, source="pictures"
    )
    with pytest.raises(UserError, match="Output 0 is the class 0 in arrays, .* learned it as 3"):
        evaluate(trained, other, scenario="class")
    assert evaluate(trained, renumbered([3, 1, 2, 0, 4, 5]), scenario="class").accuracy.size == T


def unlearned(shift, num):
    x, y, task = TEST
    return stream((x, y + shift, task), (x, y + shift, task), num_classes=num)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: evaluate(PLAIN, unlearned(1, 7), scenario="class"), "tests the class 6, which"),
        (lambda: evaluate(PLAIN, unlearned(9, 15), scenario="task"), "tests the class 9, which"),
        (lambda: evaluate(
            PLAIN._replace(learned=first_tasks(stream(), 2)), stream(),
            scenario="class"), "tests the class 4, which the network never learned: .* 4 classes"),
        (lambda: evaluate(
            PLAIN, stream((*TEST[:2], TEST[1] % 2), (*TRAIN[:2], TRAIN[1] % 2)), scenario="task"),
         "Task 0 tests the classes 0, 2, 4, which no learned task has together"),
        (lambda: evaluate(PLAIN, dataclasses.replace(stream(), test_index=(
            np.arange(3), np.arange(0), np.arange(3))), scenario="class"),
         "Task 1 of arrays has no tests"),
        (lambda: evaluate(PLAIN, stream(), scenario="task", continuum=2), "scenario is task"),
        (lambda: evaluate(PLAIN, stream(), scenario="class", continuum=99), "continuum is 99"),
        (lambda: evaluate(PLAIN, stream(), scenario="class", predictor="told"), "continuum"),
    ],
)  # fmt: skip
def test_what_was_not_learned_is_said_in_one_sentence(ask, message):
    with pytest.raises(UserError, match=message):
        ask()


def test_features_are_no_classes():
    trained = PLAIN._replace(bind=lambda s: learner({"features": LOGITS, "logits": LOGITS}))
    with pytest.raises(UserError, match="takes the largest feature for a class"):
        evaluate(trained, stream(), scenario="class", predictor="features")


@pytest.mark.slow
def test_a_run_that_forgot_is_as_bad_without_the_last_tasks_tests():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(C), 20)
    data = ((np.eye(C)[y] + 0.3 * rng.normal(size=(len(y), C))).astype(np.float32), y, y // 2)
    make = lambda d: cljax.streams.from_arrays(d, test=d, dtype="float32", num_classes=C)
    run = cljax.run(cljax.Finetune(lr=0.5), make(data), seeds=1, net="mlp:8", epochs=5)
    whole = evaluate(run.state, make(data), scenario="class").accuracy[0, :2]
    alone = evaluate(run.state, make(part(data, [0, 1])), scenario="class").accuracy[0]
    np.testing.assert_allclose(alone, whole)
    assert whole.mean() < 0.5


def test_the_default_question_is_that_of_the_methods_headline():
    evaluations = (Evaluation("mine", "second"),)
    second = LOGITS._replace(scores=lambda view, batch: -batch.x)
    trained = PLAIN._replace(
        bind=lambda s: learner({"logits": LOGITS, "second": second}, evaluations)
    )
    x, y, _ = TEST
    found = evaluate(trained, stream(), scenario="class").RA
    assert found == pytest.approx(np.mean(x.argmin(axis=1) == y))
