"""Unreduced losses in nats, and the masks that turn them into means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError
from cljax.nets.masked import masked
from cljax.types import Array, Examples, Model, Params, PyTree, Spec, Variables

__all__ = [
    "LOSSES", "LossFn", "REDUCTIONS", "as_targets", "binary_cross_entropy", "classification_loss",
    "cross_entropy", "distillation", "head_mask", "masked_mean", "row_losses", "sampled_targets",
    "weighted",
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
    # One test for both kinks, so that they cancel in the gradient at z = 0, where JAX has abs' = 1.
    above = z >= 0
    overflow = jnp.where(above, z, 0.0)
    terms = overflow - z * targets + jnp.log1p(jnp.exp(jnp.where(above, -z, z)))
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


def as_targets(outputs: Any, y: Any) -> Any:
    """Outputs [B, C] in the shape of targets [B] or [B, K]: [B] for one float and one output."""
    alone = y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.floating) and outputs.shape[1] == 1
    return outputs[:, 0] if alone else outputs


# By name: (outputs [B, C], targets [B, C], outputs that compete or None) -> means over those [B].
_OfOutputs: TypeAlias = Callable[[Array, Array, Array | None], Array]


def _mean_over_outputs(each: Callable[[Array], Array]) -> _OfOutputs:
    def losses(outputs: Array, targets: Array, where: Array | None) -> Array:
        apart = each(outputs - targets)
        return jnp.mean(apart, axis=-1, where=where)

    return losses


def _huber(apart: Array) -> Array:
    near = jnp.clip(jnp.abs(apart), max=1.0)
    return near * (jnp.abs(apart) - 0.5 * near)


def _sigmoids(outputs: Array, targets: Array, where: Array | None) -> Array:
    where = jnp.ones((1, outputs.shape[1]), bool) if where is None else where
    return binary_cross_entropy(outputs, targets, where)


LOSSES: Mapping[str, _OfOutputs] = MappingProxyType(
    {
        "binary-cross-entropy": _sigmoids,
        "squared-error": _mean_over_outputs(jnp.square),
        # The gradient of JAX's abs is 1 at 0: outputs that are right would be moved.
        "absolute-error": _mean_over_outputs(lambda apart: apart * jnp.sign(apart)),
        "huber": _mean_over_outputs(_huber),
    }
)


def weighted(spec: Spec, losses: Float[Array, " B"], y: Array) -> Float[Array, " B"]:
    """Losses times the weights of the rows' classes; without weights the losses themselves.

    Weights are divided by their mean over the classes, so equal ones change nothing. A mean over
    a batch is still one over its rows.
    """
    weights = spec.objective.weights
    if weights is None:
        return losses
    scaled = np.asarray(weights, float) / np.mean(weights)
    return losses * jnp.asarray(scaled, losses.dtype)[y]


def row_losses(
    spec: Spec,
    outputs: Float[Array, "B C"],
    examples: Examples,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """The losses of a stream's objective, a row an example, each over its own head.

    Args:
      mask: rows outside it reach no gradient, whatever a loss of one's own makes of them; their
        losses mean nothing.
    """
    how, where, y = spec.objective, head_mask(spec, examples.task), examples.y
    if how.loss == "cross-entropy":
        return weighted(spec, cross_entropy(outputs, y, where), y)
    if mask is not None:
        outputs = jnp.where(mask[:, None], outputs, 0.0)
    if isinstance(how.loss, str):
        labels = jnp.issubdtype(y.dtype, jnp.integer)
        targets = jax.nn.one_hot(y, outputs.shape[1], dtype=outputs.dtype) if labels else y
        losses = LOSSES[how.loss](outputs, targets.reshape(outputs.shape), where)
    else:
        losses = how.loss(as_targets(outputs, y), y)
    return weighted(spec, losses, y)


def sampled_targets(
    spec: Spec, outputs: Float[Array, "B C"], examples: Examples, key: Array
) -> Array:
    """Targets drawn from what the outputs say is likely, as the Fisher information asks for.

    Labels by the softmax over the example's head, or of each sigmoid; numbers by a normal
    distribution of variance 1 around the outputs, whose log-likelihood is the squared error.

    Raises:
      UserError: for a loss that is no log-likelihood known here.
    """
    how, y = spec.objective, examples.y
    if jnp.issubdtype(y.dtype, jnp.integer) and how.loss == "cross-entropy":
        head = head_mask(spec, examples.task)
        allowed = outputs if head is None else jnp.where(head, outputs, -jnp.inf)
        return jax.random.categorical(key, allowed, axis=-1).astype(y.dtype)
    if not jnp.issubdtype(y.dtype, jnp.integer) and how.loss == "squared-error":
        drawn = outputs + jax.random.normal(key, outputs.shape, outputs.dtype)
        return drawn.reshape(y.shape).astype(y.dtype)
    if not jnp.issubdtype(y.dtype, jnp.integer) and how.loss == "binary-cross-entropy":
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(outputs))
        return drawn.reshape(y.shape).astype(y.dtype)
    loss = how.loss if isinstance(how.loss, str) else "a function of your own"
    raise UserError(
        f"A Fisher information of sampled targets needs a loss that is a likelihood, but the loss "
        f"is {loss}; choose fisher='empirical'."
    )


def classification_loss(model: Model, spec: Spec) -> LossFn:
    """The losses of ``model`` on examples of a stream, each over its own head: cross-entropy, or
    what the stream's objective says.

    In training mode; a network that keeps statistics without ``grouped`` sees repeats of the valid
    rows in the place of others, see ``cljax.nets.masked``.
    """

    def loss_fn(
        params: Params, model_state: PyTree, examples: Examples, mask: Array
    ) -> tuple[Array, PyTree]:
        variables = Variables(params, model_state)
        output, model_state = masked(model, variables, examples.x, mask, repeat=True)
        losses = row_losses(spec, output.logits, examples, mask)
        return jnp.where(mask, losses, 0.0), model_state

    return loss_fn


# Losses [K] after inner steps, and which of those hold a valid example [K] bool, to one loss []. A
# step without any leaves the parameters as they are, so that the last loss is that of the last one.
REDUCTIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "mean": masked_mean,
    "sum": lambda losses, steps: jnp.sum(jnp.where(steps, losses, 0.0)),
    "last": lambda losses, steps: losses[-1],
}
