"""Random exemplars as phases of steps, attached to a method that knows nothing of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from cljax.errors import UserError
from cljax.learn import learn
from cljax.memory import exemplars
from cljax.methods.common import logits_predictor
from cljax.nets import mlp
from cljax.types import ExemplarPolicy, Info, Learner, Method


class State(NamedTuple):
    params: dict
    model_state: dict
    exemplars: exemplars.Exemplars


def idle(policy: ExemplarPolicy) -> Method:
    """A method that never learns; what it holds is the policy's doing."""

    def bind(model, spec):
        def init(key):
            x = jnp.zeros((1, *spec.example.shape), spec.example.dtype)
            return State(*model.init(key, x), policy.init(spec))

        update = lambda state, batch, draws: (state, Info(jnp.zeros(())))
        draw = lambda state, batch, key: ()
        predictors = {"logits": logits_predictor(model)}
        return Learner(init, draw, update, predictors, policy.phases(model, spec))

    return Method("idle", bind)


def test_each_class_keeps_distinct_examples_of_its_own():
    stream = support.stream()
    history = learn(
        idle(exemplars.random(3)),
        mlp(5)(4),
        stream,
        [0, 1],
        batch_size=5,
        epochs=2,
        entries="lower",
    )
    for seed, state in enumerate(history.states):
        kept = np.asarray(state.exemplars.index)
        seen = np.concatenate(stream.subsets(seed))
        assert np.isin(kept, seen).all()
        for label, rows in enumerate(kept):
            assert len(set(rows.tolist())) == 3 and (stream.train_y[rows] == label).all()
        x, y, mask = exemplars.all_of(state.exemplars)
        assert bool(mask.all()) and x.shape == (12, 6)
        np.testing.assert_array_equal(y, np.repeat(np.arange(4), 3))
    assert not np.array_equal(*(np.sort(s.exemplars.index) for s in history.states))


def test_offers_keep_the_lowest_ranks_and_no_padding():
    slots = exemplars.init(jax.ShapeDtypeStruct((1,), jnp.float32), 2, 2)
    rank = jnp.array([0.5, 0.1, 0.3, 0.2, 0.0])
    x, y = jnp.arange(5.0)[:, None], jnp.array([0, 0, 0, 1, 1])
    mask = jnp.array([1, 1, 1, 1, 0], bool)
    kept = exemplars.offer(slots, x, y, jnp.arange(5), rank, mask)
    assert sorted(np.asarray(kept.index[0]).tolist()) == [1, 2]
    assert sorted(np.asarray(kept.index[1]).tolist()) == [-1, 3]
    assert int(exemplars.all_of(kept)[2].sum()) == 3


def test_every_example_is_as_likely():
    def kept(key):
        slots = exemplars.init(jax.ShapeDtypeStruct((), jnp.float32), 1, 3)
        rank = jax.random.uniform(key, (10,))
        zeros = jnp.zeros(10, jnp.int32)
        return exemplars.offer(slots, jnp.zeros(10), zeros, jnp.arange(10), rank, zeros == 0).index

    counts = np.bincount(
        np.asarray(jax.vmap(kept)(jax.random.split(jax.random.key(0), 4000))).ravel()
    )
    np.testing.assert_allclose(counts / 4000, 0.3, atol=0.03)


def test_budgets_below_one_are_refused():
    with pytest.raises(UserError, match="per_class is 0"):
        exemplars.random(0)
