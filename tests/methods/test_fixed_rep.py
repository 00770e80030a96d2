"""Fixed representation: what learns when, and that nothing else moves by a bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import (
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
from cljax.nets import mlp
from cljax.types import Variables

GRADIENTS = {"softmax": softmax_gradient, "sigmoid": sigmoid_gradient}
EAGER = cljax.FixedRep(lr=0.2, optimizer="momentum", weight_decay=0.1)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("loss", sorted(GRADIENTS))
def test_two_steps_by_hand(loss):
    """Task 0 moves its rows of the linear network, then task 1 moves its own alone."""
    lr, mu, wd = 0.2, 0.9, 0.1
    learner = bind(
        cljax.FixedRep(lr=lr, loss=loss, optimizer="momentum", momentum=mu, weight_decay=wd)
    )
    state = learner.init(jax.random.key(0))
    w, velocity = weights(state.params), (0.0, 0.0)
    for task in (0, 1):
        own = batch([task] * 4, seed=task, masked=[1])
        state, _ = step(learner, state, own)
        rows = np.asarray(own.mask)
        grads = GRADIENTS[loss](w, np.asarray(own.x)[rows], own.y[rows], task)
        velocity = tuple(mu * v + g + wd * a for v, g, a in zip(velocity, grads, w, strict=True))
        learns = np.arange(12) // 4 == task
        w = tuple(np.where(learns, a - lr * v, a) for a, v in zip(w, velocity, strict=True))
    assert_weights(state.params, w)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_only_the_rows_of_the_current_task_move(optimizer):
    learner = bind(cljax.FixedRep(optimizer=optimizer, weight_decay=0.1), mlp(5)(12))
    state = learner.init(jax.random.key(0))
    for task in range(3):
        for seed in range(3):
            before, (state, _) = state, step(learner, state, batch([task] * 4, seed=seed))
        moved = jax.tree.map(lambda a, b: np.asarray(a != b), before.params, state.params)
        assert moved["Dense_0"]["kernel"].any() == moved["Dense_0"]["bias"].any() == (task == 0)
        rows = np.arange(12) // 4 == task
        assert not moved["Dense_1"]["kernel"][:, ~rows].any()
        assert not moved["Dense_1"]["bias"][~rows].any()
        assert moved["Dense_1"]["bias"][rows].all()


def test_statistics_are_learned_with_task_0_and_then_kept_and_used():
    learner = bind(EAGER, NORMALISED)
    state, _ = step(learner, learner.init(jax.random.key(0)), batch([0] * 6))
    assert np.any(jax.tree.leaves(state.model_state)[0] != 0)
    own = batch([1] * 6)
    after, info = step(learner, state, own)
    support.assert_close(after.model_state, state.model_state)
    variables = Variables(state.params, state.model_state)
    logits = NORMALISED.apply(variables, own.x, False)[0].logits[:, :8]
    losses = jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(6), own.y]
    np.testing.assert_allclose(info.loss, losses.mean(), rtol=1e-12)


@pytest.mark.parametrize("model", [mlp(5)(12), NORMALISED])
def test_padding_is_harmless(model):
    assert_padding_is_harmless(EAGER, model)


def test_it_learns_more_than_the_last_task():
    _, final = learned(cljax.FixedRep(lr=0.1), epochs=10)
    assert final["logits"] > 0.3, final


def test_networks_without_a_head_and_streams_with_several_are_refused():
    with pytest.raises(UserError, match="give its Model a head"):
        bind(EAGER, mlp(5)(12)._replace(head=None))
    with pytest.raises(UserError, match="choose multi_head=False"):
        support.bind(EAGER, multi_head=True)
    with pytest.raises(UserError, match="classes of its own"):
        support.bind(EAGER)
    for options in ({"lr": np.nan}, {"loss": "mse"}, {"milestones": (0,)}):
        with pytest.raises(UserError):
            cljax.FixedRep(**options)
