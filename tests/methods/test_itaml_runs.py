"""Runs of iTAML: its protocols, adapted models, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from itaml_support import EACH, OWNER, SIZE, TASKS, Plain, batch, spec

import cljax
from cljax.errors import UserError
from cljax.evaluation.accuracy import predictors_of
from cljax.methods.adapted import protocols
from cljax.methods.itaml import ITAML
from cljax.nets import mlp


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def stream(**changes):
    """Three tasks of two classes that lie apart, of unequal sizes."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (6, 2, 3))

    def images(sizes):
        y = np.repeat(np.arange(6), sizes).astype(np.int32)
        noise = rng.normal(0, 20, (len(y), 2, 3))
        return np.clip(centres[y] + noise, 0, 255).astype(np.uint8), y

    (x, y), (xt, yt) = images([20, 26, 14, 20, 31, 20]), images([9, 7, 8, 8, 5, 11])
    rows = [np.flatnonzero(y // 2 == t).astype(np.int32) for t in range(3)]
    tests = [np.flatnonzero(yt // 2 == t).astype(np.int32) for t in range(3)]
    held = [row[::5] for row in rows]
    own = [np.setdiff1d(row, out) for row, out in zip(rows, held, strict=True)]
    fields = {
        "train_x": x, "train_y": y, "test_x": xt, "test_y": yt, "class_mask": OWNER,
        "test_index": tuple(tests), "scenario": "class", "valid": lambda seed: tuple(held),
        "subsets": lambda seed: tuple(np.random.default_rng(seed).permutation(r) for r in own),
        "transform": cljax.streams.transforms.pixels,
    }  # fmt: skip
    return support.stream(**{**fields, **changes})


def test_a_run_reports_every_protocol():
    options = {"continuum": 4, "capacity": 24, "loss_outputs": "seen", "beta": 0.2}
    with jax.enable_x64(False):
        run = cljax.run(
            ITAML(lr=1.0, first_epochs=4, **options), stream(), seeds=2, epochs=30, batch_size=16,
            net=mlp(16),
        )  # fmt: skip
    cells = run.results["metrics"]
    for name in (
        "accuracy_task_agnostic",
        "accuracy_task_aware",
        "accuracy_no_update",
        "task_accuracy",
    ):
        assert cells[name]["mean"] > (0.9 if name == "task_accuracy" else 0.7), name
        sessions = cells[f"{name}_by_session"]
        assert len(sessions["mean"]) == 3 and np.shape(sessions["values"]) == (2, 3)
        np.testing.assert_allclose([seed[-1] for seed in sessions["values"]], cells[name]["values"])
    matrix, counts = (
        run.accuracy_matrix("task-agnostic"),
        run.results["evaluations"]["task-agnostic"],
    )
    counts = np.array(counts["test_counts"])
    expected = (matrix[:, -1] * counts).sum(axis=1) / counts.sum()
    np.testing.assert_allclose(run.metric("accuracy_task_agnostic"), expected)
    aware, inferred = run.accuracy_matrix("task-aware"), run.accuracy_matrix("task")
    assert (matrix <= np.minimum(aware, inferred) + 1e-12)[:, -1].all()


def test_protocols_judge_by_the_predictors_they_are_told():
    """iCaRL answers by the nearest mean; its logits take no part, not even in inferring tasks."""
    judged = protocols(4, predictor="nearest-mean", generic="nearest-mean")
    for evaluation in judged:
        assert set(predictors_of(evaluation)) == {"nearest-mean"}
    with jax.enable_x64(False):
        run = cljax.run(
            cljax.ICaRL(lr=0.3, capacity=24), stream(), seeds=1, epochs=10, batch_size=16,
            net=mlp(16), evaluations=judged,
        )  # fmt: skip
    assert run.metric("accuracy_no_update")[0] > 0.4


def test_tasks_may_bring_unequal_numbers_of_classes():
    source, task_of = stream(), np.array([0, 1, 1, 2, 2, 2])
    rows, tests = (
        tuple(np.flatnonzero(task_of[y] == t).astype(np.int32) for t in range(3))
        for y in (source.train_y, source.test_y)
    )
    uneven = stream(
        class_mask=task_of == np.arange(3)[:, None], test_index=tests, subsets=lambda seed: rows
    )
    options = {"continuum": 4, "capacity": 20, "loss_outputs": "seen", "beta": 0.2}
    with jax.enable_x64(False):
        run = cljax.run(ITAML(lr=1.0, **options), uneven, seeds=1, epochs=20, batch_size=16,
                        net=mlp(16))  # fmt: skip
    assert run.metric("accuracy_task_aware")[0] > 0.6 and run.metric("task_accuracy")[0] > 0.6
    kept = run.states[0].exemplars
    assert np.bincount(kept.y[kept.mask]).tolist() == [3] * 6


def test_adapted_models_equal_a_plain_loop_of_adam():
    """With every exemplar in one batch the order does not matter."""
    model = mlp(5, head_bias=False)(TASKS * EACH)
    problem = dataclasses.replace(stream()).spec(SIZE)
    problem = problem._replace(example=jax.ShapeDtypeStruct((2, 3, 1), jnp.float64))
    method = ITAML(capacity=24, adapt_batch=24, adapt_epochs=3, adapt_lr=0.05)
    made = method.bind(model, spec((6,)))
    state = made.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), state.exemplars.x.shape)
    y = jnp.arange(24) % 4  # none of task 2
    kept = state.exemplars._replace(
        x=x, y=y.astype(jnp.int32), task=(y // 2).astype(jnp.int32), mask=jnp.arange(24) < 20
    )
    state = state._replace(exemplars=kept)
    adapted = made.predictors["adapted"].prepare(state)
    plain = Plain(state.params, optax.adam(0.05), 1.0, mode="paper")
    for task in (0, 1):
        params, opt = state.params, optax.adam(0.05)
        opt_state = opt.init(params)
        rows = np.flatnonzero(np.asarray(kept.mask & (kept.task == task)))
        for _ in range(3):
            grads = jax.grad(plain.loss)(params, x[rows], y[rows], np.flatnonzero(OWNER[task]))
            updates, opt_state = opt.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        support.assert_close(jax.tree.map(lambda a, t=task: a[t], adapted.params), params, 1e-12)
    # A task without exemplars keeps the generic model, and so do all while there is one task.
    support.assert_close(jax.tree.map(lambda a: a[2], adapted.params), state.params, 0)
    alone = kept._replace(mask=kept.mask & (kept.task == 0))
    first = made.predictors["adapted"].prepare(state._replace(exemplars=alone))
    support.assert_close(jax.tree.map(lambda a: a[0], first.params), state.params, 0)
    told = batch(shape=(6,), tasks=(0, 1, 2, 1))
    scores = made.predictors["adapted"].scores(adapted, told)
    for row, task in enumerate((0, 1, 2, 1)):
        own = jax.tree.map(lambda a, t=task: a[t], adapted)
        expected = model.apply(own, told.x[row : row + 1], False)[0].logits[0]
        np.testing.assert_allclose(scores[row], expected, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"continuum": 0}, "continuum is 0, but it must be a whole number of at least 1"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"mode": "parallel"}, "mode 'parallel' is not known"),
        ({"loss_outputs": "al"}, "loss_outputs 'al' is not known"),
        ({"milestones": (5, 5)}, r"milestones are \[5, 5\], but they must be epochs from 1 on"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"capacity": 5}, "budget of exemplars is 5, but it must be at least 6"),
        ({"algebra": "one-gradient", "inner_steps": 2}, "algebra is one-gradient, but it holds"),
        ({"head_combine": "own", "mode": "released"}, "head_combine is own, but only in mode=pap"),
        ({"optimizer": "sdg"}, "optimizer 'sdg' is not known; did you mean sgd"),
        ({"exemplars": "herdin"}, "exemplar policy 'herdin' is not known"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ITAML(**options).bind(mlp(3)(6), spec())


def test_continua_that_do_not_fit_are_refused_in_a_sentence():
    with jax.enable_x64(False):
        with pytest.raises(
            UserError, match="continuum is 17, but task 0 has only 16 test examples"
        ):
            cljax.run(ITAML(continuum=17, capacity=12), stream(), seeds=1, net=mlp(3))
        with pytest.raises(UserError, match="each task brings classes of its own"):
            cljax.run(ITAML(capacity=12), support.stream(), seeds=1, net=mlp(3))
        with pytest.raises(UserError, match="give its Model a head"):
            bare = lambda outputs: mlp(3)(outputs)._replace(head=None)
            cljax.run(ITAML(capacity=12), stream(), seeds=1, net=bare)
