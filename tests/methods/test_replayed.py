"""Replay of exemplars, or of everything: the loss, its outputs, and what is replayed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import (
    assert_padding_is_harmless,
    assert_weights,
    batch,
    bind,
    learned,
    sigmoid_gradient,
    softmax_gradient,
    step,
    stream,
    weights,
)
from support import learn

import cljax
from cljax.errors import UserError
from cljax.streams.base import plan

GRADIENTS = {"softmax": softmax_gradient, "sigmoid": sigmoid_gradient}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("loss", sorted(GRADIENTS))
def test_two_steps_by_hand(loss):
    """Momentum and decay, a rate that drops, over the outputs of tasks 0 and 1 alone."""
    lr, mu, wd = 0.3, 0.9, 0.01
    learner = bind(
        cljax.Replayed(
            lr=lr, loss=loss, capacity=12, optimizer="momentum", momentum=mu, weight_decay=wd,
            milestones=(1,), decay=0.5,
        )
    )  # fmt: skip
    state = learner.init(jax.random.key(0))
    w, velocity = weights(state.params), (0.0, 0.0)
    for epoch in (0, 1):
        own = batch([0, 1, 1, 0, 1], seed=epoch, epoch=epoch, masked=[2])
        state, info = step(learner, state, own)
        rows = np.asarray(own.mask)
        grads = GRADIENTS[loss](w, np.asarray(own.x)[rows], own.y[rows], 1)
        velocity = tuple(mu * v + g + wd * a for v, g, a in zip(velocity, grads, w, strict=True))
        w = tuple(a - lr * 0.5**epoch * v for a, v in zip(w, velocity, strict=True))
    assert_weights(state.params, w)


def test_the_sigmoid_loss_is_a_mean_over_examples_and_outputs_seen():
    learner = bind(cljax.Replayed(loss="sigmoid", capacity=12))
    state = learner.init(jax.random.key(0))
    zero = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    _, info = step(learner, zero, batch([0, 1, 1]))
    np.testing.assert_allclose(info.loss, np.log(2), rtol=1e-12)


def test_rows_of_unseen_outputs_stay():
    learner = bind(cljax.Replayed(capacity=12, optimizer="adam"))
    state = learner.init(jax.random.key(0))
    after, _ = step(learner, state, batch([0, 1, 0]))
    for old, new in zip(weights(state.params), weights(after.params), strict=True):
        np.testing.assert_array_equal(old[..., 8:], new[..., 8:])
        assert (old[..., :8] != new[..., :8]).all()


@pytest.mark.parametrize("method", [cljax.Replayed(capacity=12), cljax.Oracle()])
def test_padding_is_harmless(method):
    assert_padding_is_harmless(method)


def test_the_optimiser_starts_anew_before_each_task():
    learner = bind(cljax.Replayed(capacity=12, optimizer="momentum"))
    state = learner.init(jax.random.key(0))
    after, _ = step(learner, state, batch([0, 0]))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(after.opt_state))
    again, _ = learner.phases[0].update(after, batch([1, 1]), ())
    support.assert_close(again, after._replace(opt_state=state.opt_state))


def test_oracle_sees_all_past_examples_and_keeps_none():
    oracle = cljax.Oracle(first_epochs=2)
    assert "capacity" not in oracle.options
    source = stream()
    rows = plan(oracle.arrange(source), 0, 8, 1)
    for task in range(3):
        own = rows.index[rows.current == task][rows.mask[rows.current == task]]
        expected = np.concatenate(source.subsets(0)[: task + 1])
        assert sorted(own) == sorted(np.tile(expected, 2 if task == 0 else 1))


def test_both_learn_all_tasks():
    accuracy = {}
    for method in (cljax.Replayed(lr=0.3, capacity=24), cljax.Oracle(lr=0.3)):
        state, final = learned(method)
        accuracy[method.name] = final["logits"]
        assert (state.exemplars == ()) == (method.name == "oracle")
    assert min(accuracy.values()) > 0.6, accuracy


def test_bad_options_and_streams_are_refused():
    for words, options in (
        ("capacity is 2000, per_class 5 and capacity_bytes None", {"per_class": 5}),
        ("loss 'softmaxx' is not known", {"loss": "softmaxx"}),
        ("milestones are", {"milestones": (3, 2)}),
        ("lr is nan", {"lr": np.nan}),
        ("capacity is 0", {"capacity": 0}),
    ):
        with pytest.raises(UserError, match=words):
            cljax.Replayed(**options)
    with pytest.raises(UserError, match="choose multi_head=False"):
        support.bind(cljax.Replayed(), multi_head=True)
    with pytest.raises(UserError, match="classes of its own"):
        support.bind(cljax.Oracle())
    with pytest.raises(UserError, match="brings classes of its own"):
        learn(cljax.Oracle(), cljax.nets.mlp(5)(4), support.stream(), [0], batch_size=4)
