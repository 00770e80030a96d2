"""Unreduced losses in nats, and the masks that turn them into means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from cljax.nets.masked import masked
from cljax.types import Array, Examples, Model, Params, PyTree, Spec, Variables

__all__ = [
    "LossFn", "REDUCTIONS", "binary_cross_entropy", "classification_loss", "cross_entropy",
    "distillation", "head_mask", "masked_mean",
]  # fmt: skip

# (params, model_state, examples, mask) -> (losses, model_state), in training mode, for examples
# with leaves [B, ...] and a mask [B]; losses [B] are in nats. Rows outside the mask have a loss of
# 0 and reach neither gradients nor statistics, whatever they hold; without a valid row the state
# stays as it is.
LossFn: TypeAlias = Callable[[Params, PyTree, Examples, Array], tuple[Array, PyTree]]


def cross_entropy(
    logits: Float[Array, "B C"], y: Int[Array, " B"], where: Bool[Array, "*#B C"] | None = None
) -> Float[Array, " B"]:
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


def binary_cross_entropy(
    logits: Float[Array, "B C"], targets: Float[Array, "B C"], where: Bool[Array, "*#B C"]
) -> Float[Array, " B"]:
    """Sigmoid cross-entropy of each example with targets in [0, 1], mean over outputs ``where``.

    Outputs outside ``where`` get exactly zero gradient; a row without any is 0.
    """
    # Chosen before the loss, so that no infinity of another output can reach the gradient.
    z = jnp.where(where, logits, 0.0)
    terms = jnp.maximum(z, 0.0) - z * targets + jnp.log1p(jnp.exp(-jnp.abs(z)))
    total = jnp.sum(jnp.where(where, terms, 0.0), axis=-1)
    count = jnp.sum(jnp.broadcast_to(where, logits.shape), axis=-1)
    return total / jnp.maximum(count, 1)


def distillation(
    logits: Float[Array, "B C"],
    teacher: Float[Array, "B C"],
    outputs: Bool[Array, " C"],
    temperature: Array | float,
    among: Bool[Array, " C"] | None = None,
) -> Float[Array, " B"]:
    """``KL(softmax(teacher / tau) || softmax(logits / tau))`` over some outputs, in nats; none: 0.

    Args:
      outputs: those of the teacher. among: those that the new softmax runs over, the teacher's and
        others, whose target is 0; None: the teacher's.
      temperature: tau. The gradient shrinks as 1 / tau^2; who wants its size back multiplies.
    """
    some = jnp.any(outputs)
    where = jnp.broadcast_to((outputs | ~some)[None], logits.shape)  # over none: anything finite
    among = where if among is None else where | among[None]
    log_old, log_new = (
        jnp.where(where, z - jax.nn.logsumexp(z, axis=-1, where=over, keepdims=True), 0.0)
        for z, over in ((teacher / temperature, where), (logits / temperature, among))
    )
    terms = jnp.where(where, jnp.exp(log_old) * (log_old - log_new), 0.0)
    return jnp.where(some, jnp.sum(terms, axis=-1), 0.0)


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """Mean of the valid values; 0 if none is valid.

    Example:
        >>> import cljax
        >>> float(cljax.losses.masked_mean(jnp.array([1.0, 3.0, 9.0]), jnp.arange(3) < 2))
        2.0
    """
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def head_mask(spec: Spec, task: Int[Array, " B"]) -> Bool[Array, "B C"] | None:
    """The outputs each example competes over: its task's in multi-head streams, else all (None)."""
    return jnp.asarray(spec.class_mask)[task] if spec.multi_head else None


def classification_loss(model: Model, spec: Spec) -> LossFn:
    """The cross-entropy of ``model`` on examples of a stream, each over its own head.

    In training mode; a network that keeps statistics without ``grouped`` sees repeats of the valid
    rows in the place of others, see ``cljax.nets.masked``.
    """

    def loss_fn(
        params: Params, model_state: PyTree, examples: Examples, mask: Array
    ) -> tuple[Array, PyTree]:
        variables = Variables(params, model_state)
        output, model_state = masked(model, variables, examples.x, mask, repeat=True)
        losses = cross_entropy(output.logits, examples.y, head_mask(spec, examples.task))
        return jnp.where(mask, losses, 0.0), model_state

    return loss_fn


# Losses [K] after inner steps, and which of those hold a valid example [K] bool, to one loss []. A
# step without any leaves the parameters as they are, so that the last loss is that of the last one.
REDUCTIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "mean": masked_mean,
    "sum": lambda losses, steps: jnp.sum(jnp.where(steps, losses, 0.0)),
    "last": lambda losses, steps: losses[-1],
}
