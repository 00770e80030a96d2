"""LwF: distillation on the outputs of past tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.methods.common import network_of


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def setting(multi_head):
    spec = support.spec(multi_head)
    model = cljax.nets.mlp(5)(spec.num_classes)
    params = [model.init(jax.random.key(i), jnp.zeros((1, 6))).params for i in range(2)]
    return model, network_of(model, spec)({}), params


@pytest.mark.parametrize("multi_head", [False, True])
def test_the_divergence_of_the_old_outputs(multi_head):
    tau, strength = 3.0, 0.5
    model, network, (old, new) = setting(multi_head)
    penalty = cljax.lwf(strength, temperature=tau)
    batch = support.at(support.batches(3, multi_head=multi_head), 2)
    batch = batch._replace(mask=batch.mask.at[1].set(False))
    state = penalty.init(old)
    assert penalty.distil is not None
    assert float(penalty.distil(state, new, batch, network)) == 0
    for _ in range(2):  # two tasks have ended
        state = penalty.consolidate(state, old, batch, network, jax.random.key(0))
    logits = lambda p: np.asarray(
        model.apply(cljax.types.Variables(p, {}), batch.x, False)[0].logits
    )
    z_old, z_new = logits(old) / tau, logits(new) / tau
    heads = [slice(0, 4), slice(4, 8)] if multi_head else [slice(0, 4)]
    total = 0.0
    for head in heads:
        p, q = (
            np.exp(z[:, head]) / np.exp(z[:, head]).sum(1, keepdims=True) for z in (z_old, z_new)
        )
        total += (p * np.log(p / q)).sum(1)[np.asarray(batch.mask)].mean()
    found = jax.jit(lambda s, p: penalty.distil(s, p, batch, network))(state, new)
    np.testing.assert_allclose(found, strength * tau**2 * total, rtol=1e-10)


@pytest.mark.parametrize("multi_head", [False, True])
def test_its_gradient_is_zero_right_after_a_task(multi_head):
    _, network, (params, _) = setting(multi_head)
    penalty, batch = cljax.lwf(), support.at(support.batches(1, multi_head=multi_head), 0)
    state = penalty.consolidate(penalty.init(params), params, batch, network, jax.random.key(0))
    grads = jax.grad(lambda p: penalty.distil(state, p, batch, network))(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-12


def test_it_runs_on_two_heads():
    """Outputs of tasks that have not come yet get no gradient from it."""
    _, network, (old, new) = setting(True)
    penalty, batch = cljax.lwf(), support.at(support.batches(1, multi_head=True), 0)
    state = penalty.consolidate(penalty.init(old), old, batch, network, jax.random.key(0))
    grads = jax.grad(lambda p: penalty.distil(state, p, batch, network))(new)
    head = np.asarray(grads["Dense_1"]["bias"])
    assert np.abs(head[:4]).max() > 0 and not head[4:].any()
