"""LUCIR: its losses and an update against NumPy, its weights at each task, what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import (
    COSINE,
    NORMALISED,
    C,
    assert_padding_is_harmless,
    batch,
    bind,
    learned,
    one_hot,
    seen,
    softmax,
    step,
)

from cljax.errors import UserError
from cljax.method import Problem
from cljax.methods.incremental import Outputs, outputs_at
from cljax.methods.lucir import LUCIR, less_forget_loss, margin_loss
from cljax.nets import mlp
from cljax.types import Lens, Output

BASE, MARGIN, WEIGHT = 5.0, 0.5, 0.7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arrays(params):
    """First kernel, its bias, the rows [D, C] and sigma, as NumPy arrays."""
    first, head = params["Dense_0"], params["head"]
    return [np.array(a) for a in (first["kernel"], first["bias"], head["kernel"], head["sigma"])]


def normalised(a, axis):
    return a / np.linalg.norm(a, axis=axis, keepdims=True)


def through(d, a, axis):
    """The gradient in ``a`` from the one in ``a / |a|``."""
    u = normalised(a, axis)
    return (d - u * (u * d).sum(axis, keepdims=True)) / np.linalg.norm(a, axis=axis, keepdims=True)


def hinges(s, y, old, new):
    """Margin loss and its gradient in the scores, one hinge after another."""
    pairs = [
        (i, y[i], k)
        for i in np.flatnonzero(old[y])
        for k in sorted(np.flatnonzero(new), key=lambda k, i=i: -s[i, k])[:2]
    ]
    total, d = 0.0, np.zeros_like(s)
    for i, own, k in pairs:
        violated = MARGIN - s[i, own] + s[i, k]
        if violated > 0:
            total += violated / len(pairs)
            d[i, own] -= 1 / len(pairs)
            d[i, k] += 1 / len(pairs)
    return total, d


@pytest.mark.parametrize("task", [0, 1, 2])
def test_two_steps_by_hand(task):
    """Rows of past outputs are frozen; in task 2 there are twice as many old outputs as new."""
    lr = 0.3
    method = LUCIR(lr=lr, less_forget=BASE, margin=MARGIN, margin_weight=WEIGHT, capacity=24)
    learner = bind(method, COSINE)
    state, other = (learner.init(jax.random.key(i)) for i in (0, 1))
    state = state._replace(teacher=other.teacher)
    old, now = seen(task - 1), seen(task)
    new, strength = now & ~old, BASE * np.sqrt(task)
    w, b, k, sigma = arrays(state.params)
    w_old, b_old, _, _ = arrays(other.params)
    for seed in (0, 1):
        own = batch([0, task, 0, task, max(task - 1, 0)], current=task, seed=seed, masked=[1])
        state, info = step(learner, state, own)
        rows = np.asarray(own.mask)
        x, y = np.asarray(own.x)[rows], np.asarray(own.y)[rows]
        a = x @ w + b
        f, f_old = np.maximum(a, 0), np.maximum(x @ w_old + b_old, 0)
        assert (np.abs(f).sum(1) > 0).all() and (np.abs(f_old).sum(1) > 0).all()
        u, u_old, v = normalised(f, 1), normalised(f_old, 1), normalised(k, 0)
        s = u @ v
        p = softmax(sigma * s, now)
        apart, d_apart = hinges(s, y, old, new)
        assert (apart > 0) == (task > 0)
        d_z = (p - one_hot(y)) / len(x)
        d_s = sigma * d_z + WEIGHT * d_apart
        expected = -np.log(p[np.arange(len(x)), y]).mean() + WEIGHT * apart
        d_u = d_s @ v.T
        if task:
            expected += strength * (1 - (u * u_old).sum(1)).mean()
            d_u -= strength * u_old / len(x)
        np.testing.assert_allclose(info.loss, expected, rtol=1e-12)
        d_a = through(d_u, f, 1) * (a > 0)
        d_k = through(u.T @ d_s, k, 0)
        w, b, sigma = w - lr * x.T @ d_a, b - lr * d_a.sum(0), sigma - lr * (d_z * s).sum()
        k = k - lr * np.where(new, d_k, 0)
    for ours, theirs in zip(arrays(state.params), (w, b, k, sigma), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# Outputs 0 and 1 are old, 2 to 4 new, 5 is to come and has the largest score of all.
OUTPUTS = Outputs(jnp.arange(6) < 2, (jnp.arange(6) > 1) & (jnp.arange(6) < 5), jnp.arange(6) < 5)
SCORES = np.array([
    [0.9, 0.0, 0.6, 0.1, 0.2, 1.0],  # 0.5 - 0.9 + 0.6 = 0.2, and 0.5 - 0.9 + 0.2 < 0
    [0.0, 0.2, -0.2, 0.4, 0.3, 1.0],  # 0.7 and 0.6
    [0.9, 0.9, 0.9, 0.9, 0.9, 1.0],  # new: does not count
    [0.0, 0.0, 0.9, 0.9, 0.9, 1.0],  # padding
])  # fmt: skip
Y, MASK = jnp.array([0, 1, 2, 0]), jnp.arange(4) < 3


def apart(scores, outputs=OUTPUTS, mask=MASK, negatives=2):
    return margin_loss(scores, Y, mask, outputs, margin=0.5, negatives=negatives)


def test_margin_by_hand():
    value, slope = jax.jit(jax.value_and_grad(apart))(SCORES)
    np.testing.assert_allclose(value, (0.2 + 0.0 + 0.7 + 0.6) / 4, rtol=1e-12)
    expected = np.zeros((4, 6))
    expected[0, [0, 2]] = -0.25, 0.25
    expected[1, [1, 3, 4]] = -0.5, 0.25, 0.25
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-15)


def test_without_old_examples_the_margin_loss_is_zero():
    first = Outputs(jnp.zeros(6, bool), jnp.arange(6) < 2, jnp.arange(6) < 2)
    for outputs, mask in ((first, MASK), (OUTPUTS, jnp.arange(4) == 2)):
        value, slope = jax.value_and_grad(apart)(SCORES, outputs, mask)
        assert value == 0 and (slope == 0).all()


def test_with_one_new_output_there_is_one_hinge():
    new = jnp.arange(6) == 4
    value, slope = jax.value_and_grad(apart)(SCORES, OUTPUTS._replace(own=new), negatives=3)
    np.testing.assert_allclose(value, (0.0 + 0.6) / 2, rtol=1e-12)
    expected = np.zeros((4, 6))
    expected[1, [1, 4]] = -0.5, 0.5
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-15)


def test_less_forget_is_of_directions_alone():
    rng = np.random.default_rng(0)
    f, old = rng.normal(size=(2, 4, 3))
    cos = (normalised(f, 1) * normalised(old, 1)).sum(1)
    scale = rng.uniform(0.1, 10, (4, 1))
    for features in (f, scale * f):
        value = less_forget_loss(jnp.asarray(features), jnp.asarray(old), MASK)
        np.testing.assert_allclose(value, (1 - cos)[:3].mean(), rtol=1e-12)
    assert less_forget_loss(-jnp.asarray(f), jnp.asarray(f), MASK) == pytest.approx(2)


def test_the_less_forget_constraint_grows_as_the_root_of_old_over_new():
    """Tasks of 4, 2 and 1 outputs; the task is traced, as in a run."""
    class_mask = np.repeat(np.arange(3), [4, 2, 1]) == np.arange(3)[:, None]
    rng = np.random.default_rng(0)
    kernel, (f, old) = jnp.asarray(rng.normal(size=(3, 7))), jnp.asarray(rng.normal(size=(2, 4, 3)))
    rows = Lens(lambda params: kernel, lambda params, new: params)
    problem = Problem(COSINE._replace(rows=rows), support.spec(own_classes=True))
    own = batch([0, 0, 0, 0])

    @jax.jit
    def total(task, base):
        output, teacher = (Output(jnp.zeros((4, 7)), features) for features in (f, old))
        outputs = outputs_at(class_mask, task)
        made = LUCIR(less_forget=base, margin=0.5, margin_weight=0.0, negatives=2)
        return made.objective(problem, (), output, teacher, (), own, outputs)

    plain = less_forget_loss(f, old, own.mask)
    for task, factor in ((0, 0.0), (1, np.sqrt(4 / 2)), (2, np.sqrt(6 / 1))):
        added = total(task, BASE) - total(task, 0.0)
        np.testing.assert_allclose(added, BASE * factor * plain, rtol=1e-12, atol=1e-15)


def test_padding_is_harmless():
    assert_padding_is_harmless(LUCIR(capacity=24), COSINE)


def test_it_learns_all_tasks():
    method = LUCIR(lr=0.3, capacity=None, per_class=4, less_forget=1.0)
    state, final = learned(method, "logits", "nearest-mean", head="cosine")
    assert min(final.values()) > 0.7, final
    assert int(state.exemplars.mask.sum()) == 24 and state.params["head"]["sigma"] > 1


@pytest.mark.parametrize("model", [mlp(5)(C), NORMALISED])
def test_a_network_without_a_cosine_head_is_refused(model):
    with pytest.raises(UserError, match="has no cosine head; use one such as .* mlp:100:cosine.$"):
        bind(LUCIR(capacity=24), model)


def test_bad_options_are_refused():
    for words, options in (
        ("margin is nan", {"margin": np.nan}),
        ("less_forget is inf", {"less_forget": np.inf}),
        ("negatives is 0", {"negatives": 0}),
    ):
        with pytest.raises(UserError, match=words):
            LUCIR(**options)
    with pytest.raises(UserError, match="negatives is 13, but the stream has only 12 outputs"):
        bind(LUCIR(negatives=13, capacity=24), COSINE)
