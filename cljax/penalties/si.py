"""Synaptic intelligence: parameters are held by how much their paths lowered the loss.

    each step:  w = w - g * (theta_new - theta)               # g of the loss without the penalty
    end of t:   Omega = max(0, Omega + w / ((theta - theta*)^2 + damping))
                theta* = theta,  w = 0
    penalty   = strength * sum Omega (theta - theta*)^2

Symbols: c ``strength``, Omega ``importance``, theta* ``anchor``, w ``path``, xi ``damping``.

Source: Zenke, Poole, Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017
(arXiv:1703.04200), equations 3 to 5. Equation 5 has no cut at zero; the authors' code cuts the sum,
so that a later task whose path raised its loss takes importance away (``importance="clip-total"``).
Others cut each task's term, which then only adds (``clip-each``). For a single task they are one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.options import Positive, Rate, positional
from cljax.penalties.common import zeros
from cljax.penalty import Penalty
from cljax.types import Array, Batch, Network, Params

__all__ = ["SI", "State"]


class State(NamedTuple):
    """All with the structure and shapes of the parameters."""

    importance: Params
    anchor: Params
    path: Params


class SI(Penalty, name="si"):
    """SI: a quadratic penalty by each parameter's share in the fall of past losses.

    Paper: Zenke, Poole, Ganguli, ICML 2017 (arXiv:1703.04200). Pseudo-code and symbols:
    ``cljax.penalties.si``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.SI(1.0))
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    strength: Rate = positional(default=0.1)
    """Weight of the penalty (c)."""
    damping: Positive = 0.1
    """Keeps the importance of parameters that did not move finite (xi)."""
    importance: Literal["clip-total", "clip-each"] = "clip-total"
    """What is cut at zero, the sum over tasks as in the authors' code, or the term of each
    task."""

    def init(self, params: Params) -> State:
        return State(zeros(params), params, zeros(params))

    def value(self, state: State, params: Params) -> Array:
        return self.strength * tree.weighted_sq(state.importance, params, state.anchor)

    def observe(self, state: State, params: Params, grads: Params, updates: Params) -> State:
        path = jax.tree.map(lambda w, g, u: w - g * u, state.path, grads, updates)
        return state._replace(path=path)

    def consolidate(
        self, state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        def total(old: Array, path: Array, end: Array, start: Array) -> Array:
            own = path / ((end - start) ** 2 + self.damping)
            if self.importance == "clip-each":
                return old + jnp.maximum(own, 0.0)
            return jnp.maximum(old + own, 0.0)

        held = jax.tree.map(total, state.importance, state.path, params, state.anchor)
        return State(held, params, zeros(params))
