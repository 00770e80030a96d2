"""Unreduced losses in nats, and the masks that turn them into means."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from cljax.types import Array, Examples, Model, Params, PyTree, Spec, Variables

__all__ = ["LossFn", "classification_loss", "cross_entropy", "head_mask", "masked_mean"]

# (params, model_state, examples) -> (losses [B], model_state), in training mode
LossFn: TypeAlias = Callable[[Params, PyTree, Examples], tuple[Array, PyTree]]


def cross_entropy(
    logits: Float[Array, "B C"], y: Int[Array, B], where: Bool[Array, "*#B C"] | None = None
) -> Float[Array, B]:
    """Softmax cross-entropy of each example over the outputs in ``where`` (default: all).

    Outputs outside ``where`` get exactly zero gradient. A label outside ``where`` counts the
    normaliser alone, which is finite; such rows belong under a mask.
    """
    own = jnp.arange(logits.shape[-1])[None] == y[:, None]
    if where is not None:
        own = own & where
    # A sum over a one-hot row, not a gather: its gradient is a product, not a scatter.
    label_logits = jnp.sum(jnp.where(own, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1, where=where) - label_logits


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """Mean of the valid values; 0 if none is valid."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def head_mask(spec: Spec, task: Int[Array, B]) -> Bool[Array, "B C"] | None:
    """The outputs each example competes over: its task's in multi-head streams, else all (None)."""
    return jnp.asarray(spec.class_mask)[task] if spec.multi_head else None


def classification_loss(model: Model, spec: Spec) -> LossFn:
    """The cross-entropy of ``model`` on examples of a stream, each over its own head."""

    def loss_fn(params: Params, model_state: PyTree, examples: Examples) -> tuple[Array, PyTree]:
        output, model_state = model.apply(Variables(params, model_state), examples.x, True)
        losses = cross_entropy(output.logits, examples.y, head_mask(spec, examples.task))
        return losses, model_state

    return loss_fn
