"""Task-incremental iCaRL against plain formulas, and the life of its exemplars."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax.errors import UserError
from cljax.evaluation.accuracy import Evaluation
from cljax.memory.selection import herd
from cljax.methods.icarl_ti import ICaRLTI
from cljax.streams.arrays import from_arrays
from cljax.types import Spec

OPTIONS = {"capacity": 30, "stage_size": 20, "lr": 0.05}
NC, C = support.NUM_CLASSES, 3 * support.NUM_CLASSES


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def bind(**options):
    return support.bind(ICaRLTI(**{**OPTIONS, **options}), multi_head=True)


def batches(num=6):
    """Three tasks, in each no example of one class and never two, whose herding is a tie."""
    data = support.batches(num, multi_head=True)
    place = jnp.arange(num)[:, None] % (num // 3) * support.BATCH + jnp.arange(support.BATCH)[None]
    labels = jnp.array([0, 1, 0, 1, 0, 1, 2, 1, 0, 1, 2, 2])[place]
    return data._replace(y=(data.task * NC + labels).astype(jnp.int32))


def run_task(learner, state, batches, rows, phase=True):
    """The updates of ``rows`` and the phase that follows them."""
    draw, update = jax.jit(learner.draw), jax.jit(learner.update)
    for i in rows:
        batch = support.at(batches, i)
        state, _ = update(state, batch, draw(state, batch, jax.random.key(i)))
    if phase:
        state, _ = jax.jit(learner.phases[0].update)(state, support.at(batches, rows[-1]), ())
    return state


def logits(params, x):
    first, last = (jax.tree.map(np.asarray, params[name]) for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    return hidden @ last["kernel"] + last["bias"]


def greedy(features, num):
    """Herding as the specification words it, one candidate at a time."""
    mean, taken = features.mean(axis=0), []
    for j in range(num):
        total = sum((features[i] for i in taken), np.zeros_like(mean))
        costs = [
            np.inf if i in taken else np.linalg.norm(mean - (f + total) / (j + 1))
            for i, f in enumerate(features)
        ]
        taken.append(int(np.argmin(costs)))
    return taken


@pytest.mark.parametrize("valid", [1, 4, 9])
def test_herding_equals_a_plain_loop(valid):
    rng = np.random.default_rng(valid)
    features = rng.normal(size=(9, 3))
    mask = np.zeros(9, bool)
    mask[rng.permutation(9)[:valid]] = True
    num = min(5, valid)
    poisoned = np.where(mask[:, None], features, 1e6)
    ours = herd(jnp.asarray(poisoned), jnp.asarray(mask), 5)[:num]
    rows = np.flatnonzero(mask)
    assert ours.tolist() == rows[greedy(features[mask], num)].tolist()


@pytest.mark.parametrize("masked", [0, 1])
def test_an_update_equals_the_formulas(masked):
    """Two glances in task 2: cross-entropy over its head, distillation over two old ones."""
    learner, data = bind(glances=2, strength=0.7, lr=0.3, clip_norm=0.8), batches()
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1])
    state = run_task(learner, state, data, [2, 3])
    # Drifted, so that there is something to distil, with one class that lost its exemplars.
    state = state._replace(params=jax.tree.map(lambda a: 1.3 * a + 0.01, state.params))
    count = state.exemplars.count.at[1].set(0)
    state = state._replace(exemplars=state.exemplars._replace(count=count))
    batch = support.at(data, 4)
    batch = batch._replace(mask=batch.mask.at[0].set(not masked))
    draws = learner.draw(state, batch, jax.random.key(9))
    after, info = learner.update(state, batch, draws)

    def net(params, x):
        hidden = jnp.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None], 0)
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]

    def objective(params, x, exlog):
        rows = slice(masked, None)
        own = net(params, batch.x[rows])[:, 2 * NC :]
        y = batch.y[rows] - 2 * NC
        loss = -jnp.mean(jax.nn.log_softmax(own)[jnp.arange(4 - masked), y])
        for p in range(2):
            for c in range(p * NC, (p + 1) * NC):
                if count[c] > 0:
                    old = jax.nn.log_softmax(exlog[c, p * NC : (p + 1) * NC])
                    new = jax.nn.log_softmax(net(params, x[c][None])[0, p * NC : (p + 1) * NC])
                    loss += 0.7 / NC * jnp.sum(jnp.exp(old) * (old - new))
        return loss

    params, losses = state.params, []
    for g in range(2):
        loss, grads = jax.value_and_grad(objective)(params, draws.x[g], draws.exlog[g])
        norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
        scale = min(1, 0.8 / (norm + 1e-6))
        params = jax.tree.map(lambda p, d, s=scale: p - 0.3 * s * d, params, grads)
        losses.append(loss)
    support.assert_close(after.params, params, 1e-12)
    np.testing.assert_allclose(info.loss, np.mean(losses), atol=1e-12)
    assert float(info.metrics["distillation"]) > 1e-3


def test_draws_are_exemplars_of_their_classes():
    learner, data = bind(glances=50), batches()
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1])
    draws = learner.draw(state, support.at(data, 2), jax.random.key(1))
    x, exlog, count = state.exemplars
    np.testing.assert_array_equal(draws.mask, np.broadcast_to(count > 0, (50, C)))
    for c in np.flatnonzero(count):
        slots = {tuple(np.asarray(row)): i for i, row in enumerate(x[c, : count[c]])}
        drawn = [slots[tuple(row)] for row in np.asarray(draws.x[:, c])]
        assert set(drawn) == set(range(int(count[c])))
        np.testing.assert_array_equal(draws.exlog[:, c], exlog[c, jnp.array(drawn)])


def test_before_the_first_task_ends_it_is_plain_descent():
    learner, batch = bind(), support.at(batches(), 0)
    state = learner.init(jax.random.key(0))
    draws = learner.draw(state, batch, jax.random.key(1))
    assert not draws.mask.any()
    after, info = learner.update(state, batch, draws)
    assert float(info.metrics["distillation"]) == 0
    poisoned = draws._replace(x=draws.x + 9.0, exlog=draws.exlog - 5.0)
    support.assert_close(learner.update(state, batch, poisoned)[0], after, 1e-14)


def test_distillation_is_zero_right_after_the_logits_are_refreshed():
    learner, data = bind(), batches()
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1])
    distilled = []
    for i in (2, 3):
        batch = support.at(data, i)
        draws = learner.draw(state, batch, jax.random.key(i))
        assert draws.mask.any()
        state, info = learner.update(state, batch, draws)
        distilled.append(float(info.metrics["distillation"]))
    assert abs(distilled[0]) < 1e-14 < 1e-9 < distilled[1]


def test_the_task_end_herds_each_class_and_stores_logits():
    learner, data = bind(), batches(9)
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1, 2], phase=False)
    staged_x, staged_y = np.asarray(data.x[:3]).reshape(12, -1), np.asarray(data.y[:3]).ravel()
    np.testing.assert_array_equal(state.stage.x[:12], staged_x)
    assert int(state.stage.count) == 12
    phase = learner.phases[0]
    after, _ = phase.update(state, support.at(data, 2), phase.draw(state, None, None))
    assert int(after.stage.count) == 0
    x, exlog, count = after.exemplars
    assert x.shape == (C, 7, 6) and exlog.shape == (C, 7, C)
    for c in range(C):
        rows = np.flatnonzero(staged_y == c)
        assert int(count[c]) == min(7, len(rows))
        features = logits(state.params, staged_x[rows])[:, :NC]
        chosen = rows[greedy(features, min(7, len(rows)))] if len(rows) else rows
        np.testing.assert_array_equal(x[c, : count[c]], staged_x[chosen])
        np.testing.assert_allclose(
            exlog[c, : count[c]], logits(state.params, staged_x[chosen]), atol=1e-13
        )
    # The next task's end keeps the first of these and renews their logits.
    later = run_task(learner, after, data, [3, 4, 5])
    kept = np.minimum(count[:NC], 30 // (2 * NC))
    np.testing.assert_array_equal(later.exemplars.count[:NC], kept)
    np.testing.assert_array_equal(later.exemplars.x[:NC], x[:NC])
    fresh = logits(later.params, np.asarray(x[0, :1]))
    np.testing.assert_allclose(later.exemplars.exlog[0, :1], fresh, atol=1e-13)


def test_exemplars_of_a_class_follow_the_budget():
    """200 exemplars, five classes a task: the counts of section 5 of the specification."""
    num_tasks, num = 14, 45
    owner = np.arange(5 * num_tasks) // 5
    example = jax.ShapeDtypeStruct((2,), jnp.result_type(float))
    problem = Spec(example, owner == np.arange(num_tasks)[:, None], 4, True)
    model = cljax.nets.mlp(3)(problem.num_classes)
    learner = ICaRLTI(stage_size=5 * num).bind(model, problem)
    state, phase = learner.init(jax.random.key(0)), jax.jit(learner.phases[0].update)
    batch, counts = support.at(batches(), 0), []
    for task in range(num_tasks):
        x = jax.random.normal(jax.random.key(task), (5 * num, 2), float)
        y = jnp.repeat(jnp.arange(5, dtype=jnp.int32), num) + 5 * task
        stage = state.stage._replace(x=x, y=y, count=jnp.array(5 * num, jnp.int32))
        clock = batch.clock._replace(task=jnp.array(task, jnp.int32))
        state, _ = phase(state._replace(stage=stage), batch._replace(clock=clock), ())
        seen, unseen = np.split(np.asarray(state.exemplars.count), [5 * (task + 1)])
        assert len(set(seen.tolist())) == 1 and not unseen.any()
        counts.append(int(seen[0]))
    assert counts == [40, 20, 13, 10, 8, 6, 5, 5, 4, 4, 3, 3, 3, 2]


def test_staging_takes_the_first_of_the_first_pass():
    learner, data = bind(stage_size=6), batches()
    data = data._replace(mask=data.mask.at[0, 1].set(False))
    second = data._replace(clock=data.clock._replace(first_pass=jnp.zeros(6, bool)))
    state = learner.init(jax.random.key(0))
    unseen = run_task(learner, state, second, [0, 1], phase=False)
    assert int(unseen.stage.count) == 0
    state = run_task(learner, state, data, [0, 1], phase=False)
    first = np.concatenate([np.asarray(data.x[0])[[0, 2, 3]], np.asarray(data.x[1])[:3]])
    np.testing.assert_array_equal(state.stage.x, first)
    assert int(state.stage.count) == 6


def test_examples_outside_the_mask_do_not_matter():
    learner, data = bind(), batches()
    clean = data._replace(mask=data.mask.at[:, 3].set(False))
    poisoned = clean._replace(x=data.x.at[:, 3].set(50.0), y=data.y.at[:, 3].set(0))
    ends = []
    for stream in (clean, poisoned):
        state = run_task(learner, learner.init(jax.random.key(0)), stream, [0, 1])
        ends.append(run_task(learner, state, stream, [2, 3]))
    support.assert_close(*ends, 1e-13)


def test_masked_batch_equals_sliced_batch():
    learner, data = bind(), batches()
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1])
    batch = support.at(data, 2)
    draws = learner.draw(state, batch, jax.random.key(1))
    padded = batch._replace(mask=batch.mask.at[3].set(False), x=batch.x.at[3].set(50.0))
    sliced = batch._replace(x=batch.x[:3], y=batch.y[:3], task=batch.task[:3], mask=batch.mask[:3])
    support.assert_close(
        learner.update(state, padded, draws), learner.update(state, sliced, draws), 1e-13
    )


def test_prediction_by_the_nearest_mean():
    learner, data = bind(), batches()
    state = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1])
    state = run_task(learner, state, data, [2], phase=False)
    predictor = learner.predictors["nearest-mean"]
    assert predictor.needs_task_ids
    view, (x, _, count) = jax.jit(predictor.prepare)(state), state.exemplars

    batch = support.at(data, 0)
    scores = np.asarray(predictor.scores(view, batch))
    assert np.isfinite(scores).all()
    ours = logits(state.params, np.asarray(batch.x))
    for c in range(NC):
        if count[c]:
            mean = logits(state.params, np.asarray(x[c, : count[c]])).mean(axis=0)
            distance = np.linalg.norm(ours - mean, axis=1)
            np.testing.assert_allclose(scores[:, c], -distance, atol=1e-12)
        else:
            assert (scores[:, c] < -1e300).all()
    assert (scores.argmax(axis=1) < NC).all()
    # A task without exemplars: constant scores, so that its first class wins.
    other = np.asarray(predictor.scores(view, support.at(data, 2)))
    assert np.isfinite(other).all() and (other.argmax(axis=1) == NC).all()


def test_jit_equals_the_plain_call_and_both_are_deterministic():
    learner, data = bind(glances=2), batches()
    state, batch = run_task(learner, learner.init(jax.random.key(0)), data, [0, 1]), 2
    batch = support.at(data, batch)
    draws = learner.draw(state, batch, jax.random.key(1))
    support.assert_close(jax.jit(learner.draw)(state, batch, jax.random.key(1)), draws)
    plain = learner.update(state, batch, draws)
    support.assert_close(learner.update(state, batch, draws), plain)
    support.assert_close(jax.jit(learner.update)(state, batch, draws), plain, 1e-14)
    end = learner.phases[0].update
    support.assert_close(jax.jit(end)(plain[0], batch, ()), end(plain[0], batch, ()), 1e-13)


def test_a_traced_strength_equals_its_value():
    """Over two tasks and the phase between them, under vmap."""
    data = batches()

    def whole(value):
        learner = bind(strength=value)
        state, key = learner.init(jax.random.key(0)), jax.random.key(1)
        for i in range(4):
            batch = support.at(data, i)
            state, _ = learner.update(state, batch, learner.draw(state, batch, key))
            if i == 1:
                state, _ = learner.phases[0].update(state, batch, ())
        return state

    many = jax.jit(jax.vmap(whole))(jnp.array([0.02, 0.9]))
    for i, value in enumerate([0.02, 0.9]):
        support.assert_close(support.at(many, i), whole(value), 1e-12)
    first, second = (support.at(many, i).params["Dense_1"]["bias"] for i in range(2))
    assert float(jnp.abs(first - second).max()) > 1e-9


def test_the_runner_trains_herds_and_predicts():
    """Three tasks of two far classes each: both predictors know them when told the task."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (6, 8))

    def examples(per_class):
        y = np.repeat(np.arange(6), per_class)
        x = np.clip(centres[y] + rng.normal(0, 8, (len(y), 8)), 0, 255).astype(np.uint8)
        return x, y, y // 2

    stream = from_arrays(examples(30), test=examples(10), scenario="task")
    evaluations = [Evaluation(p, p, "task") for p in ("nearest-mean", "logits")]
    history = learn(
        ICaRLTI(lr=0.1, capacity=18), cljax.nets.mlp(8)(6), stream, [0, 1], batch_size=5,
        epochs=2, evaluations=evaluations, entries="full",
    )  # fmt: skip
    for evaluation in ("nearest-mean", "logits"):
        last = np.asarray(history.evaluations[evaluation])[:, -1]
        assert last.mean() > 0.9, evaluation
    untrained = np.asarray(history.evaluations["nearest-mean"])[:, 0]
    np.testing.assert_array_equal(untrained, 0.5)  # without exemplars, a task's first class


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"stage_size": 0}, "stage_size is 0"),
        ({"glances": -1}, "glances is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"strength": float("inf")}, "strength is inf"),
    ],
)
def test_bad_hyper_parameters_are_refused_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        ICaRLTI(**options)
    assert "\n" not in str(error.value)


def test_streams_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="split-mnist with multi_head=True"):
        support.bind(ICaRLTI())
    with pytest.raises(UserError, match="capacity is 11, but it must be at least 12"):
        bind(capacity=11)
    shared = support.spec(multi_head=True)
    shared = shared._replace(class_mask=np.ones_like(shared.class_mask))
    with pytest.raises(UserError, match="no output belongs to two tasks"):
        ICaRLTI().bind(cljax.nets.mlp(5)(C), shared)
