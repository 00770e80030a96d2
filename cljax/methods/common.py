"""What several methods share: predictors, and a gradient step with an optional penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError, in_words
from cljax.losses import LossFn, cross_entropy, head_mask, masked_mean
from cljax.optimizers import Transformation
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Model,
    Network,
    Output,
    Params,
    Penalty,
    Phase,
    Predictor,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = [
    "REDUCTIONS", "Descent", "check_features", "check_penalty", "descend", "features_predictor",
    "initial", "logits_predictor", "mean_weights", "network_of", "penalised", "penalty_phases",
    "penalty_state", "with_features",
]  # fmt: skip


# Losses [K] after inner steps, and which of those hold a valid example [K] bool, to one loss []. A
# step without any leaves the parameters as they are, so that the last loss is that of the last one.
REDUCTIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "mean": masked_mean,
    "sum": lambda losses, steps: jnp.sum(jnp.where(steps, losses, 0.0)),
    "last": lambda losses, steps: losses[-1],
}


def logits_predictor(model: Model) -> Predictor:
    """Scores are the network's logits in evaluation mode, for states with ``params``."""
    return _predictor(model, lambda output: output.logits)


def features_predictor(model: Model) -> Predictor:
    """Scores are the network's features [B, D] in evaluation mode: what a readout is fitted on."""
    return _predictor(model, lambda output: output.features)


def _predictor(model: Model, part: Callable[[Output], Array]) -> Predictor:
    def prepare(state: PyTree) -> Variables:
        return Variables(state.params, state.model_state)

    def scores(variables: Variables, batch: Batch) -> Array:
        return part(model.apply(variables, batch.x, False)[0])

    return Predictor(prepare, scores)


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


def check_penalty(penalty: Penalty | None) -> None:
    """Raises UserError unless this is a penalty, or None."""
    if penalty is not None and not isinstance(penalty, Penalty):
        raise UserError(
            f"penalty is {in_words(penalty)}, but it must be a penalty, such as cljax.ewc(100.0)."
        )


def initial(model: Model, spec: Spec, key: Array) -> Variables:
    """The network's first variables, for examples as the stream shows them."""
    example = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), spec.example)
    return model.init(key, example)


class Descent(NamedTuple):
    """What a gradient step changes; ``penalty`` is ``()`` where there is none."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree


def descend(
    at: Descent,
    examples: Examples,
    weights: Array,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: Transformation,
    clip_norm: Array | float | None = None,
    penalty: Penalty | None = None,
    network: Callable[[PyTree], Network] | None = None,
) -> tuple[Descent, Array]:
    """One step on ``sum_i weights_i * loss_i``, plus the penalty; none on a batch of padding.

    Args:
      examples: leaves ``[B, ...]``. weights: ``[B]``, 0 for padding.
      batch: the incoming batch, for penalties on outputs; without a valid row nothing changes.
      clip_norm: bound of the global norm of the whole gradient; None disables.
      network: ``model_state -> Network``, needed with a penalty.

    Returns:
      What comes after the step, and the loss ``[]`` without the penalty.
    """

    def weighted(params: Params) -> tuple[Array, PyTree]:
        losses, model_state = loss_fn(params, at.model_state, examples, weights > 0)
        return jnp.sum(losses * weights), model_state

    (loss, model_state), grads = jax.value_and_grad(weighted, has_aux=True)(at.params)
    total = grads
    if penalty is not None:
        assert network is not None
        total = penalised(grads, penalty, at.penalty, at.params, batch, network(at.model_state))
    total = tree.clip_norm(total, clip_norm)
    updates, opt_state = optimizer.update(total, at.opt_state, at.params)
    kept = at.penalty
    if penalty is not None:
        kept = penalty.observe(at.penalty, at.params, grads, updates)
    params = jax.tree.map(jnp.add, at.params, updates)
    some = jnp.any(batch.mask)  # replay alone, decay or momentum are no step
    after = tree.select(some, Descent(params, model_state, opt_state, kept), at)
    return after, jnp.where(some, loss, 0.0)


def mean_weights(mask: Array) -> Array:
    """Weights ``[B]`` that make a sum the mean over the valid examples."""
    return mask / jnp.maximum(jnp.sum(mask), 1)


def network_of(model: Model, spec: Spec) -> Callable[[PyTree], Network]:
    """``model_state -> Network``: what a penalty may ask of the network, in evaluation mode."""

    def logits(variables: Variables, x: PyTree) -> Array:
        return model.apply(variables, x, False)[0].logits

    def losses(variables: Variables, examples: Examples) -> Array:
        return cross_entropy(
            logits(variables, examples.x), examples.y, head_mask(spec, examples.task)
        )

    return lambda model_state: Network(logits, losses, model_state, spec)


def penalty_state(penalty: Penalty | None, params: Params) -> PyTree:
    """What a method keeps for its penalty in its state's field ``penalty``."""
    return () if penalty is None else penalty.init(params)


def penalised(
    grads: Params, penalty: Penalty, kept: PyTree, params: Params, batch: Batch, network: Network
) -> Params:
    """Gradient of the loss, which is ``grads``, with what the penalty makes of it."""
    batch = batch._replace(x=tree.blank(batch.x, batch.mask))

    def added(params: Params) -> Array:
        value = penalty.value(kept, params)
        if penalty.distil is not None:
            value = value + penalty.distil(kept, params, batch, network)
        return value

    pull = jax.grad(added)(params)
    share = None if penalty.share is None else penalty.share(kept)
    own = grads if share is None else jax.tree.map(lambda g: share * g, grads)
    return jax.tree.map(jnp.add, own, pull)


def penalty_phases(penalty: Penalty | None, model: Model, spec: Spec) -> tuple[Phase, ...]:
    """The phase that consolidates a penalty at the end of a task; reads ``params``, ``penalty``."""
    if penalty is None:
        return ()
    network = network_of(model, spec)

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if penalty.plan is not None:
            return penalty.plan(task, rows)
        return StepPlan(*(column[-1:] for column in rows))

    def draw(state: PyTree, batch: Batch, key: Array) -> Array:
        return key

    def update(state: PyTree, batch: Batch, key: Array) -> tuple[PyTree, Info]:
        batch = batch._replace(x=tree.blank(batch.x, batch.mask))
        kept = penalty.consolidate(
            state.penalty, state.params, batch, network(state.model_state), key
        )
        return state._replace(penalty=kept), Info(jnp.zeros(()))

    return (Phase("consolidate", plan, draw, update),)
