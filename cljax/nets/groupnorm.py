"""Group normalisation, whose gain and shift are a layer of their own.

    x_hat = (x - mean_g) / sqrt(var_g + eps),    y = gamma x_hat + beta

mean_g and the biased variance var_g are those of one example's group g of neighbouring channels,
over all positions (two passes, at least float32). No example sees another, so training and
evaluation are the same and there is no state.

Symbols: gamma ``scale``, beta ``bias``, eps ``epsilon``.

Source: Wu & He, "Group Normalization", ECCV 2018 (arXiv:1803.08494), equations 1, 2 and 7.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.types import Array

__all__ = ["Affine", "GroupNorm", "num_groups"]


def num_groups(channels: int, groups: int) -> int:
    """The largest number of equal groups up to ``groups`` into which the channels divide."""
    return max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)


class Affine(nn.Module):
    """``x * scale + bias`` over the last axis of ``x [B, ..., F]``."""

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        spread = lambda values: values.reshape((1,) * (x.ndim - 1) + shape)
        return x * spread(scale) + spread(bias)


class GroupNorm(nn.Module):
    """Normalises ``x [B, ..., F]``; parameters are those of its ``Affine_0``.

    ``groups`` is how many there are; where they do not divide F, the largest smaller number that
    does.
    """

    groups: int = 8
    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        groups = num_groups(x.shape[-1], self.groups)
        flat = wide.reshape(x.shape[0], -1, x.shape[-1])

        def of_group(values: Array) -> Array:
            """[B, P, F] -> [B, 1, F], means: over positions first, the faster way on CPUs."""
            means = jnp.mean(values, axis=1).reshape(x.shape[0], groups, -1)
            means = jnp.broadcast_to(jnp.mean(means, axis=2, keepdims=True), means.shape)
            return means.reshape(x.shape[0], 1, -1)

        centred = flat - of_group(flat)
        normal = centred * jax.lax.rsqrt(of_group(jnp.square(centred)) + self.epsilon)
        return Affine(self.param_dtype)(normal.reshape(x.shape)).astype(x.dtype)
