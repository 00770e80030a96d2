"""Look-ahead: the meta-loss of an inner loop with a learning rate for every parameter.

    theta_0 = theta
    for i in 1..K:   theta_i = theta_{i-1} - A(alpha) * grad CE(theta_{i-1}; chunk_i)
                     L_i     = CE(theta_i; bm)
    loss = mean_i L_i,  sum_i L_i  or  L_K

Its gradients of first order are sums along the loop, ``algebra.first_order``; those of second
order are differentiated through it.

Symbols: theta ``params``, alpha ``alpha``, K chunks ``inner``, the meta-batch bm ``meta``; A(alpha)
is relu(alpha) or alpha.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax.inner_loop import LoopOptions, sgd_step, unroll
from cljax.losses import REDUCTIONS, LossFn, masked_mean
from cljax.types import Array, Examples, Params, PyTree

__all__ = ["LookAhead", "Masked", "Reduce", "losses_of", "meta_loss"]

Reduce: TypeAlias = Literal["mean", "sum", "last"]
Masked: TypeAlias = tuple[Examples, Array]  # examples, leaves [..., n, ...], and a mask [..., n]


class LookAhead(NamedTuple):
    """How an inner loop looks ahead, and how the losses after its steps are judged.

    Attributes:
      order: 1 takes inner gradients for constants; 2 differentiates through them.
      inner_clip: bound of each element of an inner gradient; None disables.
      inner_relu: inner steps use relu(alpha), not alpha.
      meta_reduce: how the losses after the inner steps make the meta-loss.
      loop: how the inner loop is compiled.
    """

    order: int = 1
    inner_clip: Array | float | None = None
    inner_relu: bool = True
    meta_reduce: Reduce = "mean"
    loop: LoopOptions = LoopOptions(unroll_steps=True)

    def rates(self, alpha: Params) -> Params:
        """A(alpha), the rates of the inner steps."""
        return jax.tree.map(jax.nn.relu, alpha) if self.inner_relu else alpha


def meta_loss(
    params: Params,
    alpha: Params,
    model_state: PyTree,
    inner: Masked,
    meta: Masked,
    *,
    loss_fn: LossFn,
    how: LookAhead = LookAhead(),  # noqa: B008, it is immutable
) -> tuple[Array, PyTree]:
    """Meta-loss of an inner loop with per-parameter rates (equations 5 and 6).

    Differentiate it with respect to ``(params, alpha)``: with ``order=1`` the inner gradients
    are constants, so that its gradients are equation 7's, averaged over the inner steps.

    Args:
      inner: leaves ``[K, B/K, ...]``, one chunk a step, and their mask ``[K, B/K]``.
      meta: leaves ``[R + B, ...]``, the meta-batch, and its mask ``[R + B]``.
      loss_fn: see ``cljax.losses.LossFn``.

    Returns:
      The loss ``[]`` in nats over the steps that hold a valid example, 0 if none does, and the
      network's state after its pass over the meta-batch behind the last of them.
    """
    steps = jnp.any(inner[1], axis=1)  # [K]
    inner_loss, meta_batch_loss = losses_of(loss_fn, model_state, steps, meta)
    unrolled = unroll(
        sgd_step(inner_loss, how.rates(alpha), clip=how.inner_clip),
        params,
        inner,
        order=how.order,
        loop=how.loop,
        probe_fn=meta_batch_loss,
    )
    losses, states = unrolled.probes
    return REDUCTIONS[how.meta_reduce](losses, steps), jax.tree.map(lambda a: a[-1], states)


def losses_of(
    loss_fn: LossFn, model_state: PyTree, steps: Array, meta: Masked
) -> tuple[Callable[[Params, Masked], Array], Callable[[Params], tuple[Array, PyTree]]]:
    """The mean loss of a chunk, and that of the meta-batch with the network's state after it.

    Args:
      steps: [K] bool, the chunks that hold an example; without any there is nothing to judge.
    """
    examples, mask = meta
    mask = mask & jnp.any(steps)

    def inner_loss(params: Params, chunk: Masked) -> Array:
        examples, mask = chunk
        return masked_mean(loss_fn(params, model_state, examples, mask)[0], mask)

    def meta_batch_loss(params: Params) -> tuple[Array, PyTree]:
        losses, after = loss_fn(params, model_state, examples, mask)
        return masked_mean(losses, mask), after

    return inner_loss, meta_batch_loss
