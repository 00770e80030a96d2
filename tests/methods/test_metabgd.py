"""Meta-BGD against a plain loop over samples, and the properties of its posterior."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from jax.flatten_util import ravel_pytree

from cljax.errors import UserError
from cljax.memory import reservoir
from cljax.methods import metabgd
from cljax.methods.metabgd import MetaBGD
from cljax.types import Examples

OPTIONS = {"capacity": 7, "replay_size": 3, "glances": 2, "mc_samples": 2, "inner_steps": 3}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def prepared(method, filled=5, seed=3):
    """A learner, a state whose memory holds ``filled`` examples, and a batch."""
    learner = support.bind(method)
    state = learner.init(jax.random.key(0))
    old = support.at(support.batches(2, seed=seed), 0)
    for i in range(filled):
        one = Examples(old.x[i % 4][None] + i, old.y[i % 4][None], old.task[i % 4][None])
        state = state._replace(memory=reservoir.add(state.memory, one, jax.random.key(i)))
    return learner, state, support.at(support.batches(1), 0)


def mean_loss(params, x, y):
    hidden = jnp.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None], 0)
    logits = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])


@functools.partial(jax.jit, static_argnames=("unravel", "size", "chunk", "second", "relu", "clip"))
def meta_gradient(phi, x, y, meta_x, meta_y, *, unravel, size, chunk, second, relu, clip):
    """Of the mean loss after each inner step, in parameters and rates as one vector."""

    def meta(phi):
        th, alpha = phi[:size], phi[size:]
        losses = []
        for i in range(0, len(y), chunk):
            inner = lambda t, i=i: mean_loss(unravel(t), x[i : i + chunk], y[i : i + chunk])
            grad = jax.grad(inner)(th)
            grad = grad if second else jax.lax.stop_gradient(grad)
            rate = jnp.where(alpha > 0, alpha, 0) if relu else alpha
            th = th - rate * jnp.clip(grad, -clip, clip)
            losses.append(mean_loss(unravel(th), meta_x, meta_y))
        return sum(losses) / len(losses)

    return jax.grad(meta)(phi)


def by_hand(state, batch, draws, *, rows, second, relu, lr, inner_clip=0.4, clip=0.5, steps=3):
    """The update of the module's docstring on flat vectors; ``rows`` are the valid examples."""
    theta, unravel = ravel_pytree(state.params)
    flat = lambda t: np.asarray(ravel_pytree(t)[0])
    mu = np.concatenate([flat(state.params), flat(state.alpha)])
    sigma = np.concatenate([flat(state.params_std), flat(state.alpha_std)])
    size, num = len(theta), len(rows)
    num_glances, num_samples = draws.order.shape[:2]

    for g in range(num_glances):
        slope, curvature = np.zeros_like(mu), np.zeros_like(mu)
        for n in range(num_samples):
            one = support.at(draws._replace(slots=None), (g, n))
            eps = np.concatenate([flat(one.params_eps), flat(one.alpha_eps)])
            valid = np.asarray(one.replay_mask)
            order = [i for i in np.asarray(one.order) if i in rows]
            x, y = np.asarray(batch.x)[order], np.asarray(batch.y)[order]
            meta_x = np.concatenate([np.asarray(one.replay.x)[valid], x])
            meta_y = np.concatenate([np.asarray(one.replay.y)[valid], y])
            d = np.array(meta_gradient(
                mu + sigma * eps, x, y, meta_x, meta_y, unravel=unravel, size=size,
                chunk=-(-num // steps), second=second, relu=relu, clip=inner_clip,
            ))  # fmt: skip
            d[:size] *= min(1, clip / (np.linalg.norm(d[:size]) + 1e-6))
            slope += num * d / num_samples
            curvature += num * d * eps / num_samples
        mu = mu - lr * sigma**2 * slope
        sigma = sigma * np.sqrt(1 + (sigma * curvature / 2) ** 2) - sigma**2 * curvature / 2
    return mu, sigma


@pytest.mark.parametrize(
    ("order", "inner_relu", "masked"),
    [("second", False, 0), ("second", True, 1), ("first", False, 1), ("first", True, 0)],
)
def test_an_update_equals_the_formulas(order, inner_relu, masked):
    method = MetaBGD(
        order=order, inner_relu=inner_relu, lr=7.0, std_init=0.1, alpha_init=0.05,
        inner_clip=0.4, clip_norm=0.5, **{**OPTIONS, "inner_steps": 2},
    )  # fmt: skip
    learner, state, batch = prepared(method)
    draws = learner.draw(state, batch, jax.random.key(1))
    if masked:  # the last row of the batch, in the last place of each order
        batch = batch._replace(mask=batch.mask.at[3].set(False))
        order_ = jnp.stack([jnp.roll(jnp.arange(3), i) for i in range(4)]).reshape(2, 2, 3)
        order_ = jnp.concatenate([order_, jnp.full((2, 2, 1), 3)], axis=2)
        draws = draws._replace(order=order_.astype(jnp.int32))
    after, _ = learner.update(state, batch, draws)
    mu, sigma = by_hand(
        state, batch, draws, rows=range(4 - masked), second=order == "second", relu=inner_relu,
        lr=7.0, steps=2,
    )  # fmt: skip
    support.assert_close(ravel_pytree((after.params, after.alpha))[0], mu, 1e-12)
    support.assert_close(ravel_pytree((after.params_std, after.alpha_std))[0], sigma, 1e-13)
    assert float(jnp.abs(ravel_pytree(after.alpha)[0] - 0.05).max()) > 1e-6


def test_a_batch_that_does_not_divide_has_a_smaller_last_chunk():
    """Four examples in three steps: ceil(4/3) = 2 examples a chunk, so two chunks."""
    learner, state, batch = prepared(MetaBGD(**OPTIONS))
    assert learner.gradients_per_update == 2 * 2 * 2 * 2
    draws = learner.draw(state, batch, jax.random.key(1))
    two = support.bind(MetaBGD(**{**OPTIONS, "inner_steps": 2}))
    support.assert_close(learner.update(state, batch, draws), two.update(state, batch, draws))


def test_without_noise_the_deviations_stay():
    """Q = 0: sigma is unchanged, and the means descend with rate lr * sigma^2 * B."""
    learner, state, batch = prepared(MetaBGD(**OPTIONS))
    draws = learner.draw(state, batch, jax.random.key(1))
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    draws = draws._replace(params_eps=zero(draws.params_eps), alpha_eps=zero(draws.alpha_eps))
    after, _ = learner.update(state, batch, draws)
    support.assert_close(after.params_std, state.params_std)
    support.assert_close(after.alpha_std, state.alpha_std)
    assert float(jnp.abs(ravel_pytree(after.params)[0] - ravel_pytree(state.params)[0]).max()) > 0


def test_fixed_rates_are_not_sampled():
    learner, state, batch = prepared(MetaBGD(bayes_alpha=False, **OPTIONS))
    draws = learner.draw(state, batch, jax.random.key(1))
    after, _ = learner.update(state, batch, draws)
    support.assert_close((after.alpha, after.alpha_std), (state.alpha, state.alpha_std))
    doubled = draws._replace(alpha_eps=jax.tree.map(lambda a: 9 * a, draws.alpha_eps))
    support.assert_close(learner.update(state, batch, doubled)[0], after)


def test_deviations_follow_the_formula_and_stay_positive():
    std, curvature = jnp.array([0.02, 0.3, 1.0, 0.0]), jnp.array([5.0, -3.0, 0.0, 7.0])
    formula = std * jnp.sqrt(1 + (std * curvature / 2) ** 2) - std**2 * curvature / 2
    support.assert_close(metabgd._new_std(std, curvature), formula, 1e-15)
    steep = jnp.array([1e12, -1e12, 1e-12, 1e38], jnp.float32)
    new = metabgd._new_std(jnp.full(4, 0.02, jnp.float32), steep)
    assert new.dtype == jnp.float32 and bool((new > 0).all())


@pytest.mark.parametrize("filled", [0, 1, 2])
def test_masked_replay_equals_sliced_replay(filled):
    learner, state, batch = prepared(MetaBGD(**OPTIONS), filled)
    later = batch._replace(clock=batch.clock._replace(first_pass=jnp.zeros((), bool)))
    draws = learner.draw(state, later, jax.random.key(1))
    assert draws.replay_mask.sum(axis=2).tolist() == [[filled] * 2] * 2
    poisoned = draws.replay._replace(x=jnp.where(draws.replay_mask[..., None], draws.replay.x, 1e3))
    sliced = jax.tree.map(lambda a: a[:, :, :filled], (draws.replay, draws.replay_mask))
    padded = learner.update(state, batch, draws._replace(replay=poisoned))
    support.assert_close(
        padded,
        learner.update(state, batch, draws._replace(replay=sliced[0], replay_mask=sliced[1])),
        1e-12,
    )


def test_masked_batch_equals_sliced_batch():
    learner, state, batch = prepared(MetaBGD(**{**OPTIONS, "inner_steps": 2}))
    draws = learner.draw(state, batch, jax.random.key(1))
    order = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32), (2, 2, 4))
    draws = draws._replace(order=order, slots=draws.slots.at[3].set(7))
    padded = batch._replace(mask=batch.mask.at[3].set(False), x=batch.x.at[3].set(50.0))
    rows = lambda a: a[:3]
    sliced = batch._replace(
        x=rows(batch.x), y=rows(batch.y), task=rows(batch.task), mask=rows(batch.mask)
    )
    short = draws._replace(order=order[:, :, :3], slots=rows(draws.slots))
    support.assert_close(
        learner.update(state, padded, draws), learner.update(state, sliced, short), 1e-12
    )


def test_parameters_and_rates_are_moved_by_noise_of_their_own():
    learner, state, batch = prepared(MetaBGD(**OPTIONS))
    draws = learner.draw(state, batch, jax.random.key(1))
    same = jax.tree.map(lambda a, b: bool((a == b).any()), draws.params_eps, draws.alpha_eps)
    assert not any(jax.tree.leaves(same))


def test_only_the_first_sample_replays_without_the_batch():
    learner = support.bind(MetaBGD(**OPTIONS))
    state, batch = learner.init(jax.random.key(0)), support.at(support.batches(1), 0)
    draws = learner.draw(state, batch, jax.random.key(1))
    assert draws.replay_mask.sum(axis=2).tolist() == [[0, 3], [3, 3]]
    known = {tuple(row) for row in np.asarray(batch.x)}
    rows = np.asarray(draws.replay.x)[np.asarray(draws.replay_mask)]
    assert all(tuple(row) in known for row in rows)
    after, _ = learner.update(state, batch, draws)
    assert int(after.memory.age) == 4


def test_only_the_first_pass_enters_the_memory():
    learner, batches = support.bind(MetaBGD(**OPTIONS)), support.batches(2)
    state, _ = support.run(learner, batches)
    second_pass = batches._replace(clock=batches.clock._replace(first_pass=jnp.zeros(2, bool)))
    again, _ = support.run(learner, second_pass, state=state)
    support.assert_close(state.memory, again.memory)


def test_jit_equals_the_plain_call_and_both_are_deterministic():
    learner, state, batch = prepared(MetaBGD(**OPTIONS))
    draws = learner.draw(state, batch, jax.random.key(1))
    support.assert_close(jax.jit(learner.draw)(state, batch, jax.random.key(1)), draws, 1e-14)
    plain = learner.update(state, batch, draws)
    support.assert_close(learner.update(state, batch, draws), plain)
    support.assert_close(jax.jit(learner.update)(state, batch, draws), plain, 1e-13)


def test_traced_initial_values_equal_their_values():
    def initial(std_init, alpha_init):
        method = MetaBGD(std_init=std_init, alpha_init=alpha_init, **OPTIONS)
        return support.bind(method).init(jax.random.key(0))

    values = [(0.02, 0.1), (0.1, 0.3)]
    many = jax.jit(jax.vmap(initial))(*map(jnp.array, zip(*values, strict=True)))
    for i, value in enumerate(values):
        support.assert_close(support.at(many, i), initial(*value), 1e-12)


def test_heads_of_other_tasks_keep_their_means():
    learner = support.bind(MetaBGD(**OPTIONS), multi_head=True)
    state = learner.init(jax.random.key(0))
    after, _ = support.run(learner, support.batches(2, multi_head=True, tasks=1), state=state)
    for tree in ("params", "alpha", "params_std", "alpha_std"):
        before, now = (getattr(s, tree)["Dense_1"]["kernel"] for s in (state, after))
        np.testing.assert_array_equal(before[:, 4:], now[:, 4:])
        assert bool((before[:, :4] != now[:, :4]).any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"replay_size": 0}, "replay_size is 0"),
        ({"glances": -1}, "glances is -1"),
        ({"mc_samples": 0}, "mc_samples is 0"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"alpha_init": float("inf")}, "alpha_init is inf"),
        ({"std_init": 0.0}, "std_init is 0.0"),
        ({"order": "third"}, "order 'third' is not known"),
        ({"reservoir_rule": "none"}, "reservoir_rule 'none' is not known"),
    ],
)
def test_bad_hyper_parameters_are_refused_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        MetaBGD(**options)
    assert "\n" not in str(error.value)
