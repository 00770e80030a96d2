"""BiC: both stages against NumPy, and what is held out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import (
    LINEAR,
    C,
    assert_padding_is_harmless,
    assert_weights,
    batch,
    bind,
    gradient,
    learned,
    one_hot,
    phase,
    seen,
    softmax,
    step,
    stream,
    weights,
)

import cljax
from cljax.errors import UserError
from cljax.learn import learn
from cljax.methods.bic import Correction, corrected
from cljax.streams.base import plan


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


SCALE, SHIFT = np.array([1.0, 0.8, 1.0]), np.array([0.0, -0.3, 0.0])
PER_OUTPUT = np.repeat(SCALE, 4), np.repeat(SHIFT, 4)


def biased(state):
    pairs = Correction(jnp.asarray(SCALE), jnp.asarray(SHIFT))
    return state._replace(own=state.own._replace(correction=pairs))


def test_two_steps_of_stage_1_by_hand():
    """In task 2, with the pair of task 1 applied to network and teacher alike."""
    lr, tau = 0.1, 2.0
    learner = bind(cljax.bic(lr=lr, temperature=tau, capacity=24))
    state, other = (learner.init(jax.random.key(i)) for i in (0, 1))
    state, teacher = biased(state)._replace(teacher=other.teacher), weights(other.params)
    w, now, old, share = weights(state.params), seen(2), seen(1), 8 / 12
    a, b = PER_OUTPUT
    for seed in (0, 1):
        own = batch([0, 2, 1, 2], seed=seed, masked=[1])
        state, info = step(learner, state, own)
        rows = np.asarray(own.mask)
        x, target = np.asarray(own.x)[rows], one_hot(own.y)[rows]
        z, before = (a * (x @ v[0] + v[1]) + b for v in (w, teacher))
        p, q, r = softmax(z, now), softmax(before / tau, old), softmax(z / tau, old)
        apart = (q[:, :8] * np.log(q[:, :8] / r[:, :8])).sum(axis=1)
        expected = share * apart - (1 - share) * np.log(p[target > 0])
        np.testing.assert_allclose(info.loss, expected.mean(), rtol=1e-12)
        d = a * (share * (r - q) / tau + (1 - share) * (p - target)) / len(x)
        w = tuple(v - lr * g for v, g in zip(w, gradient(x, d), strict=True))
    assert_weights(state.params, w)


def test_the_first_task_is_plain_training():
    after = {}
    for name in ("bic", "replayed"):
        learner = bind(cljax.methods.METHODS[name](lr=0.2, capacity=24))
        after[name], _ = step(learner, learner.init(jax.random.key(0)), batch([0, 0, 0]))
    support.assert_close(after["bic"].params, after["replayed"].params, 1e-15)


def test_two_steps_of_stage_2_by_hand():
    """Adam on the newest pair; all else, other pairs too, stays."""
    lr = 0.05
    learner = bind(cljax.bic(correction_lr=lr, capacity=24))
    state = biased(learner.init(jax.random.key(0)))
    correction = phase(learner, "correction")
    assert not correction.before
    w, pair, m, v = weights(state.params), np.array([1.0, 0.0]), np.zeros(2), np.zeros(2)
    start = state
    for k in (1, 2):
        own = batch([0, 2, 1, 2, 2], seed=k, masked=[3])
        state, info = jax.jit(correction.update)(state, own, ())
        rows = np.asarray(own.mask)
        x, target = np.asarray(own.x)[rows], one_hot(own.y)[rows]
        y = x @ w[0] + w[1]
        new = ~seen(1)
        z = PER_OUTPUT[0] * y + PER_OUTPUT[1]
        z[:, new] = pair[0] * y[:, new] + pair[1]
        p = softmax(z, seen(2))
        np.testing.assert_allclose(info.loss, -np.log(p[target > 0]).mean(), rtol=1e-12)
        d = (p - target)[:, new] / len(x)
        g = np.array([(d * y[:, new]).sum(), d.sum()])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        pair = pair - lr * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
    np.testing.assert_allclose([a[2] for a in state.own.correction], pair, rtol=1e-10)
    for ours, before in zip(state.own.correction, start.own.correction, strict=True):
        np.testing.assert_array_equal(ours[:2], before[:2])
    support.assert_close(state._replace(own=start.own), start)


def test_a_correction_of_one_and_zero_changes_no_bit():
    learner = bind(cljax.bic(capacity=24))
    state = learner.init(jax.random.key(0))
    own = batch([0, 1, 2])
    views = {
        name: learner.predictors[name].scores(learner.predictors[name].prepare(state), own)
        for name in ("logits", "uncorrected")
    }
    np.testing.assert_array_equal(views["logits"], views["uncorrected"])


def test_predictors_and_phases_in_order():
    learner = bind(cljax.bic(capacity=24, imprint=True, balanced_epochs=1))
    assert list(learner.predictors) == ["logits", "nearest-mean", "uncorrected"]
    names = ["session", "imprint", "correction", "exemplars", "balanced"]
    assert [phase.name for phase in learner.phases] == names


def test_a_session_keeps_the_pairs_and_begins_the_newest_ones_optimiser():
    learner = bind(cljax.bic(capacity=24))
    fresh = learner.init(jax.random.key(0))
    state = biased(fresh)
    state, _ = jax.jit(phase(learner, "correction").update)(state, batch([0, 1, 2]), ())
    begun, _ = jax.jit(phase(learner, "session").update)(state, batch([2]), ())
    support.assert_close(begun.own.correction, state.own.correction)
    support.assert_close(begun.own.opt_state, fresh.own.opt_state)
    assert state.own.opt_state.count == 1  # it had taken a step


def test_fine_tuning_on_exemplars_sees_corrected_logits():
    learner = bind(cljax.bic(capacity=24, balanced_epochs=1, balanced_lr=0.1))
    state = biased(learner.init(jax.random.key(0)))
    state = state._replace(exemplars=state.exemplars._replace(mask=jnp.ones(24, bool)))
    w, own = weights(state.params), batch([0, 2, 1, 2], masked=[1])
    own = own._replace(index=-2 - own.index)
    after, _ = jax.jit(phase(learner, "balanced").update)(state, own, ())
    rows = np.asarray(own.mask)
    x, y = np.asarray(own.x)[rows], np.asarray(own.y)[rows]
    a, b = PER_OUTPUT
    p = softmax(a * (x @ w[0] + w[1]) + b, seen(2))
    grads = gradient(x, a * (p - one_hot(y)) / len(x))
    assert_weights(after.params, (v - 0.1 * g for v, g in zip(w, grads, strict=True)))
    support.assert_close(after.own, state.own)


def test_outputs_are_corrected_by_their_own_task():
    mask = np.zeros((2, 4), bool)
    mask[0, 2], mask[1, 0] = True, True  # outputs 1 and 3 belong to no task
    pair = Correction(jnp.array([2.0, 3.0]), jnp.array([0.5, 0.0]))
    z = corrected(jnp.ones((1, 4)), pair, mask)
    np.testing.assert_array_equal(z, [[3.0, 1.0, 2.5, 1.0]])


def held_out(source, method, batch_size=8, epochs=2):
    """Whole plan, plan of stage 1, and each task's rows of stage 2."""
    arranged = method.arrange(source)
    whole = cljax.replayed(capacity=60, exemplars="herding").arrange(source)
    rows, all_rows = plan(arranged, 0, batch_size, epochs), plan(whole, 0, batch_size, epochs)
    learner = method.bind(cljax.nets.mlp(5)(6), arranged.spec(batch_size))
    steps = []
    for task in range(3):
        own = jax.tree.map(lambda a, t=task: a[rows.current == t], rows)
        steps.append(phase(learner, "correction").plan(task, own))
    return all_rows, rows, steps


def test_a_balanced_tenth_is_held_out_of_every_epoch_of_stage_1():
    source = stream()
    method = cljax.bic(capacity=60, correction_epochs=3)
    whole, rows, steps = held_out(source, method)
    assert steps[0] is None
    for task, share in ((1, 30), (2, 15)):
        count = max(1, round(0.1 * share))
        stage_2 = steps[task]
        assert stage_2.last.sum() == 1 and stage_2.epoch.max() == 2
        for epoch in range(3):
            own = stage_2.index[stage_2.epoch == epoch][stage_2.mask[stage_2.epoch == epoch]]
            slots, images = -2 - own[own < 0], own[own >= 0]
            # The last exemplars of each old class; class 0 and 1 have 24 images for 30 slots.
            num = min(share, 24)
            filled = [num if k < 2 * task else 0 for k in range(6)]
            if task == 2:
                filled[2:4] = [min(15, 24 - 3)] * 2
            expected = [
                k * share + filled[k] - 1 - j for k in range(2 * task) for j in range(count)
            ]
            assert sorted(slots) == sorted(expected)
            labels = source.train_y[images]
            assert np.bincount(labels, minlength=6)[2 * task : 2 * task + 2].tolist() == [count] * 2
            assert len(images) == 2 * count
        for epoch in range(2):
            here = (rows.current == task) & (rows.epoch == epoch)
            used = rows.index[here][rows.mask[here]]
            every = whole.index[here][whole.mask[here]]
            assert sorted([*used, *own]) == sorted(every)
    first = rows.current == 0
    np.testing.assert_array_equal(rows.mask[first], whole.mask[first])


def test_the_tasks_of_what_is_held_out_are_its_own():
    source = stream()
    _, _, steps = held_out(source, cljax.bic(capacity=60))
    rows = steps[2]
    own = rows.mask & (rows.index < 0)
    np.testing.assert_array_equal(rows.task[own], (-2 - rows.index[own]) // 15 // 2)
    assert (rows.task[rows.mask & (rows.index >= 0)] == 2).all()


def test_a_class_with_few_images_has_no_rows_for_slots_that_stay_empty():
    source = stream(per_class=5)
    method = cljax.bic(capacity=60, correction_epochs=2)
    _, rows, steps = held_out(source, method)
    state = learn(method, cljax.nets.mlp(5)(6), source, [0], batch_size=8, epochs=2).states[0]
    filled = {int(c): int((state.exemplars.y[state.exemplars.mask] == c).sum()) for c in range(6)}
    # Class 2 held out max(1, 0.1 * 30) = 3 of 5, class 4 one for each 10 of 15.
    assert filled == {0: 5, 1: 5, 2: 2, 3: 2, 4: 3, 5: 3}
    last = (rows.current == 2)[:, None] & rows.mask & (rows.index < 0)
    slots = -2 - rows.index[last]
    places = {k: sorted(set(slots[slots // 15 == k] % 15)) for k in range(4)}
    assert places == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0], 3: [0]}
    assert all((s.index != -1)[s.mask].all() for s in steps[1:])


def test_padding_is_harmless():
    assert_padding_is_harmless(cljax.bic(capacity=24))


def test_it_learns_all_tasks_and_the_first_pair_stays():
    state, final = learned(cljax.bic(lr=0.2, capacity=60), "logits", "uncorrected")
    assert final["logits"] > 0.6 and final["logits"] >= final["uncorrected"] - 0.1, final
    scale, shift = (np.asarray(a) for a in state.own.correction)
    assert scale[0] == 1 and shift[0] == 0
    assert (scale[1:] != 1).all() and (shift[1:] != 0).all()


def test_bad_options_are_refused():
    for words, options in (
        ("held_out is 1.0", {"held_out": 1.0}),
        ("correction_epochs is 0", {"correction_epochs": 0}),
        ("temperature is inf", {"temperature": np.inf}),
    ):
        with pytest.raises(UserError, match=words):
            cljax.bic(**options)
    with pytest.raises(UserError, match="at least 2, one of them held out"):
        bind(cljax.bic(capacity=C + 1), LINEAR)
