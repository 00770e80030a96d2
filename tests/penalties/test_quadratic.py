"""EWC, online EWC, SI, MAS and RWalk against the formulas, over two tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from jax.flatten_util import ravel_pytree
from support import learn

import cljax
from cljax import tree
from cljax.errors import UserError
from cljax.losses import classification_loss
from cljax.method import Problem
from cljax.types import Examples

MODEL = cljax.nets.mlp(5)(4)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def params_of(seed):
    return MODEL.init(jax.random.key(seed), jnp.zeros((1, 6))).params


def losses(params, examples):
    return classification_loss(MODEL, support.spec())(
        params, {}, examples, jnp.ones(examples.y.shape, bool)
    )[0]


def network():
    return Problem(MODEL, support.spec()).network({})


def consolidated(penalty, state, params, batches):
    """Runs the phase's steps over batches, the last one marked."""
    num = batches.y.shape[0]
    clock = batches.clock._replace(last=jnp.arange(num) == num - 1)

    def step(state, batch_key):
        return penalty.consolidate(state, params, batch_key[0], network(), batch_key[1]), None

    steps = batches._replace(clock=clock), jax.random.split(jax.random.key(0), num)
    return jax.jit(lambda state: jax.lax.scan(step, state, steps)[0])(state)


def examples_of(batch):
    return Examples(batch.x, batch.y, batch.task)


def squares(params, batches, power=lambda g: g**2):
    """Mean over all valid examples of a power of their gradients at the true labels."""
    total, count = tree.full_like(params, 0.0), 0
    for i in range(batches.y.shape[0]):
        batch = support.at(batches, i)
        for j in np.flatnonzero(batch.mask):
            one = jax.tree.map(lambda a, j=j: a[j : j + 1], examples_of(batch))
            grads = jax.grad(lambda p, one=one: losses(p, one)[0])(params)
            total = jax.tree.map(lambda t, g: t + power(g), total, grads)
            count += 1
    return jax.tree.map(lambda t: t / count, total)


def explicit(terms, params, factor):
    """factor * sum_t sum F_t (theta - theta_t)^2."""
    return factor * sum(tree.weighted_sq(f, params, anchor) for f, anchor in terms)


@pytest.mark.parametrize("anchors", ["every", "last"])
def test_ewc_is_the_explicit_sum_over_tasks(anchors):
    decay = 0.5
    penalty = cljax.penalties.EWC(3.0, fisher="empirical", anchors=anchors, decay=decay)
    batches = support.batches(4)
    batches = batches._replace(mask=batches.mask.at[1, 2:].set(False))
    first, second = (jax.tree.map(lambda a, s=s: a[s], batches) for s in (slice(0, 2), slice(2, 4)))
    theta = [params_of(i) for i in range(3)]
    state = penalty.init(theta[0])
    assert float(penalty.value(state, theta[2])) == 0
    state = consolidated(penalty, state, theta[0], first)
    state = consolidated(penalty, state, theta[1], second)
    f = squares(theta[0], first), squares(theta[1], second)
    if anchors == "every":
        terms = [(f[0], theta[0]), (f[1], theta[1])]
    else:
        terms = [(jax.tree.map(lambda a, b: decay * a + b, *f), theta[1])]
    np.testing.assert_allclose(
        penalty.value(state, theta[2]), explicit(terms, theta[2], 1.5), rtol=1e-10
    )
    expected = jax.grad(lambda p: explicit(terms, p, 1.5))(theta[2])
    found = jax.grad(lambda p: penalty.value(state, p))(theta[2])
    support.assert_close(found, expected, 1e-10)


def test_the_mean_gradient_is_squared_over_the_first_examples():
    """As the code of MER: (grad of the mean loss of the task's first m examples)^2."""
    learner = support.bind(
        cljax.Finetune(penalty=cljax.penalties.EWC(2.0, fisher="mean-gradient", num_examples=3))
    )
    from cljax.streams import plan

    stream = support.stream()
    rows = plan(stream, 0, 4)
    part = jax.tree.map(lambda a: a[rows.current == 1], rows)
    steps = learner.phases[0].plan(1, part)
    assert steps is not None and steps.index.shape == (1, 3) and steps.last.tolist() == [True]
    np.testing.assert_array_equal(steps.index[0], stream.subsets(0)[1][:3])
    penalty, params = cljax.penalties.EWC(2.0, fisher="mean-gradient", num_examples=3), params_of(0)
    batches = support.batches(1)
    state = consolidated(penalty, penalty.init(params), params, batches)
    grads = jax.grad(lambda p: losses(p, examples_of(support.at(batches, 0))).mean())(params)
    support.assert_close(state.importance, jax.tree.map(jnp.square, grads), 1e-12)


def test_the_mean_gradient_is_that_of_all_steps():
    """The mean is over the valid examples of every step, then it is squared."""
    penalty = cljax.penalties.EWC(2.0, fisher="mean-gradient", num_examples=None)
    params = params_of(0)
    batches = support.batches(3)
    batches = batches._replace(mask=batches.mask.at[1, 2:].set(False))
    state = consolidated(penalty, penalty.init(params), params, batches)
    mean = squares(params, batches, power=lambda g: g)
    support.assert_close(state.importance, jax.tree.map(jnp.square, mean), 1e-12)


@pytest.mark.parametrize("fisher", ["sampled", "mean-gradient"])
def test_a_fisher_over_all_examples_of_tasks_of_unequal_size(fisher):
    parts = np.split(np.arange(130, dtype=np.int32), [70, 75])
    stream = support.stream(per_task=50, subsets=lambda seed: tuple(parts))
    penalty = cljax.penalties.EWC(2.0, fisher=fisher, num_examples=None)
    history = learn(cljax.Finetune(penalty=penalty), MODEL, stream, [0], batch_size=10)
    held = tree.dot(*[history.states[0].penalty.importance] * 2)
    assert 0 < float(held) < np.inf


def test_sampled_labels_follow_the_network():
    """Over many draws the Fisher approaches its expectation under the network's own labels."""
    penalty, params = cljax.penalties.EWC(1.0), params_of(0)
    batch = support.batches(1)
    many = jax.tree.map(lambda a: jnp.concatenate([a] * 600), batch)
    state = consolidated(penalty, penalty.init(params), params, many)
    own = support.at(batch, 0)
    p = jax.nn.softmax(MODEL.apply(cljax.types.Variables(params, {}), own.x, False)[0].logits)
    expected = tree.full_like(params, 0.0)
    for label in range(4):
        for j in range(4):
            one = Examples(own.x[j : j + 1], jnp.array([label]), own.task[j : j + 1])
            grads = jax.grad(lambda q, one=one: losses(q, one)[0])(params)
            expected = jax.tree.map(lambda e, g, w=p[j, label]: e + w * g**2 / 4, expected, grads)
    found = ravel_pytree(state.importance)[0]
    wanted = ravel_pytree(expected)[0]
    np.testing.assert_allclose(found, wanted, rtol=0.3, atol=0.02 * float(wanted.max()))


@pytest.mark.parametrize("name", ["EWC", "SI", "MAS", "RWalk"])
def test_without_strength_it_is_finetuning(name):
    penalty = getattr(cljax.penalties, name)(0.0)
    batches = support.batches(6)
    with_penalty, _ = support.run(support.bind(cljax.Finetune(lr=0.1, penalty=penalty)), batches)
    plain, _ = support.run(support.bind(cljax.Finetune(lr=0.1)), batches)
    support.assert_close(with_penalty.params, plain.params, 1e-12)


@pytest.mark.parametrize("name", ["EWC", "OnlineEWC", "SI", "MAS", "RWalk", "LwF"])
def test_the_first_task_is_finetuning(name):
    penalty = getattr(cljax.penalties, name)(5.0)
    batches = support.batches(3, tasks=1)
    with_penalty, _ = support.run(support.bind(cljax.Finetune(lr=0.1, penalty=penalty)), batches)
    plain, _ = support.run(support.bind(cljax.Finetune(lr=0.1)), batches)
    support.assert_close(with_penalty.params, plain.params, 1e-12)


def test_si_from_a_recorded_path():
    penalty = cljax.penalties.SI(2.0, damping=0.1)
    theta = [params_of(i) for i in range(4)]
    state, path = penalty.init(theta[0]), tree.full_like(theta[0], 0.0)
    for i in (0, 1):
        grads = params_of(10 + i)
        step = jax.tree.map(jnp.subtract, theta[i + 1], theta[i])
        state = penalty.observe(state, theta[i], grads, step)
        path = jax.tree.map(lambda w, g, u: w - g * u, path, grads, step)
    state = consolidated(penalty, state, theta[2], support.batches(1))
    importance = jax.tree.map(
        lambda w, end, start: jnp.maximum(w, 0) / ((end - start) ** 2 + 0.1),
        path, theta[2], theta[0],
    )  # fmt: skip
    support.assert_close(state.importance, importance, 1e-12)
    expected = 2.0 * tree.weighted_sq(importance, theta[3], theta[2])
    np.testing.assert_allclose(penalty.value(state, theta[3]), expected)
    support.assert_close(state.path, tree.full_like(theta[0], 0.0))


def test_si_sees_the_gradient_without_the_penalty():
    learner = support.bind(cljax.Finetune(lr=0.1, penalty=cljax.penalties.SI(1.0)))
    batches = support.batches(1)
    state = learner.init(jax.random.key(0))
    weight = tree.full_like(state.params, 3.0)
    anchor = jax.tree.map(lambda p: p + 1.0, state.params)
    state = state._replace(penalty=state.penalty._replace(importance=weight, anchor=anchor))
    batch = support.at(batches, 0)
    after, _ = learner.update(state, batch, ())
    grads = jax.grad(lambda p: losses(p, examples_of(batch)).mean())(state.params)
    total = jax.tree.map(lambda g, p, a: g + 2 * 3.0 * (p - a), grads, state.params, anchor)
    support.assert_close(after.params, tree.add_scaled(state.params, total, -0.1), 1e-12)
    path = jax.tree.map(lambda g, t: g * 0.1 * t, grads, total)
    support.assert_close(after.penalty.path, path, 1e-12)


def test_mas_is_the_mean_sensitivity_of_the_outputs():
    penalty, params = cljax.penalties.MAS(1.0), params_of(0)
    batches = support.batches(2)
    batches = batches._replace(mask=batches.mask.at[0, 0].set(False))
    state = consolidated(penalty, penalty.init(params_of(1)), params, batches)
    total, count = tree.full_like(params, 0.0), 0
    for i in range(2):
        batch = support.at(batches, i)
        for j in np.flatnonzero(batch.mask):

            def norm(p, x=batch.x[j : j + 1]):
                return jnp.sum(MODEL.apply(cljax.types.Variables(p, {}), x, False)[0].logits ** 2)

            total = jax.tree.map(lambda t, g: t + jnp.abs(g), total, jax.grad(norm)(params))
            count += 1
    importance = jax.tree.map(lambda t: t / count, total)
    support.assert_close(state.importance, importance, 1e-12)
    expected = tree.weighted_sq(importance, params_of(2), params)
    np.testing.assert_allclose(penalty.value(state, params_of(2)), expected)


def test_rwalk_over_one_window():
    rate, damping = 0.7, 0.05
    penalty = cljax.penalties.RWalk(1.5, rate=rate, window=2, damping=damping)
    theta = [params_of(i) for i in range(4)]
    state = penalty.init(theta[0])
    fisher = path = tree.full_like(theta[0], 0.0)
    for i in (0, 1):
        grads = params_of(10 + i)
        step = jax.tree.map(jnp.subtract, theta[i + 1], theta[i])
        state = penalty.observe(state, theta[i], grads, step)
        fisher = jax.tree.map(lambda f, g: rate * g**2 + (1 - rate) * f, fisher, grads)
        path = jax.tree.map(lambda a, g, u: a - g * u, path, grads, step)
    assert int(state.step) == 0  # the window has ended
    score = jax.tree.map(
        lambda a, f, end, start: jnp.maximum(a, 0) / (0.5 * f * (end - start) ** 2 + damping),
        path, fisher, theta[2], theta[0],
    )  # fmt: skip
    state = consolidated(penalty, state, theta[2], support.batches(1))
    largest = lambda t: max(float(leaf.max()) for leaf in jax.tree.leaves(t))
    weight = jax.tree.map(lambda f, s: f / largest(fisher) + s / largest(score), fisher, score)
    support.assert_close(state.weight, weight, 1e-10)
    expected = 1.5 * tree.weighted_sq(weight, theta[3], theta[2])
    np.testing.assert_allclose(penalty.value(state, theta[3]), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cljax.penalties.EWC(float("nan")),
        lambda: cljax.penalties.EWC(fisher="exact"),
        lambda: cljax.penalties.EWC(num_examples=0),
        lambda: cljax.penalties.SI(damping=float("inf")),
        lambda: cljax.penalties.MAS(num_examples=0),
        lambda: cljax.penalties.RWalk(window=0),
        lambda: cljax.penalties.LwF(float("nan")),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(UserError):
        make()
