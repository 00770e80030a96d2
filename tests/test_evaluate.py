"""Continua: the task that is inferred, what counts as right, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax.errors import UserError
from cljax.evaluation import accuracy
from cljax.evaluation.accuracy import Evaluation, correct_fn, infer_task, predictors_of
from cljax.evaluation.accuracy import test_rows as laid_out
from cljax.streams.transforms import as_is
from cljax.types import Predictor

OWNER = np.arange(6) // 2 == np.arange(3)[:, None]
# The network's logits are the examples themselves.
LOGITS = Predictor(lambda state: (), lambda view, batch: batch.x)
TOLD = Predictor(
    lambda state: (),
    # Adapted models that answer with the second class of the task they are told of.
    lambda view, batch: jnp.asarray(OWNER)[batch.task] * jnp.arange(6)[None] * 1.0,
    needs_task_ids=True,
)


def count(evaluation, x, y, index, task, allowed=None):
    rows, mask, counts = laid_out(index, evaluations=[evaluation])
    data = accuracy.TestData(
        jnp.asarray(x), jnp.asarray(y), (), jnp.asarray(rows), jnp.asarray(mask), counts
    )
    correct = correct_fn(evaluation, {"logits": LOGITS, "adapted": TOLD}, as_is, OWNER)
    views = {name: () for name in predictors_of(evaluation)}
    allowed = np.ones(6, bool) if allowed is None else allowed
    return int(jax.jit(correct)(views, data, jnp.int32(task), jnp.asarray(allowed)))


def test_the_task_is_the_one_with_the_highest_mean_of_largest_scores():
    scores = jnp.array(
        [
            [1.0, 0.0, 3.0, 9.0, 0.0, 0.0],  # largest: 1, 9, 0
            [8.0, 0.0, 0.0, 1.0, 0.0, 2.0],  # largest: 8, 1, 2; the sums are 9, 10, 2
            [0.0, 5.0, 0.0, 4.0, 0.0, 0.0],
            [0.0, 5.0, 9.0, 0.0, 0.0, 0.0],  # masked: the last continuum is one example
        ]
    )
    mask = jnp.array([True, True, True, False])
    np.testing.assert_array_equal(infer_task(scores, mask, jnp.asarray(OWNER), 2), [1, 1, 0, 0])
    np.testing.assert_array_equal(infer_task(scores, mask, jnp.asarray(OWNER), 1)[:3], [1, 0, 0])
    # Votes would say otherwise: one for each of tasks 0 and 1.
    seen = jnp.asarray(OWNER & (np.arange(3) != 1)[:, None])
    np.testing.assert_array_equal(infer_task(scores, mask, seen, 2), [0, 0, 0, 0])


def test_the_first_of_equal_tasks_is_inferred():
    scores = jnp.array([[0.0, 2.0, 2.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(infer_task(scores, jnp.ones(2, bool), jnp.asarray(OWNER), 2), 0)


def test_raw_logits_are_averaged_not_sigmoids():
    scores = jnp.array([[9.0, 0.0, 4.0, 0.0, 0.0, 0.0], [-4.0, -9.0, 0.5, 0.0, -9.0, -9.0]])
    inferred = infer_task(scores, jnp.ones(2, bool), jnp.asarray(OWNER), 2)
    np.testing.assert_array_equal(inferred, 0)  # 5 against 4.5; of sigmoids task 1 has more
    assert jax.nn.sigmoid(scores[:, :2]).max(1).sum() < jax.nn.sigmoid(scores[:, 2:4]).max(1).sum()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7), st.integers(3, 40), st.integers(0, 10**6))
def test_counts_equal_a_plain_loop_over_continua(continuum, tests, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(tests, 6)).astype(np.float32), rng.integers(2, 4, tests)
    continuum = min(continuum, tests)
    kinds = {
        "class": Evaluation("e", "logits", "class", continuum),
        "task": Evaluation("e", "logits", "class", continuum, hit="task"),
        "adapted": Evaluation("e", "adapted", "class", continuum),
    }
    index = [np.arange(tests)] * 3
    shuffled = laid_out(index, evaluations=[kinds["class"]]).rows[1].reshape(-1)[:tests]
    expected = dict.fromkeys(kinds, 0)
    for start in range(0, tests, continuum):
        rows = shuffled[start : start + continuum]
        largest = [x[rows][:, own].max(axis=1).mean() for own in OWNER]
        task = int(np.argmax(largest))
        for row in rows:
            guess = np.flatnonzero(OWNER[task])[x[row, OWNER[task]].argmax()]
            expected["class"] += guess == y[row]
            expected["task"] += task == 1
            expected["adapted"] += task == 1 and y[row] == 3
    assert {kind: count(e, x, y, index, 1) for kind, e in kinds.items()} == expected


def test_without_a_continuum_predictors_are_told_the_true_task_where_they_need_it():
    x, y = np.eye(6, dtype=np.float32)[[5, 5, 0]], np.array([3, 5, 1])
    index = [np.arange(3)] * 3
    assert count(Evaluation("e", "adapted", "task"), x, y, index, 1, OWNER[1]) == 1
    assert count(Evaluation("e", "logits", "class"), x, y, index, 1) == 1
    assert count(Evaluation("e", "logits", "class", hit="task"), x, y, index, 2) == 2


def test_continua_divide_chunks_and_never_cross_tasks():
    index = [np.arange(1500), np.arange(700) + 1500]
    three, seven = (Evaluation("e", continuum=p) for p in (3, 7))
    rows, mask, counts = laid_out(index, evaluations=[three, seven, Evaluation()])
    assert rows.shape[2] % 21 == 0 and counts.tolist() == [1500, 700]
    for task, own in enumerate(index):
        flat = rows[task].reshape(-1)[mask[task].reshape(-1)]
        assert sorted(flat.tolist()) == own.tolist() and flat.tolist() != own.tolist()
    plain = laid_out(index).rows[0].reshape(-1)[:1500]
    np.testing.assert_array_equal(plain, index[0])  # no continuum: rows as they are


def test_continua_below_one_or_longer_than_a_task_are_refused():
    index = [np.arange(9), np.arange(4)]
    with pytest.raises(UserError, match="continuum is 0, but it must be"):
        laid_out(index, evaluations=[Evaluation(continuum=0)])
    with pytest.raises(UserError, match="continuum is 5, but task 1 has only 4 test examples"):
        laid_out(index, evaluations=[Evaluation(continuum=5)])
