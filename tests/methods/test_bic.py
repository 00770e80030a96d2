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
from support import learn

import cljax
from cljax.errors import UserError
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


@pytest.mark.parametrize("pairs", ["newest", "all"])
def test_two_steps_of_stage_1_by_hand(pairs):
    """In task 2, with the pair of task 1 applied to the teacher, or to the network too."""
    lr, tau = 0.1, 2.0
    learner = bind(cljax.BiC(lr=lr, temperature=tau, capacity=24, pairs=pairs))
    state, other = (learner.init(jax.random.key(i)) for i in (0, 1))
    state, teacher = biased(state)._replace(teacher=other.teacher), weights(other.params)
    w, now, old, share = weights(state.params), seen(2), seen(1), 8 / 12
    a, b = PER_OUTPUT if pairs == "all" else (1.0, 0.0)
    for seed in (0, 1):
        own = batch([0, 2, 1, 2], seed=seed, masked=[1])
        state, info = step(learner, state, own)
        rows = np.asarray(own.mask)
        x, target = np.asarray(own.x)[rows], one_hot(own.y)[rows]
        z = a * (x @ w[0] + w[1]) + b
        before = PER_OUTPUT[0] * (x @ teacher[0] + teacher[1]) + PER_OUTPUT[1]
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
        learner = bind(cljax.methods.make(name, lr=0.2, capacity=24))
        after[name], _ = step(learner, learner.init(jax.random.key(0)), batch([0, 0, 0]))
    support.assert_close(after["bic"].params, after["replayed"].params, 1e-15)


def stage_2_by_hand(pairs, decay, step_of, **options):
    """Two steps in task 2 against NumPy: ``step_of(lr)`` makes ``(k, g) -> change of the pair``."""
    lr = 0.05
    learner = bind(
        cljax.BiC(correction_lr=lr, capacity=24, pairs=pairs, correction_decay=decay, **options)
    )
    state = biased(learner.init(jax.random.key(0)))
    correction = phase(learner, "correction")
    assert not correction.before
    w, pair, change = weights(state.params), np.array([1.0, 0.0]), step_of(lr)
    before = PER_OUTPUT if pairs == "all" else (np.ones(12), np.zeros(12))
    start = state
    for k in (1, 2):
        own = batch([0, 2, 1, 2, 2], seed=k, masked=[3])
        state, info = jax.jit(correction.update)(state, own, ())
        rows = np.asarray(own.mask)
        x, target = np.asarray(own.x)[rows], one_hot(own.y)[rows]
        y = x @ w[0] + w[1]
        new = ~seen(1)
        z = before[0] * y + before[1]
        z[:, new] = pair[0] * y[:, new] + pair[1]
        p = softmax(z, seen(2))
        np.testing.assert_allclose(info.loss, -np.log(p[target > 0]).mean(), rtol=1e-12)
        d = (p - target)[:, new] / len(x)
        pair = pair + change(k, np.array([(d * y[:, new]).sum(), d.sum() + 2 * decay * pair[1]]))
    np.testing.assert_allclose([a[2] for a in state.own.correction], pair, rtol=1e-10)
    kept = start.own.correction if pairs == "all" else (np.ones(3), np.zeros(3))
    for ours, old in zip(state.own.correction, kept, strict=True):
        np.testing.assert_array_equal(ours[:2], old[:2])
    support.assert_close(state._replace(own=start.own), start)


def with_momentum(lr):
    u = np.zeros(2)

    def change(k, g):
        u[:] = 0.9 * u + g
        return -lr * u

    return change


def with_adam(lr):
    m, v = np.zeros(2), np.zeros(2)

    def change(k, g):
        m[:], v[:] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return -lr * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)

    return change


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_two_steps_of_stage_2_by_hand(decay):
    """The newest pair alone, on raw logits of the others; all else stays."""
    stage_2_by_hand("newest", decay, with_momentum)


def test_two_steps_of_stage_2_with_all_pairs_by_hand():
    stage_2_by_hand("all", 0.0, with_adam, correction_optimizer="adam")


def test_a_correction_of_one_and_zero_changes_no_bit():
    learner = bind(cljax.BiC(capacity=24))
    state = learner.init(jax.random.key(0))
    own = batch([0, 1, 2])
    views = {
        name: learner.predictors[name].scores(learner.predictors[name].prepare(state), own)
        for name in ("logits", "uncorrected")
    }
    np.testing.assert_array_equal(views["logits"], views["uncorrected"])


def test_predictors_and_phases_in_order():
    learner = bind(cljax.BiC(capacity=24, imprint=True, balanced_epochs=1))
    assert list(learner.predictors) == ["logits", "nearest-mean", "uncorrected"]
    names = ["session", "imprint", "correction", "exemplars", "balanced"]
    assert [phase.name for phase in learner.phases] == names


def test_a_session_keeps_the_pairs_and_begins_the_newest_ones_optimiser():
    learner = bind(cljax.BiC(capacity=24, correction_optimizer="adam"))
    fresh = learner.init(jax.random.key(0))
    state = biased(fresh)
    state, _ = jax.jit(phase(learner, "correction").update)(state, batch([0, 1, 2]), ())
    begun, _ = jax.jit(phase(learner, "session").update)(state, batch([2]), ())
    support.assert_close(begun.own.correction, state.own.correction)
    support.assert_close(begun.own.opt_state, fresh.own.opt_state)
    assert state.own.opt_state.count == 1  # it had taken a step


def test_fine_tuning_on_exemplars_sees_corrected_logits():
    learner = bind(cljax.BiC(capacity=24, balanced_epochs=1, balanced_lr=0.1))
    state = biased(learner.init(jax.random.key(0)))
    filled = jnp.ones_like(state.exemplars.mask)
    state = state._replace(exemplars=state.exemplars._replace(mask=filled))
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


def held_out(source, method, batch_size=8, epochs=2, seed=0):
    """Whole plan, plan of stage 1, and each task's rows of stage 2."""
    arranged = method.arrange(source)
    whole = cljax.Replayed(capacity=60, exemplars="herding").arrange(source)
    rows, all_rows = (plan(made, seed, batch_size, epochs) for made in (arranged, whole))
    learner = method.bind(cljax.nets.mlp(5)(6), arranged.spec(batch_size))
    steps = []
    for task in range(3):
        own = jax.tree.map(lambda a, t=task: a[rows.current == t], rows)
        steps.append(phase(learner, "correction").plan(task, own))
    return all_rows, rows, steps


def images(rows):
    """Rows of the training arrays that updates learn from, of some part of a plan."""
    found = rows.index[rows.mask]
    return found[found >= 0]


@pytest.mark.parametrize(
    ("capacity", "per_class", "share"), [(60, 24, 0.1), (90, 40, 0.3), (24, 9, 0.5)]
)
def test_what_is_held_out_is_never_learned_from(capacity, per_class, share):
    source = stream(per_class=per_class)
    method = cljax.BiC(capacity=capacity, correction_epochs=2, held_out=share)
    _, rows, steps = held_out(source, method)
    learned_from = set(images(rows))
    for task in (1, 2):
        stage_2 = steps[task]
        own = stage_2.index[stage_2.mask]
        assert (own >= 0).all() and not learned_from & set(own)
        assert set(source.train_y[own]) == set(range(2 * task + 2))
    # Of an old class it is the same images that task after task holds out, or some of them.
    first, second = (set(images(s)) for s in steps[1:])
    old = {i for i in second if source.train_y[i] < 4}
    assert old <= first


def test_the_budget_holds_exemplars_and_what_is_held_out():
    source = stream()
    method = cljax.BiC(capacity=60, correction_epochs=3)
    _, rows, steps = held_out(source, method)
    state = learn(method, cljax.nets.mlp(5)(6), source, [0], batch_size=8, epochs=2).states[0]
    learner = method.bind(cljax.nets.mlp(5)(6), method.arrange(source).spec(8))
    # In the end 10 slots a class, one held out; before it 30 and 15, with 3 and 2.
    assert np.bincount(state.exemplars.y[state.exemplars.mask], minlength=6).tolist() == [9] * 6
    assert learner.init(jax.random.key(0)).exemplars.mask.shape == (54,)
    used = set(images(rows))
    assert set(np.asarray(state.exemplars.index[state.exemplars.mask])) <= used
    assert steps[0] is None
    for task, share, count in ((1, 30, 3), (2, 15, 2)):
        stage_2 = steps[task]
        assert stage_2.last.sum() == 1 and stage_2.epoch.max() == 2
        for epoch in range(3):
            own = stage_2.index[stage_2.epoch == epoch][stage_2.mask[stage_2.epoch == epoch]]
            assert len(set(own)) == len(own)
            assert np.bincount(source.train_y[own], minlength=6).tolist() == [count] * (
                2 * task + 2
            ) + [0] * (4 - 2 * task)
        for epoch in range(2):
            here = (rows.current == task) & (rows.epoch == epoch)
            slots = -2 - rows.index[here][rows.mask[here]]
            slots = slots[slots >= 0]
            # Classes 0 and 1 have 24 images, 3 of them held out, for 27 places.
            expected = [k * (share - count) + j for k in range(2 * task)
                        for j in range(min(share - count, 21))]  # fmt: skip
            assert sorted(slots) == expected
            assert len(images(jax.tree.map(lambda a, h=here: a[h], rows))) == 2 * (24 - count)


def test_each_seed_has_an_order_of_its_own_in_stage_2():
    """Of images in the order of their rows, which are often sorted by class."""
    source, orders = stream(), []
    for seed in (0, 1, 2):
        _, _, steps = held_out(source, cljax.BiC(capacity=60, correction_epochs=2), seed=seed)
        once = steps[2].epoch == 0
        first = steps[2].index[once][steps[2].mask[once]]
        orders.append(tuple(np.argsort(np.argsort(first)).tolist()))
    assert len(set(orders)) == 3


def test_the_tasks_of_what_is_held_out_are_its_own():
    source = stream()
    _, _, steps = held_out(source, cljax.BiC(capacity=60))
    rows = steps[2]
    owner = source.train_y[rows.index[rows.mask]] // 2
    np.testing.assert_array_equal(rows.task[rows.mask], owner)


def test_a_class_with_few_images_has_no_rows_for_slots_that_stay_empty():
    source = stream(per_class=5)
    method = cljax.BiC(capacity=60, correction_epochs=2)
    _, rows, steps = held_out(source, method)
    state = learn(method, cljax.nets.mlp(5)(6), source, [0], batch_size=8, epochs=2).states[0]
    filled = {int(c): int((state.exemplars.y[state.exemplars.mask] == c).sum()) for c in range(6)}
    # Classes 0 to 3 held out 3 of 5 images, a tenth of 30 slots; 4 and 5 held out 2, of 15.
    assert filled == {0: 2, 1: 2, 2: 2, 3: 2, 4: 3, 5: 3}
    last = (rows.current == 2)[:, None] & rows.mask & (rows.index < 0)
    slots = -2 - rows.index[last]
    assert {k: sorted(set(slots[slots // 13 == k] % 13)) for k in range(4)} == {
        k: [0, 1] for k in range(4)
    }
    assert np.bincount(source.train_y[images(steps[2])], minlength=6).tolist() == [4] * 6


def test_padding_is_harmless():
    assert_padding_is_harmless(cljax.BiC(capacity=24))


@pytest.mark.parametrize("pairs", ["newest", "all"])
def test_it_learns_all_tasks_and_ends_with_its_pairs(pairs):
    method = cljax.BiC(lr=0.2, capacity=60, pairs=pairs)
    state, final = learned(method, "logits", "uncorrected")
    assert final["logits"] > 0.6 and final["logits"] >= final["uncorrected"] - 0.1, final
    scale, shift = (np.asarray(a) for a in state.own.correction)
    fitted = [False, pairs == "all", True]
    assert ((scale != 1) == fitted).all() and ((shift != 0) == fitted).all()


def test_bad_options_are_refused():
    for words, options in (
        ("held_out is 1.0", {"held_out": 1.0}),
        ("correction_epochs is 0", {"correction_epochs": 0}),
        ("temperature is inf", {"temperature": np.inf}),
        ("'last' is not known", {"pairs": "last"}),
    ):
        with pytest.raises(UserError, match=words):
            cljax.BiC(**options)
    with pytest.raises(UserError, match="at least 2, one of them held out"):
        bind(cljax.BiC(capacity=C + 1), LINEAR)
