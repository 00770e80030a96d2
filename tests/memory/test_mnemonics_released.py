"""The released rule of mnemonics: two steps by hand, and how far it moves in a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from incremental_support import learned
from mnemonics_support import SIZE, moment, phases_of_the_second_task

import cljax
from cljax.memory import learned as pixels
from cljax.memory.mnemonics_released import MnemonicsReleased

RATE, MOMENTUM, DECAY = 0.2, 0.5, 0.3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def unit(a):
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def test_two_steps_by_hand():
    """Features are pixels; old classes' means are those of unit features as the phase began."""
    phases, state, _ = phases_of_the_second_task(
        MnemonicsReleased(lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, mirror=False)
    )
    shown = lambda values: (values / 8 - 0.1).reshape(4, 2, SIZE)
    old = unit(unit(shown(state.exemplars.x))[:2].mean(axis=1))

    @jax.jit
    def by_hand(values, x, y):
        def loss(values):
            means = jnp.concatenate([old, shown(values)[2:].mean(axis=1)])
            cosines = unit(x) @ unit(means).T
            plain = jnp.mean(jax.nn.logsumexp(cosines, axis=1) - cosines[jnp.arange(len(y)), y])
            return plain + 0.5 * DECAY * jnp.sum(shown(values)[2:] ** 2), plain

        return jax.value_and_grad(loss, has_aux=True)(values)

    values, v, rng = state.exemplars.x, 0.0, np.random.default_rng(1)
    for step in (0, 1):
        x, y = jnp.asarray(rng.normal(size=(5, SIZE))), jnp.array([0, 3, 2, 1, 2])
        # The third row is an exemplar.
        batch = moment(step, 0, np.array([0, 1, -6, 3, 4]), x, y)
        state, info = phases["mnemonics"](state, batch, ())
        (_, loss), grads = by_hand(values, x[:4], y[:4])
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
        v = MOMENTUM * v + 64 * grads  # the network sees an eighth of a grey level
        values = values.at[4:].add(-RATE * v[4:])
        np.testing.assert_allclose(state.exemplars.pixels, values, rtol=1e-12)


def test_the_released_rule_moves_exemplars_by_less_than_a_grey_level():
    """At its own step size; with a larger one it moves new exemplars, and only those."""
    for lr, moves in ((1e-5, False), (3.0, True)):
        policy = f"mnemonics-released:lr={lr},rounding=nearest,outer_epochs=2,mirror=false"
        method = cljax.ICaRL(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
        state, _ = learned(method, epochs=3)
        change, mask = pixels.change(state.exemplars)
        assert bool(mask.all()) and bool((change > 0).any()) == moves
