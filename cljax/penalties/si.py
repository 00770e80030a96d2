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
from cljax.errors import check_above_zero, check_known, check_rate
from cljax.penalties.common import zeros
from cljax.types import Array, Batch, Network, Params, Penalty

__all__ = ["State", "si"]


class State(NamedTuple):
    """All with the structure and shapes of the parameters."""

    importance: Params
    anchor: Params
    path: Params


def si(
    strength: Array | float = 0.1,
    *,
    damping: Array | float = 0.1,
    importance: Literal["clip-total", "clip-each"] = "clip-total",
) -> Penalty:
    """SI: a quadratic penalty by each parameter's share in the fall of past losses.

    Args:
      strength: weight of the penalty (c). May be traced.
      damping: keeps the importance of parameters that did not move finite (xi). May be traced.
      importance: what is cut at zero, the sum over tasks as in the authors' code, or the term of
        each task.

    Raises:
      UserError: for a value that is not finite, or an unknown choice.
    """
    options = dict(locals())
    check_rate(strength=strength)
    check_above_zero(damping=damping)
    check_known("importance", importance, ("clip-total", "clip-each"))

    def init(params: Params) -> State:
        return State(zeros(params), params, zeros(params))

    def value(state: State, params: Params) -> Array:
        return strength * tree.weighted_sq(state.importance, params, state.anchor)

    def observe(state: State, params: Params, grads: Params, updates: Params) -> State:
        path = jax.tree.map(lambda w, g, u: w - g * u, state.path, grads, updates)
        return state._replace(path=path)

    def consolidate(
        state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        def total(old: Array, path: Array, end: Array, start: Array) -> Array:
            own = path / ((end - start) ** 2 + damping)
            if importance == "clip-each":
                return old + jnp.maximum(own, 0.0)
            return jnp.maximum(old + own, 0.0)

        held = jax.tree.map(total, state.importance, state.path, params, state.anchor)
        return State(held, params, zeros(params))

    return Penalty(init, value, observe, consolidate, name="si", options=options)
