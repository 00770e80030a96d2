"""Weights of classes in class-incremental methods: an update each against plain mathematics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from incremental_support import COSINE, LINEAR, NC, C, batch, one_hot, phase, seen, step

import cljax
from cljax.methods.bic import Correction
from cljax.types import Objective

LR, TASK, PAST, SEEN = 0.1, 1, seen(0), seen(1)
WEIGHTS = np.random.default_rng(3).uniform(0.2, 3.0, C)
SCALED = WEIGHTS / WEIGHTS.mean()
TAU, STRENGTH = 2.0, 0.7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def bound(method, weights, model=LINEAR):
    spec = support.spec(own_classes=True)._replace(objective=Objective(weights=weights))
    return method.bind(model, spec)


def mixed():
    """Rows of the first two tasks while the second is learned; one is masked."""
    return batch([0, 1, 1, 0, 1], current=TASK, masked=[1])


def rows():
    """Inputs, labels, one-hot labels and weights of the valid rows."""
    own = mixed()
    valid = np.asarray(own.mask)
    y = np.asarray(own.y)[valid]
    return np.asarray(own.x)[valid], y, one_hot(y), SCALED[y]


def logits(params, x):
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]


def over(z, outputs):
    """Log-softmax over some outputs, which are all that is returned."""
    z = z[:, outputs]
    return z - jnp.log(jnp.exp(z).sum(axis=1, keepdims=True))


def entropy(z, outputs, target):
    return -(target[:, outputs] * over(z, outputs)).sum(axis=1)


def apart(z, before):
    """KL of the old outputs' softmax, softened."""
    new, old = over(z / TAU, PAST), over(before / TAU, PAST)
    return (jnp.exp(old) * (old - new)).sum(axis=1)


def sigmoids(z, target):
    p = 1 / (1 + jnp.exp(-z))
    return -target * jnp.log(p) - (1 - target) * jnp.log(1 - p)


def icarl_bce(params, teacher):
    x, _, target, w = rows()
    z, before = logits(params, x), logits(teacher, x)
    target = jnp.where(PAST[None], 1 / (1 + jnp.exp(-before)), target)
    return (w * sigmoids(z, target)[:, SEEN].sum(axis=1)).mean()


def icarl_kl(params, teacher):
    x, _, target, w = rows()
    z, before = logits(params, x), logits(teacher, x)
    return (w * entropy(z, SEEN, target) + STRENGTH * apart(z, before)).mean()


def bic_1(params, teacher):
    x, _, target, w = rows()
    z, before = logits(params, x), logits(teacher, x)
    return (0.5 * apart(z, before) + 0.5 * w * entropy(z, SEEN, target)).mean()


def lucir(params, teacher):
    x, y, target, w = rows()
    unit = lambda a, axis: a / jnp.sqrt((a**2).sum(axis=axis, keepdims=True))
    f, f_old = (unit(jnp.maximum(logits(p, x), 0), 1) for p in (params, teacher))
    s = f @ unit(params["head"]["kernel"], 0)
    plain = (w * entropy(params["head"]["sigma"] * s, SEEN, target)).mean()
    old = np.flatnonzero(y < NC)
    best = jnp.sort(s[:, NC : 2 * NC], axis=1)[:, ::-1][:, :2]
    hinges = jnp.maximum(0.5 - s[np.arange(len(y)), y][:, None] + best, 0)[old]
    return plain + 5.0 * (1 - (f * f_old).sum(axis=1)).mean() + hinges.mean()


METHODS = {
    "icarl": (cljax.ICaRL(lr=LR, capacity=24), LINEAR, icarl_bce),
    "icarl, kl": (cljax.ICaRL(lr=LR, loss="kl", strength=STRENGTH, temperature=TAU, capacity=24),
                  LINEAR, icarl_kl),
    "bic": (cljax.BiC(lr=LR, temperature=TAU, capacity=24), LINEAR, bic_1),
    "lucir": (cljax.LUCIR(lr=LR, capacity=24), COSINE, lucir),
}  # fmt: skip


def stepped(method, model, weights):
    """A step in the second task from a teacher of its own: before, the teacher and after."""
    learner = bound(method, weights, model)
    state, other = (learner.init(jax.random.key(i)) for i in (0, 1))
    state = state._replace(teacher=other.teacher)
    return state.params, other.params, *step(learner, state, mixed())


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_one_by_hand(name):
    method, model, loss = METHODS[name]
    params, teacher, after, info = stepped(method, model, tuple(WEIGHTS))
    value, grads = jax.value_and_grad(loss)(params, teacher)
    np.testing.assert_allclose(info.loss, value, rtol=1e-12)
    expected = jax.tree.map(lambda p, g: p - LR * g, params, grads)
    if name == "lucir":  # rows of past outputs are frozen
        rows = jnp.where(PAST[None], params["head"]["kernel"], expected["head"]["kernel"])
        expected["head"]["kernel"] = rows
    support.assert_close(after.params, expected, 1e-12)


def test_a_step_of_the_correction_is_the_one_by_hand():
    learner = bound(
        cljax.BiC(capacity=24, correction_lr=0.05, correction_decay=0.2), tuple(WEIGHTS)
    )
    state = learner.init(jax.random.key(0))
    after, info = jax.jit(phase(learner, "correction").update)(state, mixed(), ())
    x, _, target, w = rows()
    y = logits(state.params, x)

    def loss(pair):
        new = np.arange(C)[None] // NC == TASK
        z = jnp.where(new, pair[0] * y + pair[1], y)
        fit = (w * entropy(z, SEEN, target)).mean()
        return fit + 0.2 * pair[1] ** 2, fit

    pair = jnp.array([1.0, 0.0])
    grads, fit = jax.grad(loss, has_aux=True)(pair)
    np.testing.assert_allclose(info.loss, fit, rtol=1e-12)
    made: Correction = after.own.correction
    np.testing.assert_allclose([a[TASK] for a in made], pair - 0.05 * grads, rtol=1e-12)


def micro(learner):
    """A step of iTAML in the second task."""
    state = learner.init(jax.random.key(0))
    return state, *step(learner, state, mixed())


@pytest.mark.parametrize("algebra", ["general", "one-gradient"])
def test_a_step_of_itaml_is_the_one_by_hand(algebra):
    """Each task's network steps from the same one, on its rows and outputs; then their mean."""
    method = cljax.ITAML(lr=LR, capacity=24, algebra=algebra)
    state, after, info = micro(bound(method, tuple(WEIGHTS)))
    x, y, target, w = rows()

    def loss(params, task):
        own, where = y // NC == task, np.arange(C) // NC == task
        each = sigmoids(logits(params, x[own]), target[own])[:, where].mean(axis=1)
        return (w[own] * each).mean()

    both = [jax.value_and_grad(loss)(state.params, task) for task in (0, 1)]
    np.testing.assert_allclose(info.loss, np.mean([value for value, _ in both]), rtol=1e-12)
    moved = jax.tree.map(lambda a, b: -LR * (a + b) / 2, *(grads for _, grads in both))
    eta = np.exp(-TASK / support.NUM_TASKS)
    expected = jax.tree.map(lambda p, d: p + eta * d, state.params, moved)
    support.assert_close(after.params, expected, 1e-12)


@pytest.mark.parametrize("equal", [1.0, 3.0])
@pytest.mark.parametrize("name", [*METHODS, "bic, correction", "itaml", "itaml, one-gradient"])
def test_equal_weights_change_no_bit_of_a_step(name, equal):
    def after(weights):
        if name.startswith("itaml"):
            algebra = "one-gradient" if "one" in name else "general"
            return micro(bound(cljax.ITAML(capacity=24, algebra=algebra), weights))[1:]
        if name == "bic, correction":
            learner = bound(cljax.BiC(capacity=24), weights)
            state = learner.init(jax.random.key(0))
            return jax.jit(phase(learner, "correction").update)(state, mixed(), ())
        return stepped(*METHODS[name][:2], weights)[2:]

    for plain, weighed in zip(
        jax.tree.leaves(after(None)), jax.tree.leaves(after((equal,) * C)), strict=True
    ):
        if jnp.issubdtype(plain.dtype, jax.dtypes.prng_key):
            plain, weighed = jax.random.key_data(plain), jax.random.key_data(weighed)
        np.testing.assert_array_equal(plain, weighed)
