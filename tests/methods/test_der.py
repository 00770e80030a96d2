"""DER and DER++: steps by hand, and what the memory holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax import tree
from cljax.cli import command
from cljax.errors import UserError
from cljax.losses import cross_entropy
from cljax.methods import make
from cljax.references import cite
from cljax.states import contents_of
from cljax.types import Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


OPTIONS = {"lr": 0.1, "capacity": 6, "replay_size": 3}
NET = cljax.nets.mlp(5)(support.NUM_CLASSES)


def outputs(params, x):
    return NET.apply(Variables(params, {}), x, False)[0].logits


def objective(batch, draws, glance, alpha, beta):
    """The equation, with the rows that the memory gave and no others."""

    def loss(params):
        total = cross_entropy(outputs(params, batch.x), batch.y).mean()
        old, given = support.at(support.at(draws.replay, glance), 0), draws.replay_mask[glance, 0]
        apart = (outputs(params, old.x.x) - old.x.logits)[given]
        total += alpha * (apart**2).sum() / max(apart.size, 1)
        if beta is not None and given.any():
            old, given = (
                support.at(support.at(draws.replay, glance), 1),
                draws.replay_mask[glance, 1],
            )
            total += beta * cross_entropy(outputs(params, old.x.x), old.y)[given].mean()
        return total

    return loss


@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize(("name", "alpha", "beta"), [("der", 0.7, None), ("der++", 0.2, 0.4)])
def test_two_steps_by_hand(name, alpha, beta, updates):
    """Also the first ones, whose memory is empty, and those of a memory with room."""
    weights = {"alpha": alpha} if beta is None else {"alpha": alpha, "beta": beta}
    learner = support.bind(make(name, glances=2, **weights, **OPTIONS))
    batches, state = support.batches(4, tasks=2), learner.init(jax.random.key(0))
    if updates:
        state, _ = support.run(learner, jax.tree.map(lambda a: a[:updates], batches))
    batch = support.at(batches, updates)
    draws = learner.draw(state, batch, jax.random.key(5))
    assert (
        draws.replay_mask.sum(axis=2).tolist()
        == [[3 * (updates > 0)] * (1 + (beta is not None))] * 2
    )
    params, losses = state.params, []
    for glance in range(2):
        loss = objective(batch, jax.device_get(draws), glance, alpha, beta)
        value, grads = jax.value_and_grad(loss)(params)
        params = tree.add_scaled(params, grads, -0.1)
        losses.append(value)
    after, info = learner.update(state, batch, draws)
    support.assert_close(after.params, params, 1e-12)
    np.testing.assert_allclose(info.loss, np.mean(losses), atol=1e-12)


def test_the_two_draws_of_der_plus_plus_differ():
    learner, batches = (
        support.bind(make("der++", **{**OPTIONS, "capacity": 16})),
        support.batches(4),
    )
    state, _ = support.run(learner, batches)
    first, second = learner.draw(state, support.at(batches, 0), jax.random.key(0)).replay.x.x[0]
    assert not np.array_equal(first, second)


def test_the_logits_that_are_stored_are_those_before_the_first_step():
    learner, batches = (
        support.bind(cljax.DER(glances=3, **{**OPTIONS, "capacity": 16})),
        support.batches(3),
    )
    state = learner.init(jax.random.key(0))
    for i in range(3):
        before, batch = state, support.at(batches, i)
        state, _ = learner.update(state, batch, learner.draw(state, batch, jax.random.key(i)))
        rows = state.memory.rows.data
        np.testing.assert_array_equal(rows.x.x[4 * i : 4 * i + 4], batch.x)
        expected = outputs(before.params, batch.x)
        np.testing.assert_allclose(rows.x.logits[4 * i : 4 * i + 4], expected, atol=1e-12)


def test_a_second_pass_stores_again_unless_it_is_told_not_to():
    first = support.batches(2)
    second = first._replace(clock=first.clock._replace(first_pass=jnp.zeros(2, bool)))
    for offer, age in (("every-epoch", 16), ("first-pass", 8)):
        learner = support.bind(make("der", offer=offer, **OPTIONS))
        state, _ = support.run(learner, first)
        state, _ = support.run(learner, second, state=state)
        assert int(state.memory.rows.age) == age


@pytest.mark.parametrize("memory", ["reservoir", "ring", "balanced"])
def test_reports_are_shown_the_examples_without_logits(memory):
    learner = support.bind(cljax.DER(memory=memory, **OPTIONS))
    state, _ = support.run(learner, support.batches(6))
    contents = contents_of(state)
    assert contents is not None
    assert contents.x.shape == (*contents.mask.shape, support.NUM_INPUTS)
    assert int(contents.mask.sum()) == 6


def test_logits_of_another_width_are_refused():
    learner, batches = support.bind(cljax.DER(**OPTIONS)), support.batches(1)
    state, batch = learner.init(jax.random.key(0)), support.at(batches, 0)
    draws = learner.draw(state, batch, jax.random.key(0))
    narrow = draws.replay.x._replace(logits=draws.replay.x.logits[..., :3])
    draws = draws._replace(replay=draws.replay._replace(x=narrow))
    with pytest.raises(UserError, match="holds logits of 3 outputs, but the network has 4"):
        cljax.DER(**OPTIONS).bind(NET, support.spec()).update(state, batch, draws)


def test_der_plus_plus_is_typed_as_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), pytest.raises(SystemExit) as done:
        command.main(
            ["run", "der++", "split-mnist", "--sample", "--samples-per-task", "20", "--seeds", "1",
             "--net", "mlp:3", "--batch-size", "10", "--beta", "0.25"]
        )  # fmt: skip
    assert done.value.code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("derpp-split-mnist-sample-")
    assert cljax.load(folder).config["method"]["options"]["beta"] == 0.25
    assert "buzzega2020der" in cite.keys_of_config(cljax.load(folder).config)
