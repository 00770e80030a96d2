"""GEM and A-GEM: what the projection must and must not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.errors import UserError
from cljax.losses import classification_loss, masked_mean
from cljax.methods.gem import agem_coefficients, gem_coefficients
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gram_of(m, g):
    rows = np.concatenate([m, g[None]])
    return jnp.asarray(rows @ rows.T)


@pytest.mark.parametrize("seed", range(8))
def test_gem_leaves_no_past_task_against_the_step(seed):
    rng = np.random.default_rng(seed)
    m, g = rng.normal(size=(4, 10)), rng.normal(size=10)
    active = np.array([True, True, False, True])
    c = np.asarray(gem_coefficients(gram_of(m, g), jnp.asarray(active), margin=0.0, ridge=1e-12))
    turned = c[:-1] @ m + c[-1] * g
    assert (m[active] @ turned >= -1e-8).all()
    assert c[2] == 0 and c[-1] == 1
    if (m[active] @ g >= 0).all():
        np.testing.assert_array_equal(turned, g)


@pytest.mark.parametrize("seed", range(8))
def test_agem_leaves_the_reference_at_a_right_angle_or_better(seed):
    rng = np.random.default_rng(seed)
    m, g = rng.normal(size=(3, 10)), rng.normal(size=10)
    c = np.asarray(agem_coefficients(gram_of(m, g), jnp.ones(3, bool)))
    turned, reference = c[:-1] @ m + c[-1] * g, m.mean(axis=0)
    assert turned @ reference >= -1e-10
    if g @ reference >= 0:
        np.testing.assert_allclose(turned, g)


@pytest.mark.parametrize("coefficients", ["gem", "agem"])
@pytest.mark.parametrize("m", [np.zeros((3, 4)), np.ones((3, 4)), 1e-20 * np.ones((3, 4))])
def test_degenerate_memories_never_give_nan(coefficients, m):
    g = -np.ones(4)
    for active in (np.zeros(3, bool), np.ones(3, bool)):
        for dtype in (jnp.float32, jnp.float64):
            gram, on = gram_of(m, g).astype(dtype), jnp.asarray(active)
            if coefficients == "gem":
                for margin in (0.0, 1e6):
                    c = gem_coefficients(gram, on, margin=margin, ridge=0.0)
                    assert np.isfinite(c).all()
            else:
                c = agem_coefficients(gram, on)
            assert np.isfinite(c).all() and c[-1] == 1


METHODS = {
    "gem": lambda **o: cljax.GEM(lr=0.1, per_task=3, **o),
    "agem": lambda **o: cljax.AGEM(lr=0.1, per_task=3, reference_size=None, **o),
    "agem-sampled": lambda **o: cljax.AGEM(lr=0.1, per_task=3, reference_size=5, **o),
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_first_task_is_plain_gradient_descent(name):
    batches = support.batches(3, tasks=1)
    projected, _ = support.run(support.bind(METHODS[name]()), batches)
    plain, _ = support.run(support.bind(cljax.Finetune(lr=0.1)), batches)
    support.assert_close(projected.params, plain.params, 1e-12)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_low_rank_is_the_general_step(name):
    batches = support.batches(9)
    general, _ = support.run(support.bind(METHODS[name](clip_norm=0.5)), batches)
    low_rank, _ = support.run(
        support.bind(METHODS[name](clip_norm=0.5, algebra="low-rank")), batches
    )
    support.assert_close(general.params, low_rank.params, 1e-10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_memories_of_one_direction_are_no_trouble_in_single_precision(seed, margin):
    """Twenty tasks whose gradients nearly agree, without a ridge."""
    rng = np.random.default_rng(seed)
    m = np.repeat(rng.normal(size=(1, 2000)), 21, 0) + 1e-5 * rng.normal(size=(21, 2000))
    m[-1] *= -1
    gram = jnp.asarray(m @ m.T, jnp.float32)
    c = gem_coefficients(gram, jnp.ones(20, bool), margin=margin, ridge=0.0)
    assert np.isfinite(c).all()
    assert (m[:-1] @ (np.asarray(c, float) @ m) > -0.05 * (m**2).sum(1)[:-1]).all()


def test_a_gradient_of_norm_zero_can_be_clipped():
    """Rounding may leave its square below 0."""
    batch = support.at(support.batches(1), 0)
    learner = support.bind(cljax.GEM(clip_norm=0.5, algebra="low-rank"))
    state = learner.init(jax.random.key(0))
    batch = batch._replace(mask=jnp.zeros(4, bool))
    state, _ = learner.update(state, batch, learner.draw(state, batch, jax.random.key(1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_step_against_the_formula():
    """The first step of task 1: one constraint, so the projection is along its gradient."""
    learner, batches = support.bind(METHODS["gem"](margin=0.0, ridge=0.0)), support.batches(6)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:2], batches))
    batch, stored = support.at(batches, 2), state.memory.data
    loss_fn = classification_loss(cljax.nets.mlp(5)(4), support.spec())

    def gradient(examples):
        def loss(params):
            mask = jnp.ones(examples.y.shape, bool)
            return masked_mean(loss_fn(params, {}, examples, mask)[0], mask)

        return jax.grad(loss)(state.params)

    m = gradient(support.at(stored, 0))
    # Of the constant labels, the one that opposes the memory most.
    labels = [jnp.full(4, label, jnp.int32) for label in range(4)]
    products = [
        cljax.tree.dot(m, gradient(Examples(batch.x, label, batch.task))) for label in labels
    ]
    batch = batch._replace(y=labels[int(np.argmin(products))])
    g, along = gradient(Examples(batch.x, batch.y, batch.task)), min(products)
    assert along < 0
    turned = cljax.tree.add_scaled(g, m, -along / cljax.tree.dot(m, m))
    expected = cljax.tree.add_scaled(state.params, turned, -0.1)
    draws = learner.draw(state, batch, jax.random.key(1))
    after, _ = jax.jit(learner.update)(state, batch, draws)
    support.assert_close(after.params, expected, 1e-8)


def test_the_skipped_first_task_never_constrains():
    batches = support.batches(6, tasks=2)
    skipped, _ = support.run(support.bind(METHODS["agem"](skip_first_task=True)), batches)
    plain, _ = support.run(support.bind(cljax.Finetune(lr=0.1)), batches)
    kept, _ = support.run(support.bind(METHODS["agem"]()), batches)
    support.assert_close(skipped.params, plain.params, 1e-12)
    assert not np.allclose(kept.params["Dense_0"]["kernel"], plain.params["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: cljax.GEM(margin=-0.1),
        lambda: cljax.GEM(ridge=-1.0),
        lambda: cljax.GEM(per_task=0),
        lambda: cljax.GEM(algebra="fast"),
        lambda: cljax.AGEM(reference_size=0),
        lambda: cljax.AGEM(lr=float("inf")),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(UserError):
        make()
