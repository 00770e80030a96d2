"""``run.predict``: the run's own test accuracy, row by row; and what it cannot be asked."""

from __future__ import annotations

import dataclasses
import functools

import finished_support
import jax
import numpy as np
import pytest
import support
from finished_support import finished

import cljax
from cljax.errors import UserError
from cljax.evaluation import predict as predictions
from cljax.evaluation.accuracy import test_rows as laid_out
from cljax.runner.config import evaluation_of
from cljax.streams.base import of_seed
from cljax.types import Evaluation


def share_right(run, name, seed):
    """[T], by predictions of each task's test rows, in the order in which tests see them."""
    stream = of_seed(run.made.stream, seed)
    plain = run.made.stream  # its labels are those of predictions
    evaluation = next(e for e in map(evaluation_of, run.config["evaluations"]) if e.name == name)
    rows = laid_out(stream.test_index, evaluations=[evaluation])
    told = predictions.question(run.state, evaluation).told
    shares = []
    for task, (row, mask) in enumerate(zip(rows.rows, rows.mask, strict=True)):
        index = row[mask]
        asked = {"task": task} if told else {}
        found = run.predict(plain.test_x[index], seed, **asked, evaluation=name)
        assert found.scores.shape[0] == len(index) and found.labels.dtype == np.int32
        right = found.labels == plain.test_y[index]
        if evaluation.hit == "task":
            right = stream.class_mask[task][found.labels]
        shares.append(np.sum(right) / len(index))
    return np.array(shares)


# Answers of these are read as another's, which stays: a descendant's, or of the same predictor.
SLOW = {"agem", "cmaml", "der++", "fomaml", "iid", "joint", "la-er", "mas", "mer", "mir", "online",
        "online-ewc", "oracle", "rwalk", "sgd", "si", "sync-lamaml", "teacher"}  # fmt: skip
EVERY = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in finished_support.NAMES
]


@pytest.mark.parametrize("name", EVERY)
def test_the_share_of_right_predictions_is_the_accuracy_of_the_run(name):
    run = finished(name)
    for evaluation in run.config["evaluations"]:
        own = evaluation["name"]
        last = run.accuracy_matrix(own)[0, -1]
        np.testing.assert_array_equal(share_right(run, own, 3), last, err_msg=own)
    jax.clear_caches()  # of compiled predictors of all methods


@functools.cache
def rolled():
    """Two seeds on images that each task shows differently."""
    return cljax.run(cljax.Finetune(lr=0.1), support.stream(), seeds=2, batch_size=4, net="mlp:5")


@functools.cache
def plain():
    """A run on images that every task shows alike."""
    x = support.stream().test_x
    y = np.arange(len(x)) % 4
    stream = cljax.streams.from_arrays((x, y, y // 2), test=(x, y, y // 2), val=0.0, name="plain")
    return cljax.run(cljax.Finetune(lr=0.1), stream, seeds=1, batch_size=4, net="mlp:5")


def test_any_number_of_rows_gives_the_rows_of_one_batch():
    x = np.random.default_rng(0).integers(0, 256, (2500, 2, 3)).astype(np.uint8)
    whole = rolled().predict(x, task=1)
    assert whole.scores.shape == (2500, 4) and np.isfinite(whole.scores).all()
    for rows in (slice(0, 0), slice(0, 1), slice(3, 10), slice(1000, 2300)):
        part = rolled().predict(x[rows], task=1)
        np.testing.assert_allclose(part.scores, whole.scores[rows], atol=1e-6)
        assert part.scores.shape[1] == 4 and part.labels.shape == (len(x[rows]),)


def test_floats_in_the_unit_interval_are_the_same_images():
    x = np.arange(256, dtype=np.uint8)[:252].reshape(42, 2, 3)
    raw = rolled().predict(x, task=2)
    for same in (x / 255, (x / 255).astype(np.float32), x.astype(np.int64), x[..., None]):
        np.testing.assert_array_equal(rolled().predict(same, task=2).scores, raw.scores)


def test_seeds_answer_each_for_itself_and_the_first_by_default():
    x = support.stream().test_x
    first, second = (rolled().predict(x, seed, task=0).scores for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(rolled().predict(x, task=0).scores, first)


def test_labels_are_the_streams_where_each_seed_has_its_own_order_of_the_classes():
    x, y = np.repeat(np.eye(5), 8, axis=0)[:, :4].astype(np.float32), np.repeat(np.arange(5), 8)
    stream = cljax.streams.from_arrays((x, y, y // 2), test=(x, y, y // 2), val=0.0, name="own",
                                       scenario="class", dtype="float32")  # fmt: skip
    order = lambda seed: np.array([[3, 2, 1, 0, -1], [2, 3, -1, 1, 0]][seed], np.int32)
    classes = np.arange(4) // 2 == np.arange(2)[:, None]
    rows = lambda seed: tuple(
        np.flatnonzero(own[order(seed)[y]] & (order(seed)[y] >= 0)).astype(np.int32)
        for own in classes
    )
    stream = dataclasses.replace(
        stream, class_orders=order, class_mask=classes, test_index=(), subsets=rows, valid=rows
    )
    run = cljax.run(cljax.Finetune(lr=0.5), stream, seeds=2, batch_size=4, epochs=9, net="mlp:8")
    for seed, left_out in ((0, 4), (1, 2)):
        found = run.predict(x, seed)
        assert found.scores.shape == (40, 5) and not (found.labels == left_out).any()
        assert np.isneginf(found.scores[:, left_out]).all()
        np.testing.assert_array_equal(found.scores.argmax(axis=1), found.labels)
        right = [np.mean(found.labels[index] == y[index]) for index in rows(seed)]
        np.testing.assert_array_equal(right, run.accuracy_matrix()[seed, -1])
        assert np.mean(right) >= 0.5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: rolled().predict(x), "task must be given, because rolled shows an image diff"),
        (lambda x: rolled().predict(x, task=3), "rolled has 3 tasks, so it must be a number"),
        (lambda x: rolled().predict(x, task=True), "task is True, but rolled has 3 tasks"),
        (lambda x: plain().predict(x, task=0), "of this run tells no task; leave it out"),
        (lambda x: finished("hat").predict(x), "because the evaluation logits tells it"),
        (lambda x: rolled().predict(x, 2, task=0), "no final state of seed 2; .* seeds 0, 1"),
        (lambda x: rolled().predict(x, task=0, evaluation="mean"), "evaluation"),
        (lambda x: rolled().predict(x[:, :1], task=0), r"shape \[12, 1, 3\], but rolled stores"),
        (lambda x: rolled().predict(x[0], task=0), r"shape \[2, 3\].*such as x\[None\]"),
        (lambda x: rolled().predict(1.5 * x, task=0), "floats from .* in \\[0, 1\\]; divide"),
        (lambda x: rolled().predict(x * np.nan, task=0), "not finite"),
        (lambda x: rolled().predict(x.astype(int) - 300, task=0), "whole numbers from -"),
        (lambda x: rolled().predict(x > 9, task=0), "of type bool, but rolled stores uint8"),
        (lambda x: rolled().predict([[1], [1, 2]], task=0), "of type object"),
        (lambda x: rolled().predict("image.png", task=0), "of type <U9"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_one_sentence(ask, message):
    with pytest.raises(UserError, match=message) as raised:
        ask(support.stream().test_x)
    assert "\n" not in str(raised.value)


def test_a_readout_predicts_nothing():
    with pytest.raises(UserError, match="fits a linear layer to each task's training examples"):
        predictions.question(plain().state, Evaluation("probe", "features", "task",
                                                       readout=cljax.types.Readout()))  # fmt: skip


def test_variables_are_those_that_the_network_predicts_with():
    run = rolled()
    variables = run.variables(1)
    assert set(variables) == {"params"}
    x = run.made.stream.spec(4).show(run.made.stream.test_x, np.zeros(12, int))
    logits = cljax.nets.mlp(5)(4).apply(cljax.types.Variables(variables["params"], {}), x, False)[0]
    found = run.predict(run.made.stream.test_x, 1, task=0)
    np.testing.assert_allclose(found.scores, logits.logits, atol=1e-6)
    with pytest.raises(UserError, match="independent holds no variables of the network"):
        finished("independent").variables()
