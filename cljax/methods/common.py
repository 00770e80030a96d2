"""What several methods share: predictors, and a gradient step with an optional penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import LossFn, masked_mean
from cljax.method import features_predictor, logits_predictor
from cljax.methods.groups.descent import Descent, mean_weights
from cljax.optimizers import Transformation
from cljax.types import (
    Array,
    Batch,
    Examples,
    Learner,
    Model,
    Params,
    PyTree,
    Spec,
    Variables,
)

__all__ = [
    "REDUCTIONS", "Descent", "check_features", "descend", "initial", "logits_predictor",
    "mean_weights", "with_features",
]  # fmt: skip


# Losses [K] after inner steps, and which of those hold a valid example [K] bool, to one loss []. A
# step without any leaves the parameters as they are, so that the last loss is that of the last one.
REDUCTIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "mean": masked_mean,
    "sum": lambda losses, steps: jnp.sum(jnp.where(steps, losses, 0.0)),
    "last": lambda losses, steps: losses[-1],
}


def with_features(learner: Learner, model: Model) -> Learner:
    """The learner with a predictor "features", its own or that of the network in its state."""
    added = {"features": features_predictor(model)}
    return learner._replace(predictors={**added, **learner.predictors})


def check_features(learner: Learner, model: Model, spec: Spec) -> None:
    """Checks that the state of a learner holds the network that ``with_features`` looks into.

    Raises:
      UserError: if it does not, and the learner has no predictor "features" of its own.
    """
    if "features" in learner.predictors:
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, network = jax.eval_shape(lambda k: (learner.init(k), initial(model, spec, k)), key)
    held = getattr(state, "params", None), getattr(state, "model_state", None)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    if shapes(held) != shapes(network):
        raise UserError(
            "A readout needs features, but the method's state has no params and model_state of "
            "the network to take them from; give its learner a predictor named features."
        )


def initial(model: Model, spec: Spec, key: Array) -> Variables:
    """The network's first variables, for examples as the stream shows them."""
    example = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), spec.example)
    return model.init(key, example)


def descend(
    at: Descent,
    examples: Examples,
    weights: Array,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: Transformation,
    clip_norm: Array | float | None = None,
) -> tuple[Descent, Array]:
    """One step on ``sum_i weights_i * loss_i``; none on a batch of padding.

    Args:
      examples: leaves ``[B, ...]``. weights: ``[B]``, 0 for padding.
      batch: the incoming batch; without a valid row nothing changes.
      clip_norm: bound of the global norm of the whole gradient; None disables.

    Returns:
      What comes after the step, and the loss ``[]``.
    """

    def weighted(params: Params) -> tuple[Array, PyTree]:
        losses, model_state = loss_fn(params, at.model_state, examples, weights > 0)
        return jnp.sum(losses * weights), model_state

    (loss, model_state), grads = jax.value_and_grad(weighted, has_aux=True)(at.params)
    total = tree.clip_norm(grads, clip_norm)
    updates, opt_state = optimizer.update(total, at.opt_state, at.params)
    params = jax.tree.map(jnp.add, at.params, updates)
    some = jnp.any(batch.mask)  # replay alone, decay or momentum are no step
    after = tree.select(some, Descent(params, model_state, opt_state, at.penalty), at)
    return after, jnp.where(some, loss, 0.0)
