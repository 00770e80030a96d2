"""Windows: meta-gradients against finite differences and plain unrolls, masks, lanes, both ways."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import nets, tree
from cljax.errors import UserError
from cljax.inner_loop import unroll
from cljax.losses import cross_entropy
from cljax.types import Variables
from cljax.update_rules import windows
from cljax.update_rules.curriculum import Curriculum, Level, check_curriculum, level_at
from cljax.update_rules.gate import learned_step, lstm_gate
from cljax.update_rules.windows import EpisodeBatch, Shown, StudentTeacher, huber

OLD = 3
# Compiled once for all tests of the same options.
window = jax.jit(windows.window, static_argnums=0)
taken = jax.jit(windows.taken, static_argnums=0)
add_scaled = jax.jit(tree.add_scaled)
per_step = jax.jit(windows.per_step, static_argnums=(0, 3))


class Problem(NamedTuple):
    pair: StudentTeacher
    theta: object
    lanes: EpisodeBatch
    shown: Shown


@pytest.fixture(name="problem")
def _problem():
    """Two episodes of four steps; 3 old and 3 new examples each; a rule away from its start."""
    with jax.enable_x64(True):
        yield make()


@jax.jit
def like(tree, key):
    """Normal numbers in the shapes of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@functools.cache
def make(num=2, steps=4):
    model = nets.mlp(4, 3)(4)
    gate = lstm_gate(model, jax.ShapeDtypeStruct((5,), jnp.float64), hidden=3, cells=1)
    theta = jax.jit(gate.init)(jax.random.key(0))
    theta = jax.tree.map(lambda a, n: a + 0.3 * n, theta, like(theta, jax.random.key(1)))
    x = jax.random.normal(jax.random.key(2), (steps, num, 2 * OLD, 5), jnp.float64)
    y = jax.random.randint(jax.random.key(3), (steps, num, 2 * OLD), 0, 2)
    old = jnp.arange(2 * OLD) < OLD
    outputs = jnp.where(old[:, None], jnp.arange(4)[None] < 2, jnp.arange(4)[None] >= 2)
    outputs = jnp.broadcast_to(outputs[None, None], (steps, num, 2 * OLD, 4))
    y = jnp.where(old[None, None], y, y + 2)
    params = jax.jit(jax.vmap(lambda k: model.init(k, x[0, 0]).params))(
        jax.random.split(jax.random.key(4), num)
    )
    carry = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (num, *a.shape)), gate.start())
    lanes = EpisodeBatch(params, params, carry, jnp.zeros(num, jnp.int32), jnp.zeros(num, bool))
    pair = StudentTeacher(model, gate, 0.3, OLD, longest=100)
    return Problem(pair, theta, lanes, Shown(x, y, outputs))


def level(steps=4, threshold=jnp.inf):
    return Level(jnp.asarray(threshold, jnp.float64), jnp.asarray(steps, jnp.int32))


ONE = 2.0  # rho


@functools.partial(jax.jit, static_argnums=0)
def alone(pair, theta, lanes, shown):
    """Each loss's own gradient, [E, T, ...], by a loop of Python that shares nothing."""

    def losses(theta, lanes, shown):
        w, student, carry = lanes.teacher, lanes.student, lanes.carry
        model, seen = pair.model, []
        for t in range(shown.y.shape[0]):
            x, y, outputs = jax.tree.map(lambda a, t=t: a[t], shown)
            ce = lambda p, s, x=x, y=y, o=outputs: cross_entropy(
                model.apply(Variables(p, {}), x[s], False)[0].logits, y[s], o[s]
            ).mean()
            g = jax.grad(ce)(w, slice(None))
            w = jax.tree.map(lambda p, g: p - pair.lr * g, w, g)
            w = jax.lax.stop_gradient(w)

            def forward(p, x=x, y=y, o=outputs):
                output, tape = model.tape(Variables(p, {}), x[OLD:])
                return cross_entropy(output.logits, y[OLD:], o[OLD:]).mean(), tape

            g, tape = jax.grad(forward, has_aux=True)(student)
            if pair.order == 1:
                g, tape = jax.lax.stop_gradient((g, tape))
            shown_weights = jax.lax.stop_gradient(student) if pair.detach else student
            delta, carry = pair.gate.apply(theta, shown_weights, g, tape, carry)
            student = jax.tree.map(lambda p, d, g: p - pair.lr * d * g, student, delta, g)
            features = lambda p, x=x: model.apply(Variables(p, {}), x, False)[0].features
            gap = jnp.abs(features(w) - features(student))
            seen.append(ONE * jnp.where(gap <= 1, 0.5 * gap**2, gap - 0.5).mean())
        return jnp.stack(seen)

    return jax.vmap(jax.jacrev(losses), (None, 0, 1))(theta, lanes, shown)


def mean(tree, axis=None):
    """Of gradients over steps and lanes, or one of them."""
    return jax.tree.map(lambda a: a.mean((0, 1) if axis is None else axis), tree)


def at(tree, *i):
    return jax.tree.map(lambda a: a[i], tree)


def close(a, b, rtol=1e-9, atol=1e-14):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def run(problem, steps=4, **options):
    pair = problem.pair._replace(**options)
    return window(pair, problem.theta, problem.lanes, problem.shown, level(steps), ONE)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_finite_differences(problem, steps):
    """Through everything: order 2, nothing detached. Along random directions of theta."""
    grads, seen = run(problem, steps, order=2, detach=False)
    assert int(seen.live.sum()) == 2 * steps

    def value(theta):
        found = taken(problem.pair, theta, problem.lanes, problem.shown, level(steps), ONE)
        return float(found.losses.sum() / found.live.sum())

    theta, h = problem.theta, 1e-5
    for i in range(4):
        towards = like(theta, jax.random.key(10 + i))
        ends = [add_scaled(theta, towards, h) for h in (h, -h)]
        central = (value(ends[0]) - value(ends[1])) / (2 * h)
        exact = float(optax.tree.vdot(grads, towards))
        np.testing.assert_allclose(exact, central, rtol=2e-6, atol=1e-10)


@pytest.mark.parametrize(("order", "detach"), [(1, True), (1, False), (2, False)])
def test_a_window_is_back_propagation_through_its_steps(problem, order, detach):
    """Covering the episode, it is full back-propagation; lanes are averaged."""
    grads, _ = run(problem, order=order, detach=detach)
    pair = problem.pair._replace(order=order, detach=detach)
    close(grads, mean(alone(pair, *problem[1:])))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-5


@pytest.mark.slow
def test_recomputing_steps_or_leaving_no_loop_changes_nothing(problem):
    grads, seen = run(problem)
    for options in ({"remat": True}, {"no_loop": True}, {"remat": True, "no_loop": True}):
        again, also = run(problem, **options)
        close(again, grads)
        close(also, seen)


def test_truncation_forgets_what_came_before(problem):
    """Two windows of two steps: values of four in a row, the gradient of the last two alone."""
    pair, theta, lanes, shown = problem
    cut = lambda a, b: jax.tree.map(lambda s: s[a:b], shown)
    _, first = window(pair, theta, lanes, cut(0, 2), level(2), ONE)
    grads, second = window(pair, theta, first.lanes, cut(2, 4), level(2), ONE)
    _, whole = run(problem)
    close(second.lanes, whole.lanes)
    close(jnp.concatenate([first.losses, second.losses]), whole.losses)
    full, _ = run(problem)
    assert not np.allclose(jax.tree.leaves(grads)[0], jax.tree.leaves(full)[0])
    later = jax.tree.map(lambda a: jnp.roll(a, -2, axis=0), shown)
    close(grads, mean(at(alone(pair, theta, first.lanes, later), slice(None), slice(2))))


def test_steps_beyond_the_truncation_are_not_taken(problem):
    """Padded with rubbish, a window of two of four steps is one of two."""
    pair, theta, lanes, shown = problem
    rubbish = shown._replace(x=shown.x.at[2:].set(jnp.nan))
    grads, seen = window(pair, theta, lanes, rubbish, level(2), ONE)
    expected, kept = window(pair, theta, lanes, at(shown, slice(2)), level(2), ONE)
    close(grads, expected)
    close(seen.lanes, kept.lanes)
    assert not seen.live[2:].any()
    assert not seen.losses[2:].any()


def test_a_lane_that_is_done_counts_nothing_and_stays(problem):
    pair, theta, lanes, shown = problem
    done = lanes._replace(done=jnp.array([False, True]))
    spoilt = shown._replace(x=shown.x.at[:, 1].set(jnp.nan))
    grads, seen = window(pair, theta, done, spoilt, level(), ONE)
    close(grads, mean(at(alone(*problem), 0), 0))
    close(at(seen.lanes, 1), at(done, 1))


def test_a_window_in_which_a_lane_leaves_the_finite_numbers_teaches_nothing(problem):
    """The lane ends where it was; the other goes on."""
    pair, theta, lanes, shown = problem
    spoilt = shown._replace(x=shown.x.at[2:, 1].set(jnp.nan))
    grads, seen = window(pair, theta, lanes, spoilt, level(), ONE)
    assert not any(map(jnp.any, jax.tree.leaves(grads)))
    assert seen.live[:, 1].tolist() == [True, True, False, False]
    assert seen.lanes.done.tolist() == [False, True]
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(seen.lanes.student))
    close(at(seen.lanes, 0), at(run(problem)[1].lanes, 0))


def test_an_episode_ends_after_the_loss_that_passes_the_bound(problem):
    pair, theta, lanes, shown = problem
    losses = run(problem)[1].losses[:, 0]
    step = int(jnp.argmax(losses > losses[0] * 1.0001))
    bound = float(losses[step] * 0.9999)
    _, seen = window(pair, theta, lanes, shown, level(threshold=bound), ONE)
    first = int(jnp.argmax(losses > bound))
    assert seen.live[:, 0].tolist() == [t <= first for t in range(4)]
    assert int(seen.lanes.step[0]) == first + 1
    assert bool(seen.lanes.done[0])


def test_an_episode_ends_at_its_longest(problem):
    pair, theta, lanes, shown = problem
    far = lanes._replace(step=jnp.array([pair.longest - 3, 0], jnp.int32))
    _, seen = window(pair, theta, far, shown, level(), ONE)
    assert seen.live.sum(0).tolist() == [3, 4]
    assert seen.lanes.done.tolist() == [True, False]


class Recorded(NamedTuple):
    """An optimiser that moves nothing and keeps each gradient."""

    grads: object
    count: object


def recorder(num):
    def init(theta):
        return Recorded(jax.tree.map(lambda a: jnp.zeros((num, *a.shape)), theta), 0)

    def update(grads, state, theta):
        kept = jax.tree.map(lambda all_, g: all_.at[state.count].set(g), state.grads, grads)
        return jax.tree.map(jnp.zeros_like, grads), Recorded(kept, state.count + 1)

    return optax.GradientTransformation(init, update)


RECORDER = recorder(4)


@pytest.mark.parametrize(("order", "detach"), [(1, True), (1, False), (2, False)])
def test_per_step_gradients_are_those_of_each_loss_alone(problem, order, detach):
    """Where theta stands still, update t is the lanes' mean gradient of L_t, back to step 1."""
    pair, theta, lanes, shown = problem
    pair = pair._replace(order=order, detach=detach)
    _, state, seen = per_step(
        pair, theta, RECORDER.init(theta), RECORDER, lanes, shown, level(), ONE
    )
    close(state.grads, mean(alone(pair, theta, lanes, shown), 0))
    close(seen, run(problem)[1])


def test_per_step_leaves_out_a_lost_lane(problem):
    pair, theta, lanes, shown = problem
    spoilt = shown._replace(x=shown.x.at[1:, 1].set(jnp.nan))
    _, state, _ = per_step(pair, theta, RECORDER.init(theta), RECORDER, lanes, spoilt, level(), ONE)
    close(at(state.grads, 2), at(alone(*problem), 0, 2))


def test_per_step_moves_the_rule_within_a_window(problem):
    """With rate 0.1, step by step: the first update's theta takes the second inner step."""
    pair, start, lanes, shown = problem
    by = optax.sgd(0.1)
    theta, _, seen = per_step(pair, start, by.init(start), by, lanes, shown, level(2), ONE)
    first = mean(at(alone(*problem), slice(None), 0), 0)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, start, first)
    after = taken(pair, start, lanes, shown, level(1), ONE).lanes
    later = jax.tree.map(lambda a: jnp.roll(a, -1, axis=0), shown)
    expected = taken(pair, moved, after, later, level(1), ONE)
    close(seen.losses[1], expected.losses[0])
    close(seen.lanes.student, expected.lanes.student)
    assert not np.array_equal(jax.tree.leaves(theta)[0], jax.tree.leaves(moved)[0])


def test_a_student_that_sees_all_and_steps_plainly_is_the_teacher(problem):
    pair, _, lanes, shown = problem
    fresh = pair.gate.init(jax.random.key(0))
    found = taken(pair._replace(old=0), fresh, lanes, shown, level(), ONE)
    close(found.lanes.student, found.lanes.teacher, rtol=1e-12)
    np.testing.assert_allclose(found.losses, 0.0, atol=1e-24)


def test_a_window_is_what_unroll_makes_of_the_rule(problem):
    pair, theta, lanes, shown = problem
    new = jax.tree.map(lambda a: a[:, 0, OLD:], shown)
    loss = lambda output, batch: cross_entropy(output.logits, batch.y, batch.outputs).mean()
    step = learned_step(pair.gate, theta, loss, pair.model, pair.lr)
    out = jax.jit(lambda start, new: unroll(step, start, new))(at(lanes.student, 0), new)
    found = taken(pair, theta, lanes, shown, level(), ONE).lanes
    close(at(found.student, 0), out.params, rtol=1e-12)
    close(at(found.carry, 0), out.carry, rtol=1e-12)


def test_huber_is_quadratic_near_zero_and_linear_beyond():
    np.testing.assert_allclose(
        huber(jnp.array([0.5, -0.5, 3.0, -1.0])), (0.125 * 2 + 2.5 + 0.5) / 4
    )


def test_levels_of_the_first_experiment():
    schedule = Curriculum(threshold_cap=30.0, steps_cap=9)
    found = [
        tuple(float(v) for v in level_at(schedule, jnp.asarray(i - 1)))
        for i in (1, 300, 301, 600, 601, 900)
    ]
    assert found == [(20, 5), (20, 5), (25, 7), (25, 7), (30, 9), (30, 9)]
    last = level_at(Curriculum(), jnp.asarray(1800))
    assert (float(last.threshold), int(last.steps)) == (50, 17)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 60.0}, "not above its cap"),
        ({"threshold": 0.0}, "above 0"),
        ({"steps_cap": 600}, "longer than an episode"),
        ({"steps": 20}, "must not shrink"),
        ({"every": 0}, "every"),
    ],
)
def test_bad_curricula_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        check_curriculum(Curriculum(**options))
