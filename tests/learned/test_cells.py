"""The LSTMs of a gate against Flax's own cell, and how they start."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cljax.update_rules.cells import stack


def made(units=3, inputs=7, outputs=4, hidden=5, dtype=jnp.float64):
    return stack(units, inputs, outputs, hidden, 1, 1.5, dtype)


def test_one_cell_is_flax_own_with_its_kernels_side_by_side():
    with jax.enable_x64(True):
        network = made()
        params = network.init(jax.random.key(0))
        own = params["cell_0"]
        leaves = {f"i{k}": {"kernel": w} for k, w in split(own["input"])}
        for (k, kernel), (_, bias) in zip(split(own["recurrent"]), split(own["bias"]), strict=True):
            leaves[f"h{k}"] = {"kernel": kernel, "bias": bias}
        x, h, c = (
            jax.random.normal(jax.random.key(i), (3, n)) for i, n in ((1, 7), (2, 5), (3, 5))
        )
        cell = nn.OptimizedLSTMCell(5, param_dtype=jnp.float64)
        (after_c, after_h), _ = cell.apply({"params": leaves}, (c, h), x)
        ((kept_c, kept_h),), delta = network.apply(params, ((c, h),), x)
        np.testing.assert_allclose(kept_c, after_c, rtol=1e-12)
        np.testing.assert_allclose(kept_h, after_h, rtol=1e-12)
        np.testing.assert_allclose(delta, 1.5 * np.tanh(1.0), rtol=1e-12)


def test_each_gate_starts_with_kernels_of_its_own():
    own = made(inputs=64, hidden=8, dtype=jnp.float32).init(jax.random.key(0))["cell_0"]
    for name in "ifgo":
        recurrent = dict(split(own["recurrent"]))[name]
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
        # Uniform of variance 1 / fan-in, within its bound.
        inward = np.asarray(dict(split(own["input"]))[name])
        assert abs(inward).max() <= np.sqrt(3 / 64) and abs(inward.var() * 64 - 1) < 0.2
    assert {k: float(b.mean()) for k, b in split(own["bias"])} == {"i": 0, "f": 1, "g": 0, "o": 0}


def split(values):
    return list(zip("ifgo", jnp.split(values, 4, axis=-1), strict=True))
