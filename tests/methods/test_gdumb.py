"""GDumb: the rates of its learner, and the learner itself by a plain loop."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support

import cljax
from cljax import tree
from cljax.losses import cross_entropy
from cljax.methods import make
from cljax.types import Clock, Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


NET = cljax.nets.mlp(5)(support.NUM_CLASSES)
OPTIONS = {"capacity": 7, "passes": 5, "memory_batch": 3, "lr": 0.2, "min_lr": 0.01}


def rate_of(number, lr=0.2, low=0.01, warm_up=1, first=1, factor=2):
    """Warm restarts, pass by pass."""
    if number < warm_up:
        return lr / 10
    since, length = number - warm_up, first
    while since >= length:
        since, length = since - length, length * factor
    return low + (lr - low) * (1 + math.cos(math.pi * since / length)) / 2


@pytest.mark.parametrize(
    "options", [{}, {"warm_up": 0}, {"warm_up": 3, "first": 2, "factor": 1}, {"factor": 3}]
)
def test_rates_restart_in_cycles(options):
    names = {"first": "first_cycle", "factor": "cycle_factor"}
    named = {names.get(name, name): value for name, value in options.items()}
    method = cljax.GDumb().replace(**{**OPTIONS, "passes": 20, **named})
    rates = [float(method.rate(number)) for number in range(20)]
    np.testing.assert_allclose(rates, [rate_of(n, **options) for n in range(20)], rtol=1e-6)


def trained(method, state, task=0, seed=3):
    """The state after the phases at a task's end, as the engine walks them; orders and losses."""
    learner, orders, losses = method.bind(NET, support.spec()), [], []
    for phase in learner.phases:
        draw, update = jax.jit(phase.draw), jax.jit(phase.update)
        plan = phase.plan(task, None)
        for i in range(len(plan.epoch)):
            clock = Clock(*(jnp.asarray(a) for a in (
                plan.current[i], plan.epoch[i], np.int32(i), plan.first_pass[i], plan.last[i]
            )))  # fmt: skip
            batch = support.at(support.batches(1), 0)
            batch = jax.tree.map(lambda a: a[:1], batch._replace(clock=None))
            batch = batch._replace(clock=clock, mask=jnp.zeros(1, bool))
            drawn = draw(state, batch, jax.random.fold_in(jax.random.key(seed), i))
            state, info = update(state, batch, drawn)
            if phase.name == "learner":
                orders.append(np.asarray(drawn))
                losses.append(float(info.loss))
            else:
                start = state
    return start, state, orders, losses


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("options", [{}, {"optimizer": "momentum", "weight_decay": 0.1}])
def test_the_learner_by_hand(num, options):
    """Seven slots in batches of three; after one update four are filled, and steps are fewer."""
    method = make("gdumb", **OPTIONS, **options)
    state, _ = support.run(support.bind(method), support.batches(num))
    filled = int(np.sum(state.memory.counts))
    assert filled == (4 if num == 1 else 7)
    start, state, orders, losses = trained(method, state)
    assert len(losses) == 5 * 3
    data, params = state.memory.stored.data, start.params
    velocity = jax.tree.map(jnp.zeros_like, params)
    for number in range(5):
        order = orders[3 * number]
        assert sorted(order[:filled]) == list(range(filled))
        for i in range(3):
            np.testing.assert_array_equal(orders[3 * number + i], order)
            rows = order[:filled][3 * i : 3 * i + 3]
            if not len(rows):
                assert losses[3 * number + i] == 0
                continue

            def loss(params, rows=rows):
                logits = NET.apply(Variables(params, {}), data.x[rows], False)[0].logits
                return cross_entropy(logits, data.y[rows]).mean()

            value, grads = jax.value_and_grad(loss)(params)
            np.testing.assert_allclose(losses[3 * number + i], value, atol=1e-12)
            if options:
                grads = tree.add_scaled(grads, params, 0.1)
                velocity = tree.add_scaled(grads, velocity, 0.9)
            step = velocity if options else grads
            params = tree.add_scaled(params, step, -rate_of(number))
    assert any(not np.array_equal(orders[0], other) for other in orders[3::3])
    support.assert_close(state.params, params, 1e-12)


def test_each_learner_starts_anew():
    """From a network of its own, and whatever the one before had learned."""
    method = make("gdumb", **OPTIONS)
    state, _ = support.run(support.bind(method), support.batches(3))
    first, after, _, _ = trained(method, state)
    again, once_more, _, _ = trained(method, after)
    support.assert_close(again.params, first.params)
    support.assert_close(once_more.params, after.params)
    other, _, _, _ = trained(method, after, seed=4)
    kernels = (s.params["Dense_0"]["kernel"] for s in (first, other))
    assert not np.array_equal(*kernels)


def test_updates_store_and_learn_nothing():
    learner = support.bind(make("gdumb", **OPTIONS))
    state = learner.init(jax.random.key(0))
    after, losses = support.run(learner, support.batches(6), state=state)
    support.assert_close(after.params, state.params)
    assert int(np.sum(after.memory.counts)) == 7 and np.all(losses > 0)
    assert learner.gradients_per_update is None  # all that it computes is in a phase


def test_rates_are_traced():
    state, _ = support.run(support.bind(make("gdumb", **OPTIONS)), support.batches(3))

    @jax.jit
    def final(lr):
        learner = make("gdumb", **{**OPTIONS, "lr": lr}).bind(NET, support.spec())
        phase, batch = learner.phases[1], support.at(support.batches(1), 0)
        batch = batch._replace(clock=batch.clock._replace(epoch=jnp.int32(1)))
        order = jnp.arange(7, dtype=jnp.int32)
        return phase.update(state, batch, order)[0].params["Dense_1"]["bias"]

    moved = [np.asarray(final(lr) - state.params["Dense_1"]["bias"]) for lr in (0.2, 0.4)]
    np.testing.assert_allclose(moved[1], 2 * moved[0], atol=1e-12)


@pytest.mark.parametrize("memory", ["reservoir", "ring", "balanced"])
def test_a_learner_of_any_memory(memory):
    method = make("gdumb", memory=memory, optimizer=optax.sgd(0.1), **{**OPTIONS, "passes": 2})
    state, _ = support.run(support.bind(method), support.batches(6))
    _, _, orders, losses = trained(method, state)
    slots = state.memory.contents.mask.size
    assert len(orders[0]) == slots and len(losses) == 2 * -(-slots // 3) and losses[0] > 0


def test_it_asks_for_no_task_borders():
    stream = cljax.streams.task_free(
        cljax.streams.SplitMNIST(sample=True, samples_per_task=20).build()
    )
    method = cljax.GDumb(capacity=20, passes=2)
    with jax.enable_x64(False):
        run = cljax.run(method, stream, seeds=1, net="mlp:4", progress=False)
    assert np.isfinite(run.metric("RA")).all()
