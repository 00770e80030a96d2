"""Reptile and FOMAML over the tasks of a mini-batch, against loops in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import (
    LINEAR,
    NORMALISED,
    assert_padding_is_harmless,
    assert_weights,
    batch,
    bind,
    learned,
    sigmoid_gradient,
    softmax_gradient,
    step,
    weights,
)

import cljax
from cljax.errors import UserError
from cljax.methods.micro_batches import over_tasks, part

TASKS = [0, 1, 0, 1, 1, 0, 1, 0, 1]  # with one masked: 3 of task 0, 5 of task 1
MASKED = [2]
BOTH = pytest.mark.parametrize("make", [cljax.Reptile, cljax.FOMAML])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rows_of(own, task):
    found = np.flatnonzero(np.asarray(own.mask) & (np.asarray(own.task) == task))
    return np.asarray(own.x)[found], np.asarray(own.y)[found]


def plus(a, b, scale=1.0):
    return tuple(x + scale * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_two_mini_batches_of_reptile_by_hand(parts, loss):
    lr, mu, epsilon = 0.3, 0.9, 0.7
    learner = bind(
        cljax.Reptile(
            lr=lr, epsilon=epsilon, inner_steps=parts, loss=loss, optimizer="momentum",
            momentum=mu, capacity=12,
        )
    )  # fmt: skip
    gradient = {"sigmoid": sigmoid_gradient, "softmax": softmax_gradient}[loss]
    state = learner.init(jax.random.key(0))
    w, velocity = weights(state.params), (0.0, 0.0)
    for seed in (0, 1):
        own = batch(TASKS, current=2, seed=seed, masked=MASKED)
        state, _ = step(learner, state, own)
        moved = (0.0, 0.0)
        for task in (0, 1):  # task 2 is absent
            x, y = rows_of(own, task)
            bounds = [j * len(x) // parts for j in range(parts + 1)]
            inner = w
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                if start == stop:
                    continue
                grads = gradient(inner, x[start:stop], y[start:stop], 2)
                velocity = tuple(mu * v + g for v, g in zip(velocity, grads, strict=True))
                inner = plus(inner, velocity, -lr)
            moved = plus(moved, plus(inner, w, -1.0))
        w = plus(w, moved, epsilon / 2)
    assert_weights(state.params, w)


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_two_mini_batches_of_fomaml_by_hand(inner_steps):
    lr, inner_lr, mu = 0.3, 0.2, 0.9
    learner = bind(
        cljax.FOMAML(
            lr=lr, inner_lr=inner_lr, inner_steps=inner_steps, optimizer="momentum", momentum=mu,
            capacity=12,
        )
    )  # fmt: skip
    state = learner.init(jax.random.key(0))
    w, velocity = weights(state.params), (0.0, 0.0)
    for seed in (0, 1):
        own = batch(TASKS, seed=seed, masked=MASKED)
        state, _ = step(learner, state, own)
        total = (0.0, 0.0)
        for task in (0, 1):
            x, y = rows_of(own, task)
            half, inner = len(x) // 2, w
            for _ in range(inner_steps):
                inner = plus(inner, sigmoid_gradient(inner, x[:half], y[:half], 1), -inner_lr)
            total = plus(total, sigmoid_gradient(inner, x[half:], y[half:], 1))
        velocity = tuple(mu * v + g / 2 for v, g in zip(velocity, total, strict=True))
        w = plus(w, velocity, -lr)
    assert_weights(state.params, w)


def test_one_part_of_one_task_is_plain_training():
    own = batch([0, 0, 0])
    after = {}
    for name, method in (
        ("reptile", cljax.Reptile(lr=0.2, inner_steps=1, capacity=12)),
        ("replayed", cljax.Replayed(lr=0.2, loss="sigmoid", capacity=12)),
    ):
        learner = bind(method)
        after[name], _ = step(learner, learner.init(jax.random.key(0)), own)
    support.assert_close(after["reptile"].params, after["replayed"].params, 1e-15)


@BOTH
def test_a_single_example_of_a_task_counts(make):
    learner = bind(make(capacity=12, lr=0.2))
    state = learner.init(jax.random.key(0))
    after, info = step(learner, state, batch([1, 0, 0], masked=[1, 2]))
    assert np.isfinite(info.loss) and info.loss > 0
    assert (weights(after.params)[0] != weights(state.params)[0])[:, :8].all()


@BOTH
def test_a_task_that_is_absent_adds_nothing(make):
    """Whether its rows are missing or masked; a batch without any row changes nothing at all."""
    learner = bind(make(capacity=12, optimizer="sgd"))
    state = learner.init(jax.random.key(0))
    base = batch([0, 0, 1, 1], current=1, masked=[2, 3])
    short = jax.tree.map(lambda a: a[:2] if a.ndim else a, base)
    support.assert_close(step(learner, state, base)[0], step(learner, state, short)[0], 1e-15)
    empty, _ = step(learner, state, base._replace(mask=jnp.zeros(4, bool)))
    support.assert_close(empty, state)


def test_momentum_does_not_move_in_empty_parts():
    """One example in two parts is a single step, and none is no step."""
    options = {"capacity": 12, "optimizer": "momentum", "weight_decay": 0.1}
    one, two = (bind(cljax.Reptile(inner_steps=parts, **options)) for parts in (1, 2))
    state, _ = step(two, two.init(jax.random.key(0)), batch([0, 0]))
    single = batch([0, 0], masked=[1])
    support.assert_close(step(two, state, single)[0], step(one, state, single)[0], 1e-15)
    empty, _ = step(two, state, batch([0, 0], masked=[0, 1]))
    support.assert_close(empty, state)


@BOTH
@pytest.mark.parametrize("model", [LINEAR, NORMALISED])
def test_padding_is_harmless(make, model):
    assert_padding_is_harmless(make(capacity=12), model)


@BOTH
def test_statistics_follow_the_whole_mini_batch_once(make):
    learner = bind(make(capacity=12), NORMALISED)
    state = learner.init(jax.random.key(0))
    own = batch(TASKS)
    after, _ = step(learner, state, own)
    variables = cljax.types.Variables(state.params, state.model_state)
    _, expected = NORMALISED.apply(variables, own.x, True)
    support.assert_close(after.model_state, expected, 1e-12)


def test_micro_batches_hold_every_example_once_in_order():
    own = batch([0, 2, 0, 1, 2, 2, 0, 2] * 4, masked=[0, 9])

    def train(task, micro, seen):
        halves = [part(micro, j, 3) for j in range(3)]
        for half in halves:
            place = jnp.where(half.mask, half.index, 32)
            rank = seen[1] + jnp.cumsum(half.mask)
            seen = (seen[0].at[place].add(rank, mode="drop"), seen[1] + jnp.sum(half.mask))
        return seen

    zero = jnp.zeros((), int)
    (ranks, count), present = over_tasks(own, 3, train, (jnp.zeros(32, int), zero))
    order = np.argsort(np.where(own.mask, own.task, 3), kind="stable")[: int(own.mask.sum())]
    np.testing.assert_array_equal(np.asarray(ranks)[order], 1 + np.arange(len(order)))
    assert int(present) == 3 and int(count) == int(own.mask.sum()) == int((ranks > 0).sum())


@pytest.mark.parametrize(
    "method", [cljax.Reptile(lr=1.0, capacity=24), cljax.FOMAML(lr=2.0, inner_lr=0.5, capacity=24)]
)
def test_they_learn_all_tasks(method):
    _, final = learned(method, epochs=40)
    assert final["logits"] > 0.5, final


@BOTH
def test_bad_options_are_refused(make):
    for options in ({"inner_steps": 0}, {"lr": np.inf}, {"loss": "mse"}, {"capacity": None}):
        with pytest.raises(UserError):
            make(**options)
    with pytest.raises(UserError, match="choose multi_head=False"):
        support.bind(make(), multi_head=True)
