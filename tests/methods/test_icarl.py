"""iCaRL: both losses against NumPy, the teacher's life, and the nearest mean."""

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
    seen,
    sigmoid,
    softmax,
    step,
    weights,
)

import cljax
from cljax.errors import UserError
from cljax.memory.exemplars import Exemplars
from cljax.methods import replayed
from cljax.methods.nearest import nearest_mean

LOSSES = pytest.mark.parametrize("loss", ["bce", "kl"])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def with_teacher(learner):
    """A state whose teacher differs from it, and the teacher's weights."""
    state, other = (learner.init(jax.random.key(i)) for i in (0, 1))
    return state._replace(teacher=other.teacher), weights(other.params)


@LOSSES
@pytest.mark.parametrize("task", [0, 1])
def test_two_steps_by_hand(loss, task):
    lr, strength, tau = 0.05, 0.7, 2.0
    learner = bind(cljax.ICaRL(lr=lr, loss=loss, strength=strength, temperature=tau, capacity=24))
    state, teacher = with_teacher(learner)
    w, now, old = weights(state.params), seen(task), seen(task - 1)
    for seed in (0, 1):
        own = batch([0, task, task, 0], current=task, seed=seed, masked=[1])
        state, info = step(learner, state, own)
        rows = np.asarray(own.mask)
        x, target = np.asarray(own.x)[rows], one_hot(own.y)[rows]
        z, before = x @ w[0] + w[1], x @ teacher[0] + teacher[1]
        if loss == "bce":
            target = np.where(old, sigmoid(before), target)
            p = sigmoid(z)
            terms = -target * np.log(p) - (1 - target) * np.log1p(-p)
            expected = np.where(now, terms, 0).sum(axis=1).mean()
            d = np.where(now, p - target, 0)
        else:
            p = softmax(z, now)
            d, expected = p - target, -np.log(p[target > 0]).mean()
            if task:
                q, r = softmax(before / tau, old), softmax(z / tau, old)
                d = d + strength * (r - q) / tau
                apart = np.where(old, q * (np.log(np.where(old, q / np.where(old, r, 1), 1))), 0)
                expected += strength * apart.sum(axis=1).mean()
        np.testing.assert_allclose(info.loss, expected, rtol=1e-12)
        w = tuple(a - lr * g for a, g in zip(w, gradient(x, d / len(x)), strict=True))
    assert_weights(state.params, w)


@LOSSES
def test_distillation_from_an_equal_teacher_moves_nothing(loss):
    learner = bind(cljax.ICaRL(loss=loss, lr=0.1, capacity=24))
    state = learner.init(jax.random.key(0))
    own = batch([1, 1, 1])
    after, _ = step(learner, state, own)
    if loss == "bce":
        for new, old in zip(weights(after.params), weights(state.params), strict=True):
            np.testing.assert_allclose(new[..., :4], old[..., :4], rtol=0, atol=1e-15)
    else:
        plain = replayed.State(*state[:3], state.exemplars)
        free, _ = step(bind(cljax.Replayed(lr=0.1, capacity=24)), plain, own)
        support.assert_close(after.params, free.params, 1e-15)


def test_the_teacher_is_the_network_as_the_task_begins():
    learner = bind(cljax.ICaRL(optimizer="momentum", capacity=24))
    state = learner.init(jax.random.key(0))
    trained, _ = step(learner, state, batch([0, 0]))
    support.assert_close(trained.teacher, state.teacher)
    phase = learner.phases[0]
    assert phase.before and phase.name == "session"
    begun, _ = phase.update(trained, batch([1, 1]), ())
    support.assert_close(begun.teacher.params, trained.params)
    support.assert_close(begun.opt_state, state.opt_state)
    support.assert_close(begun.params, trained.params)


def test_one_training_gives_the_rows_of_icarl_and_of_lwf_with_exemplars():
    shared = {"lr": 0.1, "strength": 0.7, "temperature": 3.0, "capacity": 24}
    ours = {
        "icarl": bind(cljax.ICaRL(loss="kl", **shared)),
        "lwf-exemplars": bind(cljax.LwFExemplars(**shared)),
    }
    state, _ = with_teacher(ours["icarl"])
    after = [step(learner, state, batch([0, 1, 1]))[0] for learner in ours.values()]
    support.assert_close(*after)
    assert list(ours["icarl"].predictors) == ["nearest-mean", "logits"]
    assert list(ours["lwf-exemplars"].predictors) == ["logits", "nearest-mean"]
    own = batch([0, 1, 2])
    for name in ("logits", "nearest-mean"):
        predictors = [learner.predictors[name] for learner in ours.values()]
        support.assert_close(*(p.scores(p.prepare(after[0]), own) for p in predictors))


@LOSSES
def test_padding_is_harmless(loss):
    assert_padding_is_harmless(cljax.ICaRL(loss=loss, capacity=24))


def kept(x, y, mask):
    none = jnp.zeros(len(y), jnp.int32)
    return Exemplars(jnp.asarray(x), jnp.asarray(y, jnp.int32), none, none, jnp.asarray(mask))


def scores(exemplars, x, mirror=False, shape=(support.NUM_INPUTS,)):
    """Nearest-mean scores of the linear network, whose features are its inputs."""
    stored = jax.ShapeDtypeStruct(shape, x.dtype)
    show = lambda x, task, key=None: x.reshape(x.shape[0], -1)
    spec = support.spec(own_classes=True)._replace(stored=stored, show=show)
    learner = bind(cljax.ICaRL(capacity=24))
    state = learner.init(jax.random.key(0))._replace(exemplars=exemplars)
    predictor = nearest_mean(LINEAR, spec, mirror=mirror)
    own = batch([0] * len(x))._replace(x=x)
    return np.asarray(jax.jit(predictor.scores)(jax.jit(predictor.prepare)(state), own))


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def test_nearest_mean_by_hand_and_whatever_the_scale_of_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 6)), np.array([0, 0, 0, 3, 3, 7, 7, 7, 7])
    mask = np.arange(9) != 5
    x[5] = np.nan  # a leftover
    tests = rng.normal(size=(4, 6))
    ours = scores(kept(x, y, mask), jnp.asarray(tests))
    for c in range(C):
        members = unit(x[(y == c) & mask])
        if not len(members):
            assert (ours[:, c] < -2).all() and np.isfinite(ours[:, c]).all()
            continue
        mean = unit(members.mean(axis=0))
        np.testing.assert_allclose(ours[:, c], unit(tests) @ mean, rtol=1e-12)
        # The largest cosine is the smallest distance.
        distance = np.linalg.norm(unit(tests) - mean, axis=1)
        np.testing.assert_allclose(distance**2, 2 - 2 * ours[:, c], rtol=1e-9)
    scale = rng.uniform(0.1, 10, (9, 1))
    scaled = scores(kept(scale * x, y, mask), jnp.asarray(scale[:4] * tests))
    np.testing.assert_allclose(ours, scaled, rtol=1e-12)


def test_the_mirrored_view_flips_images_from_left_to_right():
    x, y = np.random.default_rng(0).normal(size=(4, 2, 3, 1)), np.array([0, 0, 0, 1])
    tests = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))
    ours = scores(kept(x, y, np.ones(4, bool)), tests, mirror=True, shape=(2, 3, 1))
    views = np.concatenate([x[:3], x[:3, :, ::-1]]).reshape(6, 6)
    mean = unit(unit(views).mean(axis=0))
    np.testing.assert_allclose(ours[:, 0], unit(np.asarray(tests)) @ mean, rtol=1e-12)


@LOSSES
def test_it_learns_all_tasks(loss):
    state, final = learned(
        cljax.ICaRL(lr=0.1, loss=loss, capacity=None, per_class=4), "nearest-mean", "logits"
    )
    assert min(final.values()) > 0.5 and final["nearest-mean"] > 0.7, final
    assert int(state.exemplars.mask.sum()) == 24


def test_bad_options_and_streams_are_refused():
    for options in ({"loss": "mse"}, {"temperature": np.nan}, {"exemplars": "herd"}):
        with pytest.raises(UserError):
            cljax.ICaRL(**options)
    for options in (
        {"strength": np.inf},
        {"temperature": np.nan},
        {"capacity": 24, "per_class": 1},
    ):
        with pytest.raises(UserError):
            cljax.LwFExemplars(**options)
    with pytest.raises(UserError, match="must be at least 12"):
        bind(cljax.ICaRL(capacity=11))
    with pytest.raises(UserError, match="choose multi_head=False"):
        support.bind(cljax.ICaRL(), multi_head=True)
