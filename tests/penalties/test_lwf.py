"""LwF: distillation on the outputs of past tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.method import Problem
from cljax.types import Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def setting(multi_head):
    spec = support.spec(multi_head)
    model = cljax.nets.mlp(5)(spec.num_classes)
    params = [model.init(jax.random.key(i), jnp.zeros((1, 6))).params for i in range(2)]
    return model, Problem(model, spec).network({}), params


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def class_setting():
    """Three tasks of two outputs each on one head."""
    mask = np.kron(np.eye(3, dtype=bool), np.ones((1, 2), bool))
    spec = support.spec()._replace(class_mask=mask)
    model = cljax.nets.mlp(5)(6)
    params = [model.init(jax.random.key(i), jnp.zeros((1, 6))).params for i in range(2)]
    return model, Problem(model, spec).network({}), params


def distilled(penalty, setting, tasks, multi_head=False):
    """The penalty on a batch after some tasks, and both networks' logits of its valid rows."""
    model, network, (old, new) = setting
    batch = support.at(support.batches(3, multi_head=multi_head), 2)
    batch = batch._replace(mask=batch.mask.at[1].set(False))
    state = penalty.begin(Variables(old, {}))
    for _ in range(tasks):
        state = penalty.consolidate(state, old, batch, network, jax.random.key(0))
    rows = np.asarray(batch.mask)
    logits = [
        np.asarray(model.apply(Variables(p, {}), batch.x, False)[0].logits)[rows]
        for p in (old, new)
    ]
    found = jax.jit(lambda s, p: penalty.distil(s, p, batch, network))(state, new)
    return found, logits, state


@pytest.mark.parametrize("tasks", [0, 1, 2])
@pytest.mark.parametrize("weights", ["share", "one"])
@pytest.mark.parametrize("outputs", ["seen", "past"])
def test_on_one_head_new_outputs_have_a_target_of_zero(tasks, outputs, weights):
    tau, strength = 3.0, 0.5
    penalty = cljax.penalties.LwF(strength, temperature=tau, outputs=outputs, weights=weights)
    found, (old, new), state = distilled(penalty, class_setting(), tasks)
    past, now = slice(0, 2 * tasks), slice(0, 2 * tasks + 2)
    expected = 0.0
    if tasks:
        p, q = (
            softmax(old[:, past] / tau),
            softmax(new[:, now if outputs == "seen" else past] / tau),
        )
        expected = (p * np.log(p / q[:, past])).sum(axis=1).mean()
    share = 1 - 1 / (tasks + 1) if weights == "share" else 1.0
    np.testing.assert_allclose(found, strength * tau**2 * share * expected, rtol=1e-10)
    if weights == "share":
        np.testing.assert_allclose(penalty.share(state), 1 / (tasks + 1))
    else:
        assert penalty.share(state) == 1.0


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("weights", ["share", "one"])
def test_with_heads_each_past_task_counts_by_itself(tasks, weights):
    tau, strength = 3.0, 0.5
    penalty = cljax.penalties.LwF(strength, temperature=tau, weights=weights)
    found, (old, new), _ = distilled(penalty, setting(True), tasks, multi_head=True)
    total = 0.0
    for head in [slice(0, 4), slice(4, 8)][:tasks]:
        p, q = softmax(old[:, head] / tau), softmax(new[:, head] / tau)
        total += (p * np.log(p / q)).sum(axis=1).mean()
    # 1 - 1 / t times the mean over t - 1 tasks is their sum over t.
    expected = total / (tasks + 1) if weights == "share" else total
    np.testing.assert_allclose(found, strength * tau**2 * expected, rtol=1e-10)


ONE_STEP = {
    "Finetune": {"lr": 0.1},
    "ER": {"lr": 0.1, "capacity": 4, "replay_size": 1},
    "LaMAML": {"clip_norm": None, "glances": 1, "capacity": 4, "replay_size": 1},
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_the_loss_of_task_t_counts_one_in_t(name):
    """A network that is its own teacher: what is left is the loss, of which a t-th moves it."""
    make = getattr(cljax, name)
    plain = support.bind(make(**ONE_STEP[name]))
    held = support.bind(make(**ONE_STEP[name], penalty=cljax.penalties.LwF(outputs="past")))
    batch = support.at(support.batches(1), 0)
    moved = []
    for learner, tasks in ((plain, 0), (held, 3)):
        state = learner.init(jax.random.key(0))
        if tasks:
            teacher = state.penalty._replace(tasks=jnp.asarray(tasks, jnp.int32))
            state = state._replace(penalty=teacher)
        draws = learner.draw(state, batch, jax.random.key(1))
        after, _ = jax.jit(learner.update)(state, batch, draws)
        moved.append(jax.tree.map(jnp.subtract, after.params, state.params))
    support.assert_close(moved[1], jax.tree.map(lambda g: g / 4, moved[0]), 1e-12)


@pytest.mark.parametrize("multi_head", [False, True])
def test_its_gradient_is_zero_right_after_a_task(multi_head):
    _, network, (params, _) = setting(multi_head)
    penalty = cljax.penalties.LwF(outputs="past")
    batch = support.at(support.batches(1, multi_head=multi_head), 0)
    state = penalty.begin(Variables(params, {}))
    state = penalty.consolidate(state, params, batch, network, jax.random.key(0))
    grads = jax.grad(lambda p: penalty.distil(state, p, batch, network))(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-12


def test_it_runs_on_two_heads():
    """Outputs of tasks that have not come yet get no gradient from it."""
    _, network, (old, new) = setting(True)
    penalty, batch = cljax.penalties.LwF(), support.at(support.batches(1, multi_head=True), 0)
    state = penalty.begin(Variables(old, {}))
    state = penalty.consolidate(state, old, batch, network, jax.random.key(0))
    grads = jax.grad(lambda p: penalty.distil(state, p, batch, network))(new)
    head = np.asarray(grads["Dense_1"]["bias"])
    assert np.abs(head[:4]).max() > 0 and not head[4:].any()
