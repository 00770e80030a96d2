"""The draws of adaptation are of the run's seed, and of nothing else."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax import keys
from cljax.methods.adapted import adapt_key, adapted_predictor
from cljax.types import Spec

TASKS, CLASSES, KEPT = 2, 4, 8
OWNER = np.arange(CLASSES) // 2 == np.arange(TASKS)[:, None]
SPEC = Spec(jax.ShapeDtypeStruct((3,), jnp.result_type(float)), OWNER, 2)
MODEL = cljax.nets.mlp(4)(CLASSES)


@pytest.fixture(scope="module")
def prepare():
    """State of a seed -> its adapted models, with batches of 3 of 4 exemplars a task."""
    predictor = adapted_predictor(MODEL, SPEC, epochs=2, lr=0.05, batch_size=3)
    return jax.jit(predictor.prepare)


def state_of(seed: int, weights: int = 0):
    """iTAML's first state of ``weights``, filled with exemplars, with the draws of ``seed``."""
    made = cljax.ITAML(capacity=KEPT).bind(MODEL, SPEC)
    state = made.init(keys.purpose(weights, "init"))
    y = np.arange(KEPT, dtype=np.int32) % CLASSES
    x = np.random.default_rng(7).normal(size=(KEPT, 3)) + y[:, None]
    kept = state.exemplars._replace(
        x=jnp.asarray(x, state.exemplars.x.dtype), y=jnp.asarray(y), task=jnp.asarray(y // 2),
        mask=jnp.ones(KEPT, bool),
    )  # fmt: skip
    return state._replace(exemplars=kept, adapt_key=adapt_key(keys.purpose(seed, "init")))


def flat(variables) -> np.ndarray:
    return np.concatenate([np.asarray(a).ravel() for a in jax.tree.leaves(variables.params)])


def test_seeds_adapt_in_orders_of_their_own(prepare):
    """Same weights, same exemplars: only the order of the batches tells seeds apart."""
    found = [flat(prepare(state_of(seed))) for seed in range(4)]
    for one, other in itertools.combinations(found, 2):
        assert np.abs(one - other).max() > 1e-6
    np.testing.assert_array_equal(flat(prepare(state_of(2))), found[2])


def test_the_first_state_of_a_seed_holds_its_draws():
    made = cljax.ITAML(capacity=KEPT).bind(MODEL, SPEC)
    for seed in (0, 1, 17, 2**32 - 1):
        key = keys.purpose(seed, "init")
        np.testing.assert_array_equal(made.init(key).adapt_key, adapt_key(key))
    drawn = {tuple(np.asarray(adapt_key(keys.purpose(s, "init")))) for s in range(64)}
    assert len(drawn) == 64


def test_lanes_adapt_as_their_single_runs_do(prepare):
    seeds = (0, 3, 5)
    lanes = jax.tree.map(lambda *a: jnp.stack(a), *[state_of(s, weights=s) for s in seeds])
    mapped = jax.jit(lambda states: jax.lax.map(prepare, states))(lanes)
    for i, seed in enumerate(seeds):
        one = prepare(state_of(seed, weights=seed))
        support.assert_close(jax.tree.map(lambda a, i=i: a[i], mapped.params), one.params, 1e-12)


def test_no_update_moves_the_draws():
    """They are those of the seed, wherever in the run adaptation is asked for."""
    made = cljax.ITAML(lr=0.1, capacity=KEPT).bind(MODEL, SPEC)
    state = state_of(1)
    x, y = jnp.ones((2, 3)), jnp.array([0, 1], jnp.int32)
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    clock = cljax.types.Clock(zero, zero, zero, ~no, no)
    batch = cljax.types.Batch(x, y, y // 2, jnp.ones(2, bool), y, clock)
    after, _ = jax.jit(made.update)(state, batch, made.draw(state, batch, jax.random.key(0)))
    np.testing.assert_array_equal(after.adapt_key, state.adapt_key)
    assert np.abs(flat(after) - flat(state)).max() > 0
