"""Elastic weight consolidation: parameters are held by the Fisher information of past tasks.

    penalty    = strength / 2 * sum_tasks sum_k F_k (theta_k - theta*_k)^2
    end of t:    F = E_x E_{y ~ p(y|x)} (d log p(y|x) / d theta)^2,   theta* = theta
    every anchor:  S = S + F,          Q = Q + F theta*
    last anchor:   S = decay * S + F,  Q = S theta*                   (online EWC)

The sum over tasks needs two accumulators however many tasks there are, since its gradient is
strength * (S theta - Q).

Symbols: lambda ``strength``, S ``importance``, Q ``pull``, gamma ``decay``.

Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017,
equation 3; online: Schwarz et al., "Progress & Compress", ICML 2018. The code released with MER
squares the mean gradient of a task's first examples at their labels
(``fisher="mean-gradient"``), and has no 1/2, so its strength is twice as large here. The Fisher is
that of the network as it predicts: under BatchNorm with the running statistics.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.losses import sampled_targets
from cljax.options import Count, Rate, Share, positional
from cljax.penalties.common import first_examples, sum_over_examples, zeros
from cljax.penalty import Penalty
from cljax.types import Array, Batch, Examples, Network, Params, StepPlan, Variables

__all__ = ["EWC", "OnlineEWC", "State"]

Fisher = Literal["sampled", "empirical", "mean-gradient"]


class State(NamedTuple):
    """``importance`` (S), ``pull`` (Q), ``offset`` [] (sum F theta*^2); the rest is under way."""

    importance: Params
    pull: Params
    offset: Array
    fisher: Params  # sum over examples of the task being consolidated, of squares or gradients
    count: Array  # [] how many those are


class EWC(Penalty, name="ewc"):
    """EWC: a quadratic penalty by the diagonal Fisher information of past tasks (equation 3).

    Paper: Kirkpatrick et al., PNAS 2017 (arXiv:1612.00796). Pseudo-code and symbols:
    ``cljax.penalties.ewc``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.EWC(10.0))
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    strength: Rate = positional(default=100.0)
    """Weight of the penalty (lambda)."""
    fisher: Fisher = "sampled"
    """Squared gradients at labels sampled from the network, at the true labels (empirical), or
    the square of the mean gradient at the true labels (mean-gradient)."""
    num_examples: Count | None = 500
    """How many of a task's first examples estimate its Fisher; None is all."""
    anchors: Literal["every", "last"] = "every"
    """Hold the parameters at every past task's end, or at the last one only (online)."""
    decay: Share = 1.0
    """Of the older Fisher where only the last anchor holds."""

    def init(self, params: Params) -> State:
        zero = jnp.zeros(())
        return State(zeros(params), zeros(params), zero, zeros(params), zero)

    def value(self, state: State, params: Params) -> Array:
        # sum F (theta - theta*)^2, from what is kept of it.
        quadratic = jax.tree.map(
            lambda s, q, p: jnp.sum(p * (s * p - 2 * q)), state.importance, state.pull, params
        )
        total = jax.tree.reduce(jnp.add, quadratic, state.offset)
        return 0.5 * self.strength * total

    def consolidate(
        self, state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        own = _fisher(self.fisher, params, batch, network, key)
        total = jax.tree.map(jnp.add, state.fisher, own)
        count = state.count + jnp.sum(batch.mask)
        estimate = jax.tree.map(lambda f: f / jnp.maximum(count, 1), total)
        if self.fisher == "mean-gradient":
            estimate = jax.tree.map(jnp.square, estimate)
        decay = 1.0 if self.anchors == "every" else self.decay
        importance = jax.tree.map(lambda s, f: decay * s + f, state.importance, estimate)
        if self.anchors == "every":
            pull = jax.tree.map(lambda q, f, p: q + f * p, state.pull, estimate, params)
            offset = state.offset + tree.weighted_sq(estimate, params, zeros(params))
        else:
            pull = jax.tree.map(jnp.multiply, importance, params)
            offset = tree.weighted_sq(importance, params, zeros(params))
        done = State(importance, pull, offset, zeros(params), jnp.zeros(()))
        under_way = state._replace(fisher=total, count=count)
        return tree.select(batch.clock.last, done, under_way)

    def plan(self, task: int, rows: StepPlan) -> StepPlan | None:
        return first_examples(self.num_examples, 50)(task, rows)


class OnlineEWC(EWC, name="online-ewc"):
    """Online EWC: one running Fisher and the latest anchor only (Schwarz et al. 2018).

    Paper: Schwarz et al., ICML 2018 (arXiv:1805.06370). Pseudo-code and symbols:
    ``cljax.penalties.ewc``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.OnlineEWC(10.0))
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    anchors: ClassVar[Literal["last"]] = "last"


def _fisher(kind: str, params: Params, batch: Batch, network: Network, key: Array) -> Params:
    """Squared gradients (mean-gradient: gradients), summed over the batch's valid examples."""
    examples = Examples(batch.x, batch.y, batch.task)

    def losses(params: Params, examples: Examples) -> Array:
        return network.losses(Variables(params, network.model_state), examples)

    if kind == "mean-gradient":
        total = lambda p: jnp.sum(jnp.where(batch.mask, losses(p, examples), 0.0))
        return jax.grad(total)(params)
    if kind == "sampled":
        logits = network.logits(Variables(params, network.model_state), batch.x)
        drawn = sampled_targets(network.spec, logits, examples, key)
        examples = examples._replace(y=drawn)

    def loss(params: Params, example: Any) -> Array:
        return losses(params, jax.tree.map(lambda a: a[None], example))[0]

    return sum_over_examples(loss, jnp.square, params, examples, batch.mask)
