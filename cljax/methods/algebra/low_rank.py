"""First-order meta-gradients with the first layer's inner steps in low-rank form.

With one example a step, the first layer's inner gradient is x_j d_j^T, so that with A the rates
of its kernel W, row b of the meta-batch meets the first layer after i steps as

    z_b^(i) = x_b @ W - sum_{j<=i} d_j * ((x_b * x_j) @ A)

and with D_b^(i) the derivative of w_i L_i with respect to z_b^(i) and S_bj = sum_{i>=j} D_b^(i),

    grad_W = sum_b x_b S_b1^T
    grad_A = -sum_{b,j} (x_b * x_j) (d_j * S_bj)^T

All first-layer work of the K inner steps is four products: of the rows x_b with W, of the rows
x_b * x_j with A, and their transposes. It equals the general path up to rounding (6e-17 in
float64) and moves far less memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import REDUCTIONS, masked_mean, row_losses
from cljax.methods.algebra import first_order, pairs
from cljax.methods.algebra.first_order import MetaGradients, Steps
from cljax.methods.algebra.look_ahead import LookAhead, Masked
from cljax.types import Array, Examples, Model, Params, PyTree, Spec

__all__ = ["low_rank_meta_gradients"]


def low_rank_meta_gradients(model: Model, spec: Spec) -> Callable[..., MetaGradients]:
    """``first_order.meta_gradients`` for networks with a first product, without inner clip.

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

    of_both = jax.value_and_grad(mean_loss, argnums=(0, 1))

    def meta_gradients(
        params: Params,
        alpha: Params,
        model_state: PyTree,
        inner: Masked,
        meta: Masked,
        *,
        how: LookAhead,
    ) -> MetaGradients:
        (chunks, inner_mask), (examples, meta_mask) = inner, meta
        kernel, rest = first.split(params)
        kernel_rates, rest_rates = first.split(how.rates(alpha))
        num_steps, num_rows = inner_mask.shape[0], meta_mask.shape[0]
        held = inner_mask[:, 0]
        meta_mask = meta_mask & jnp.any(held)  # as the general path
        # The inner examples are the last rows of the meta-batch, in the same order.
        x = tree.blank(examples.x.reshape(num_rows, -1), meta_mask)
        products = pairs.of_rows(x, num_steps)

        def inner_step(rest: Params, z: Array, inputs: Any) -> tuple[Params, Array, Array]:
            i, chunk, mask, product = inputs
            own = jax.lax.dynamic_slice_in_dim(z, num_rows - num_steps + i, 1)
            d_rest, d_z = of_both(rest, own, chunk, mask)[1]
            return d_rest, z - d_z * product, d_z

        def meta_batch(rest: Params, z: Array) -> tuple[tuple[Array, Array], Params]:
            loss, (d_rest, d_z) = of_both(rest, z, examples, meta_mask)
            return (loss, d_z), d_rest

        steps, weights = Steps(inner_step, meta_batch), first_order.weights(held, how)
        inputs = jnp.arange(num_steps), chunks, inner_mask, pairs.times(products, kernel_rates)
        done = first_order.follow(steps, rest, rest_rates, x @ kernel, inputs, weights, how)
        d_z = done.meta if weights is None else weights[:, None, None] * done.meta
        # S, [K or 1, R + B, H]; a product, for sums along an axis are slow on a CPU.
        among = jnp.triu(jnp.ones((len(d_z),) * 2, d_z.dtype))
        later = jnp.einsum("ji,ibh->jbh", among, d_z, precision="highest")
        d_rates = -pairs.transposed_times(products, done.inner * later, len(kernel))
        return MetaGradients(
            REDUCTIONS[how.meta_reduce](done.losses, held),
            first.join(x.T @ later[0], done.params),
            first_order.of_alpha(first.join(d_rates, done.rates), alpha, how),
            model_state,
        )

    return meta_gradients
