"""La-MAML's family beyond the traces: limits, masks, memory, and the low-rank form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.errors import UserError
from cljax.memory import reservoir
from cljax.methods.algebra.look_ahead import LookAhead, meta_loss
from cljax.options import options_of
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


OPTIONS = {"capacity": 7, "replay_size": 3, "glances": 2}


def test_with_fixed_rates_it_is_cmaml():
    """La-MAML with eta = 0 and constant alpha_0 steps like C-MAML with beta = alpha_0."""
    batches = support.batches(5)
    ours, _ = support.run(
        support.bind(cljax.LaMAML(alpha_init=0.2, alpha_lr=0.0, **OPTIONS)), batches
    )
    cmaml, _ = support.run(support.bind(cljax.CMAML(alpha_init=0.2, lr=0.2, **OPTIONS)), batches)
    support.assert_close(ours, cmaml, 1e-14)


def test_sync_and_lamaml_differ_only_in_the_outer_step():
    batch = support.batches(1)
    ours = support.run(support.bind(cljax.LaMAML(glances=1, capacity=7)), batch)[0]
    sync = support.run(support.bind(cljax.SyncLaMAML(glances=1, capacity=7)), batch)[0]
    support.assert_close(ours.alpha, sync.alpha)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours.params, sync.params)
    assert max(jax.tree.leaves(difference)) > 1e-4


@pytest.mark.parametrize(
    ("multi_head", "inner_relu", "meta_reduce"),
    [(False, True, "mean"), (True, False, "mean"), (True, False, "sum"), (False, False, "last"),
     (True, True, "last")],
)  # fmt: skip
def test_low_rank_equals_the_general_path(multi_head, inner_relu, meta_reduce):
    options = {**OPTIONS, "inner_relu": inner_relu, "meta_reduce": meta_reduce, "alpha_lr": 0.3}
    batches = support.batches(6, multi_head=multi_head)
    batches = batches._replace(mask=batches.mask.at[1, 2:].set(False))
    general, low_rank = (
        support.run(support.bind(cljax.LaMAML(algebra=algebra, **options), multi_head), batches)
        for algebra in ("general", "low-rank")
    )
    support.assert_close(general, low_rank, 1e-13)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("filled", [0, 1, 30])
def test_masked_replay_equals_sliced_replay(order, filled):
    """A meta-batch with masked rows is the ragged mean over the valid ones."""
    learner = support.bind(cljax.LaMAML(order=order, **OPTIONS))
    state = learner.init(jax.random.key(0))
    old = support.at(support.batches(1, seed=3), 0)
    for i in range(filled):
        one = Examples(old.x[i % 4][None] + i, old.y[i % 4][None], old.task[i % 4][None])
        state = state._replace(memory=reservoir.add(state.memory, one, jax.random.key(i)))
    batch = support.at(support.batches(1), 0)
    draws = learner.draw(state, batch, jax.random.key(1))
    valid = int(draws.replay_mask[0].sum())
    assert valid == min(filled, 3)

    problem = support.spec()
    loss_fn = cljax.losses.classification_loss(cljax.nets.mlp(5)(4), problem)
    inner = Examples(batch.x[:, None], batch.y[:, None], batch.task[:, None])

    @jax.jit
    def value(replay, mask):
        meta = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), replay, Examples(batch.x, batch.y, batch.task)
        )
        return jax.value_and_grad(meta_loss, argnums=(0, 1), has_aux=True)(
            state.params, state.alpha, state.model_state, (inner, jnp.ones((4, 1), bool)),
            (meta, jnp.concatenate([mask, jnp.ones(4, bool)])),
            loss_fn=loss_fn, how=LookAhead(order=1 if order == "first" else 2),
        )  # fmt: skip

    padded = jax.tree.map(lambda a: a[0], (draws.replay, draws.replay_mask))
    poisoned = padded[0]._replace(x=jnp.where(padded[1][:, None], padded[0].x, 1e3))
    sliced = jax.tree.map(lambda a: a[:valid], padded)
    support.assert_close(value(poisoned, padded[1]), value(*sliced), 1e-12)


def test_the_first_glance_replays_before_the_batch_enters_and_later_ones_after():
    learner = support.bind(cljax.LaMAML(capacity=7, replay_size=3, glances=3))
    state = learner.init(jax.random.key(0))
    batch = support.at(support.batches(1), 0)
    draws = learner.draw(state, batch, jax.random.key(1))
    assert draws.replay_mask.sum(axis=1).tolist() == [0, 3, 3]
    known = {tuple(row) for row in np.asarray(batch.x)}
    assert all(tuple(row) in known for row in np.asarray(draws.replay.x[1:]).reshape(-1, 6))


def test_every_glance_replays_by_a_key_of_its_own():
    method = cljax.LaMAML(**{**OPTIONS, "glances": 3})
    learner, batches = support.bind(method), support.batches(3)
    state, _ = support.run(learner, batches)
    again = support.at(batches, 2)
    again = again._replace(clock=again.clock._replace(first_pass=jnp.zeros((), bool)))
    draws = learner.draw(state, again, jax.random.key(4))
    each = jax.random.split(jax.random.split(jax.random.key(4), 3)[1], 3)
    for glance, key in enumerate(each):  # the memory is the same before and after this batch
        drawn = support.at((draws.replay, draws.replay_mask), glance)
        support.assert_close(drawn, reservoir.sample(state.memory, 3, key))


def test_only_the_first_pass_enters_the_memory():
    learner = support.bind(cljax.LaMAML(**OPTIONS))
    batches = support.batches(2)
    second_pass = batches._replace(clock=batches.clock._replace(first_pass=jnp.zeros(2, bool)))
    state, _ = support.run(learner, batches)
    again, _ = support.run(learner, second_pass, state=state)
    assert int(state.memory.age) == int(again.memory.age) == 8
    support.assert_close(state.memory, again.memory)


def test_replay_sources():
    """``old-tasks`` never returns the current task once there is an older one; ``live`` does."""
    batches = support.batches(9)
    seen = {}
    for source in ("live", "old-tasks"):
        learner = support.bind(cljax.LaMAML(replay_source=source, capacity=20, replay_size=5))
        state, tasks = learner.init(jax.random.key(0)), []
        draw, update = jax.jit(learner.draw), jax.jit(learner.update)
        for i in range(9):
            batch = support.at(batches, i)
            draws = draw(state, batch, jax.random.key(i))
            tasks.append(set(np.asarray(draws.replay.task)[np.asarray(draws.replay_mask)].tolist()))
            state, _ = update(state, batch, draws)
        seen[source] = tasks
    assert all(i // 3 not in tasks for i, tasks in enumerate(seen["old-tasks"]) if i >= 3)
    assert all(tasks for tasks in seen["old-tasks"][1:])
    assert any(i // 3 in tasks for i, tasks in enumerate(seen["live"]) if i >= 3)


def test_a_rate_that_crosses_zero_freezes_its_parameter_in_the_same_update():
    learner = support.bind(cljax.LaMAML(alpha_init=1e-3, alpha_lr=50.0, glances=1, capacity=7))
    state = learner.init(jax.random.key(0))
    batch = support.at(support.batches(1), 0)
    after, _ = learner.update(state, batch, learner.draw(state, batch, jax.random.key(0)))
    dead = jax.tree.map(lambda a: a <= 0, after.alpha)
    moved = jax.tree.map(lambda a, b: a != b, state.params, after.params)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(dead)) >= 1
    assert not any(
        bool((d & m).any()) for d, m in zip(*map(jax.tree.leaves, (dead, moved)), strict=True)
    )


@pytest.mark.parametrize("inner_relu", [True, False])
def test_a_dead_rate_stays_dead_only_under_relu(inner_relu):
    learner = support.bind(cljax.LaMAML(inner_relu=inner_relu, capacity=7, glances=1))
    state = learner.init(jax.random.key(0))
    state = state._replace(alpha=jax.tree.map(lambda a: -0.01 * jnp.ones_like(a), state.alpha))
    after, _ = support.run(learner, support.batches(1), state=state)
    changed = any(bool((a != -0.01).any()) for a in jax.tree.leaves(after.alpha))
    assert changed != inner_relu


def test_heads_of_other_tasks_get_no_gradient():
    learner = support.bind(cljax.LaMAML(**OPTIONS), multi_head=True)
    state = learner.init(jax.random.key(0))
    after, _ = support.run(learner, support.batches(2, multi_head=True, tasks=1), state=state)
    kernel = lambda s: s.params["Dense_1"]["kernel"]
    np.testing.assert_array_equal(kernel(state)[:, 4:], kernel(after)[:, 4:])
    assert (kernel(state)[:, :4] != kernel(after)[:, :4]).any()
    np.testing.assert_array_equal(after.alpha["Dense_1"]["kernel"][:, 4:], 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"replay_size": 0}, "replay_size is 0"),
        ({"glances": -1}, "glances is -1"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"alpha_init": float("nan")}, "alpha_init is nan"),
        ({"alpha_lr": float("inf")}, "alpha_lr is inf"),
        ({"order": "third"}, "order 'third' is not known"),
        ({"algebra": "low-rank", "order": "second"}, "needs first-order"),
    ],
)
def test_bad_hyper_parameters_are_refused_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        cljax.LaMAML(**options)
    assert "\n" not in str(error.value)


def test_options_that_do_not_fit_the_stream_or_network_are_refused():
    with pytest.raises(UserError, match="does not divide the batch of 4"):
        support.bind(cljax.LaMAML(inner_steps=3))
    with pytest.raises(UserError, match="one example a step"):
        support.bind(cljax.LaMAML(inner_steps=2, algebra="low-rank"))
    bare = cljax.nets.mlp(5)(4)._replace(first_product=None)
    with pytest.raises(UserError, match="first product"):
        cljax.LaMAML(algebra="low-rank").bind(bare, support.spec())


def test_variants_refuse_what_they_fix():
    with pytest.raises(TypeError, match="alpha_lr"):
        cljax.CMAML(alpha_lr=0.1)
    assert cljax.CMAML().name == "cmaml" and cljax.SyncLaMAML().name == "sync-lamaml"
    names = [option.name for option in options_of(cljax.CMAML())]
    assert "alpha_lr" not in names and "glances" in names


def test_a_penalty_joins_the_meta_update():
    """The step with a penalty is the step on the meta-gradient plus the penalty's gradient."""
    strength = 0.7

    class Anchored(cljax.penalties.Penalty):
        def init(self, params):
            return params

        def value(self, anchor, params):
            ones = cljax.tree.full_like(params, 1.0)
            return strength * cljax.tree.weighted_sq(ones, params, anchor)

        def consolidate(self, anchor, params, batch, network, key):
            return params

    penalty = Anchored()
    options = {"glances": 1, "capacity": 6, "replay_size": 3, "clip_norm": None, "lr": 0.1}
    plain = support.bind(cljax.LaMAML(**options))
    learner = support.bind(cljax.LaMAML(**options, penalty=penalty))
    batch = support.at(support.batches(1), 0)
    state = learner.init(jax.random.key(0))
    anchor = jax.tree.map(lambda p: p + 0.5, state.params)
    draws = learner.draw(state, batch, jax.random.key(1))
    with_penalty, _ = jax.jit(learner.update)(state._replace(penalty=anchor), batch, draws)
    without, _ = jax.jit(plain.update)(state, batch, draws)
    expected = jax.tree.map(
        lambda after, p, a: after - 0.1 * 2 * strength * (p - a),
        without.params, state.params, anchor,
    )  # fmt: skip
    support.assert_close(with_penalty.params, expected, 1e-12)
    assert learner.phases[0].name == "consolidate"
