"""Batch normalisation in PyTorch's conventions, over chosen groups of a batch's rows.

    y = gamma (x - mean_g) / sqrt(var_g + eps) + beta,    g the row's own group

In training mean_g and the biased variance var_g are those of group g over its rows and all
positions (two passes, at least float32); in evaluation they are the running ones. Running
statistics follow group after group, r = (1 - momentum) r + momentum s_g, with the unbiased
variance n / (n - 1) var_g.

Symbols: gamma ``scale``, beta ``bias``, eps ``epsilon``.

Source: Ioffe & Szegedy, "Batch Normalization", ICML 2015 (arXiv:1502.03167); constants and the
two variances as in ``torch.nn.BatchNorm2d``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.types import Array

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """Normalises the last axis of ``x [B, ..., F]``; the collection is ``batch_stats``.

    ``member`` [B, G] bool puts each row into one group or none; None is one group of all rows,
    at no extra cost. Rows of no group come out as zeros, reach no statistics and get no
    gradient, whatever they hold. An empty group changes nothing. A group of a single value has
    variance 0, where PyTorch refuses.
    """

    momentum: float = 0.1  # PyTorch's: the share of the new statistics
    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32  # of parameters and statistics

    @nn.compact
    def __call__(self, x: Array, train: bool, member: Array | None = None) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        wide = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        positions = tuple(range(1, x.ndim - 1))
        # [B or 1, F] at all positions.
        spread = lambda rows: jnp.expand_dims(rows, positions)

        if not train:
            gain = jax.lax.rsqrt(var.value + self.epsilon) * scale
            y = (wide - spread(mean.value[None])) * spread(gain[None]) + spread(bias[None])
            return y.astype(x.dtype)
        if member is None:
            count = jnp.full((1,), x.size // x.shape[-1], wide.dtype)
            means = jnp.mean(wide, axis=(0, *positions))[None]
            centred = wide - spread(means)
            variances = jnp.mean(jnp.square(centred), axis=(0, *positions))[None]
            gain = jax.lax.rsqrt(variances + self.epsilon) * scale[None]
            y = centred * spread(gain) + spread(bias[None])
        else:
            own = member.astype(wide.dtype)  # [B, G]
            count = jnp.sum(own, axis=0) * (x[0].size // x.shape[-1])
            # Products with ``own`` gather and scatter over groups; they must not round to TF32.
            product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            mean_over = lambda v: (
                product(own.T, jnp.sum(v, axis=positions)) / jnp.maximum(count, 1)[:, None]
            )
            wide = jnp.where(spread(member.any(axis=1)[:, None]), wide, 0)
            means = mean_over(wide)  # [G, F]
            centred = wide - spread(product(own, means))
            variances = mean_over(jnp.square(centred))
            gain = jax.lax.rsqrt(variances + self.epsilon) * scale[None]
            # Rows of no group meet a gain and a shift of exactly 0.
            shift = jnp.sum(own, axis=1, keepdims=True) * bias[None]
            y = centred * spread(product(own, gain)) + spread(shift)

        if not self.is_initializing():
            unbiased = variances * (count / jnp.maximum(count - 1, 1))[:, None]
            mean.value = self._follow(mean.value, means, count)
            var.value = self._follow(var.value, unbiased, count)
        return y.astype(x.dtype)

    def _follow(self, running: Array, statistics: Array, count: Array) -> Array:
        """``running`` [F] after the ``statistics`` [G, F] of every non-empty group, in order."""
        kept = jnp.where(count > 0, 1 - self.momentum, 1.0).astype(running.dtype)
        after = jnp.cumprod(kept[::-1])[::-1]  # what is left of the state before group g
        weights = jnp.append(after[1:], 1) - after  # of group g, once all later ones are in
        new = after[0] * running + jnp.sum(weights[:, None] * statistics, axis=0)
        return jax.lax.stop_gradient(new.astype(running.dtype))
