"""First-order meta-loss with the first layer's inner steps in low-rank form.

With one example a step, the first layer's inner gradient is x_j d_j^T, so that with
A = relu(alpha), row b of the meta-batch meets the first layer after i steps as

    z_b^(i) = x_b @ W - sum_{j<=i} d_j * ((x_b * x_j) @ A)

All first-layer work of the K inner steps becomes two products, X @ W and the K (R + B) rows
x_b * x_j @ A, whose gradients are the meta-gradients of W and A. It equals the general path up
to rounding (6e-17 in float64) and moves far less memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import REDUCTIONS, masked_mean, row_losses
from cljax.methods.algebra.look_ahead import LookAhead, Masked
from cljax.types import Array, Examples, Model, Params, PyTree, Spec

__all__ = ["low_rank_meta_loss"]


def low_rank_meta_loss(model: Model, spec: Spec) -> Any:
    """``look_ahead.meta_loss`` for networks with a first product, of first order, without clip.

    Raises:
      UserError: if the network does not say what follows its first product.
    """
    if model.first_product is None:
        raise UserError(
            "algebra is low-rank, but this network does not declare its first product; use "
            "algebra=general, or a cljax.nets.mlp."
        )
    first = model.first_product

    def mean_loss(rest: Params, z: Array, examples: Examples, mask: Array) -> Array:
        return masked_mean(row_losses(spec, first.apply(rest, z), examples, mask), mask)

    def meta_loss(
        params: Params,
        alpha: Params,
        model_state: PyTree,
        inner: Masked,
        meta: Masked,
        *,
        how: LookAhead,
    ) -> tuple[Array, PyTree]:
        (chunks, inner_mask), (examples, meta_mask) = inner, meta
        rates = jax.tree.map(jax.nn.relu, alpha) if how.inner_relu else alpha
        kernel, rest = first.split(params)
        kernel_rates, rest_rates = first.split(rates)
        num_steps, num_rows = inner_mask.shape[0], meta_mask.shape[0]
        steps = inner_mask[:, 0]
        meta_mask = meta_mask & jnp.any(steps)  # as the general path
        # The inner examples are the last rows of the meta-batch, in the same order.
        x = tree.blank(examples.x.reshape(num_rows, -1), meta_mask)
        x_inner = x[num_rows - num_steps :]
        z = x @ kernel
        products = (x_inner[:, None] * x[None]).reshape(num_steps * num_rows, -1) @ kernel_rates
        products = products.reshape(num_steps, num_rows, -1)

        def step(carry: Any, inputs: Any) -> tuple[Any, Array]:
            rest, z = carry
            i, chunk, chunk_mask, product = inputs

            def inner_loss(rest: Params, z_own: Array) -> Array:
                return mean_loss(rest, z_own, chunk, chunk_mask)

            z_own = jax.lax.stop_gradient(z)[num_rows - num_steps + i][None]
            d_rest, d_z = jax.lax.stop_gradient(jax.grad(inner_loss, argnums=(0, 1))(rest, z_own))
            rest = jax.tree.map(lambda p, a, g: p - a * g, rest, rest_rates, d_rest)
            z = z - d_z * product
            return (rest, z), mean_loss(rest, z, examples, meta_mask)

        inputs = (jnp.arange(num_steps), chunks, inner_mask, products)
        losses = jax.lax.scan(step, (rest, z), inputs, unroll=True)[1]
        return REDUCTIONS[how.meta_reduce](losses, steps), model_state

    return meta_loss
