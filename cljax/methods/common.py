"""What several methods share: reductions of inner losses, and predictors of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.losses import masked_mean
from cljax.method import features_predictor
from cljax.types import Array, Learner, Model, Spec, Variables

__all__ = ["REDUCTIONS", "check_features", "initial", "with_features"]


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
