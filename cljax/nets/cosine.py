"""Output layers that compare directions: the cosine head.

    z_c = sigma <f / |f|, w_c / |w_c|>

Symbols: f features [D], w_c the column of output c in ``kernel`` [D, C], sigma one learned scale
that all outputs share.

Source: Hou et al., "Learning a Unified Classifier Incrementally via Rebalancing", CVPR 2019;
Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), released code.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from cljax.nets.inits import fan_in_uniform
from cljax.types import Array

__all__ = ["Head", "cosine_head", "cosines", "unit"]

Head: TypeAlias = Literal["linear", "cosine"]


def unit(x: Array, axis: int = -1) -> Array:
    """``x / |x|`` along ``axis``; ``x`` itself where ``|x|`` is below the rounding of its type.

    All derivatives are finite at zero, where the first is the identity.
    """
    squared = jnp.sum(jnp.square(x), axis, keepdims=True)
    # Chosen before the root: beyond it, the infinite slope at zero would meet a factor of zero.
    # Squares under this limit would overflow in the second derivative, squared^(-5/2).
    short = squared < jnp.finfo(x.dtype).eps ** 2
    return x / jnp.sqrt(jnp.where(short, 1.0, squared))


def cosines(features: Array, kernel: Array) -> Array:
    """Of the angles between features [B, D] and the columns of ``kernel`` [D, C]: [B, C]."""
    return unit(features) @ unit(kernel, axis=0)


def cosine_head(num_outputs: int) -> Any:
    """The Linen layer from features [B, D] to logits [B, C], named ``head``; in compact methods.

    ``kernel`` [D, C] starts at U(+-1 / sqrt(D)), ``sigma`` [] at 1. Both have the features' type,
    but at least float32.
    """
    import flax.linen as nn

    class CosineHead(nn.Module):
        @nn.compact
        def __call__(self, features: Array) -> Array:
            dtype = jnp.promote_types(features.dtype, jnp.float32)
            size = features.shape[-1]
            kernel = self.param("kernel", fan_in_uniform(size), (size, num_outputs), dtype)
            sigma = self.param("sigma", nn.initializers.ones, (), dtype)
            return sigma * cosines(features.astype(dtype), kernel)

    return CosineHead(name="head")
