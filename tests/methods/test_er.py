"""ER and La-ER: steps by hand, and what the memory holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax import tree
from cljax.errors import UserError
from cljax.losses import classification_loss
from cljax.methods.er import task_weights
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


LOSS = lambda params, examples: classification_loss(cljax.nets.mlp(5)(4), support.spec())(
    params, {}, examples, jnp.ones(examples.y.shape, bool)
)[0]
OPTIONS = {"capacity": 6, "replay_size": 3}


def joined(draws, batch):
    """The meta-batch of the first glance, and its mask."""
    replay = jax.tree.map(lambda a: a[0], draws.replay)
    current = Examples(batch.x, batch.y, batch.task)
    examples = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), replay, current)
    return examples, np.concatenate([draws.replay_mask[0], batch.mask])


@pytest.mark.parametrize("balance", ["examples", "tasks"])
@pytest.mark.parametrize("updates", [0, 3])
def test_a_step_by_hand(balance, updates):
    """Also the first one, whose memory is empty."""
    learner = support.bind(cljax.ER(lr=0.1, balance=balance, **OPTIONS))
    batches = support.batches(4, tasks=2)
    state = learner.init(jax.random.key(0))
    if updates:
        state, _ = support.run(learner, jax.tree.map(lambda a: a[:updates], batches))
    batch = support.at(batches, updates)
    draws = learner.draw(state, batch, jax.random.key(5))
    examples, mask = joined(draws, batch)
    assert mask.sum() == (7 if updates else 4)

    def loss(params):
        losses = LOSS(params, examples)
        if balance == "examples":
            return losses[mask].mean()
        groups = [mask & (np.asarray(examples.task) == t) for t in range(2)]
        return sum(losses[own].mean() for own in groups if own.any())

    value, grads = jax.value_and_grad(loss)(state.params)
    after, info = jax.jit(learner.update)(state, batch, draws)
    support.assert_close(after.params, tree.add_scaled(state.params, grads, -0.1), 1e-12)
    np.testing.assert_allclose(info.loss, value, atol=1e-12)


def test_task_weights_sum_to_the_number_of_tasks():
    task = jnp.array([0, 0, 1, 2, 2, 2])
    mask = jnp.array([True, True, True, False, True, True])
    weights = np.asarray(task_weights(task, mask))
    np.testing.assert_allclose(weights, [0.5, 0.5, 1, 0, 0.5, 0.5])


def test_the_gradient_is_clipped_as_a_whole():
    batches = support.batches(1)
    bound = 1e-3
    learner = support.bind(cljax.ER(lr=1.0, clip_norm=bound, **OPTIONS))
    state = learner.init(jax.random.key(0))
    after, _ = support.run(learner, batches, state=state)
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    np.testing.assert_allclose(jnp.sqrt(tree.dot(moved, moved)), bound, rtol=1e-2)


def test_a_large_memory_holds_each_example_once():
    learner = support.bind(cljax.ER(capacity=40, replay_size=3))
    batches = support.batches(6)
    state, _ = support.run(learner, batches)
    stored = np.asarray(state.memory.data.x)[: int(state.memory.age)]
    offered = np.asarray(batches.x).reshape(-1, support.NUM_INPUTS)
    np.testing.assert_array_equal(np.sort(stored, axis=0), np.sort(offered, axis=0))


@pytest.mark.parametrize(("offer", "age"), [("first-pass", 8), ("every-epoch", 16)])
def test_a_second_pass_is_offered_only_if_asked(offer, age):
    learner = support.bind(cljax.ER(offer=offer, **OPTIONS))
    first = support.batches(2)
    second = first._replace(clock=first.clock._replace(first_pass=jnp.zeros(2, bool)))
    state, _ = support.run(learner, first)
    state, _ = support.run(learner, second, state=state)
    assert int(state.memory.age) == age


def test_la_er_by_hand():
    """K = 2 chunks of 2, first order, raw rates, clipped inner gradients, the last loss alone."""
    eta, clip, bound = 0.05, 0.01, 0.1
    learner = support.bind(
        cljax.LaER(
            alpha_init=0.2, alpha_lr=eta, inner_steps=2, clip_norm=clip, inner_clip=bound, **OPTIONS
        )
    )
    batches = support.batches(4)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:3], batches))
    batch = support.at(batches, 3)
    draws = learner.draw(state, batch, jax.random.key(5))
    order = np.asarray(draws.order[0])
    shuffled = batch._replace(x=batch.x[order], y=batch.y[order], task=batch.task[order])
    examples, mask = joined(draws, shuffled)
    assert mask.all()
    theta, total = state.params, tree.full_like(state.params, 0.0)
    for chunk in (slice(0, 2), slice(2, 4)):
        own = Examples(shuffled.x[chunk], shuffled.y[chunk], shuffled.task[chunk])
        grads = jax.grad(lambda p, own=own: LOSS(p, own).mean())(theta)
        grads = jax.tree.map(lambda g: jnp.clip(g, -bound, bound), grads)
        total = jax.tree.map(jnp.add, total, grads)
        theta = jax.tree.map(lambda p, a, g: p - a * g, theta, state.alpha, grads)
    outer = lambda p: LOSS(p, examples).mean()
    d_alpha = jax.tree.map(lambda m, c: -m * c, jax.grad(outer)(theta), total)
    assert tree.dot(d_alpha, d_alpha) > clip**2
    alpha = tree.add_scaled(state.alpha, tree.clip_norm(d_alpha, clip), -eta)
    d_params = tree.clip_norm(jax.grad(outer)(state.params), clip)
    params = jax.tree.map(lambda p, a, d: p - jax.nn.relu(a) * d, state.params, alpha, d_params)
    after, _ = jax.jit(learner.update)(state, batch, draws)
    support.assert_close(after.alpha, alpha, 1e-12)
    support.assert_close(after.params, params, 1e-12)


def test_la_er_with_fixed_rates_is_er():
    batches = support.batches(1)
    options = {"clip_norm": 0.3, **OPTIONS}
    la_er, _ = support.run(
        support.bind(cljax.LaER(alpha_init=0.1, alpha_lr=0.0, **options)), batches
    )
    er, _ = support.run(support.bind(cljax.ER(lr=0.1, **options)), batches)
    support.assert_close(la_er.params, er.params, 1e-12)


class PathPenalty(cljax.penalties.Penalty):
    """A penalty of a user's own."""

    strength: cljax.Real = cljax.options.positional(default=1.0)

    def init(self, params):
        zeros = tree.full_like(params, 0.0)
        return {"anchor": params, "weight": zeros, "path": zeros}

    def value(self, state, params):
        return self.strength * tree.weighted_sq(state["weight"], params, state["anchor"])

    def observe(self, state, params, grads, updates):
        path = jax.tree.map(lambda a, g, u: a - g * u, state["path"], grads, updates)
        return {**state, "path": path}

    def consolidate(self, state, params, batch, network, key):
        weight = jax.tree.map(lambda w, p: w + jnp.abs(p), state["weight"], state["path"])
        return {"anchor": params, "weight": weight, "path": tree.full_like(params, 0.0)}


@pytest.mark.parametrize("carrier", [cljax.ER, cljax.LaMAML, cljax.Finetune])
def test_a_users_penalty_runs_inside(carrier):
    """It is observed at each step, consolidated after each task, and its strength matters."""
    options = {} if carrier is cljax.Finetune else OPTIONS
    stream, net = support.stream(), cljax.nets.mlp(5)(4)
    losses = []
    for strength in (0.0, 30.0):
        method = carrier(lr=0.05, penalty=PathPenalty(strength), **options)
        history = learn(method, net, stream, [0], batch_size=4)
        assert history.diverged == (None,)
        state = history.states[0]
        assert len(history.phase_losses["consolidate"][0]) == stream.num_tasks
        assert float(tree.dot(state.penalty["weight"], state.penalty["weight"])) > 0
        losses.append(history.losses[0])
    np.testing.assert_array_equal(losses[0][:3], losses[1][:3])  # nothing is held in task 0 yet
    assert (losses[0][3:] != losses[1][3:]).any()


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0},
        {"lr": float("nan")},
        {"balance": "classes"},
        {"offer": "never"},
        {"optimizer": "adamw"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        cljax.ER(**options)
