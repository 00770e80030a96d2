"""Memory aware synapses: parameters are held by how much the outputs depend on them.

    end of t:  Omega = Omega + E_x |d ||z(x)||^2 / d theta|,  theta* = theta       # no labels
    penalty  = strength * sum Omega (theta - theta*)^2

Symbols: lambda ``strength``, Omega ``importance``, theta* ``anchor``, z the logits.

Source: Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018
(arXiv:1711.09601), equations 2 and 3 with the squared norm of the outputs. These are of the network
as it predicts: under BatchNorm with the running statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.options import Count, Rate, positional
from cljax.penalties.common import first_examples, sum_over_examples, zeros
from cljax.penalty import Penalty
from cljax.types import Array, Batch, Network, Params, StepPlan, Variables

__all__ = ["MAS", "State"]


class State(NamedTuple):
    """``total`` and ``count`` [] belong to the task being consolidated."""

    importance: Params
    anchor: Params
    total: Params
    count: Array


class MAS(Penalty, name="mas"):
    """MAS: a quadratic penalty by the sensitivity of the outputs, without labels.

    Paper: Aljundi et al., ECCV 2018 (arXiv:1711.09601). Pseudo-code and symbols:
    ``cljax.penalties.mas``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.MAS(0.1))
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    strength: Rate = positional(default=1.0)
    """Weight of the penalty (lambda)."""
    num_examples: Count | None = 500
    """How many of a task's first examples estimate the importance; None is all."""

    def init(self, params: Params) -> State:
        return State(zeros(params), params, zeros(params), jnp.zeros(()))

    def value(self, state: State, params: Params) -> Array:
        return self.strength * tree.weighted_sq(state.importance, params, state.anchor)

    def consolidate(
        self, state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        def sensitivity(params: Params, x: Any) -> Array:
            x = jax.tree.map(lambda a: a[None], x)
            return jnp.sum(network.logits(Variables(params, network.model_state), x) ** 2)

        own = sum_over_examples(sensitivity, jnp.abs, params, batch.x, batch.mask)
        total = jax.tree.map(jnp.add, state.total, own)
        count = state.count + jnp.sum(batch.mask)
        importance = tree.add_scaled(state.importance, total, 1.0 / jnp.maximum(count, 1))
        done = State(importance, params, zeros(params), jnp.zeros(()))
        return tree.select(batch.clock.last, done, state._replace(total=total, count=count))

    def plan(self, task: int, rows: StepPlan) -> StepPlan | None:
        return first_examples(self.num_examples, 50)(task, rows)
