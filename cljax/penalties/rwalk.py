"""Riemannian walk: a running Fisher and a path score hold the parameters together.

    each step:     F = rate * g^2 + (1 - rate) * F
                   L = L - g * (theta_new - theta)
    each window:   s = s + max(0, L) / (F / 2 * (theta - theta_window)^2 + damping);  L = 0
    end of task:   S = s after the first task, then (S + s) / 2;  s = 0;  F, theta* are kept
    penalty      = strength * sum (F / max F + S / max S) (theta - theta*)^2

Symbols: lambda ``strength``, alpha ``rate``, Delta ``window``, epsilon ``damping``, F ``fisher``
(kept: ``importance``), S ``score``, theta* ``anchor``.

Source: Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence", ECCV 2018 (arXiv:1801.10112), equations 8 to 10. Combine it with ``er`` for the
paper's variant with stored examples.

Differs: F is of the mean loss of a batch, at its labels; the paper's is a mean over examples.
Maxima are over all parameters together, which the paper leaves open, and the window that a task's
end cuts short is read too. The released code, known here at second hand, follows F once a window of
50 steps, where here each step is followed, and gives the newest squares a weight of 0.1 where
equation 8 has alpha = 0.9.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.options import Count, Positive, Rate, Share, positional
from cljax.penalties.common import zeros
from cljax.penalty import Penalty
from cljax.types import Array, Batch, Network, Params

__all__ = ["RWalk", "State"]


class State(NamedTuple):
    """Trees like the parameters, but for ``step`` and ``tasks``, counters []."""

    weight: Params  # (F / max F + S / max S) of the past
    anchor: Params
    score: Params  # S, averaged over tasks
    fisher: Params  # F, running
    path: Params  # L, within the window
    path_score: Params  # s, within the task
    window_start: Params  # theta where the window began
    step: Array  # steps in the window
    tasks: Array


class RWalk(Penalty, name="rwalk"):
    """RWalk: EWC's Fisher, kept running, beside a path score in the Riemannian metric.

    Paper: Chaudhry et al., ECCV 2018 (arXiv:1801.10112). Pseudo-code, symbols and what differs:
    ``cljax.penalties.rwalk``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.RWalk())
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    strength: Rate = positional(default=1.0)
    """Weight of the penalty (lambda)."""
    rate: Share = 0.9
    """Of the newest squared gradient in the running Fisher (alpha)."""
    window: Count = 10
    """Steps between two readings of the path (Delta)."""
    damping: Positive = 0.1
    """Keeps the score of parameters that did not move finite (epsilon)."""

    def init(self, params: Params) -> State:
        zero, count = zeros(params), jnp.zeros((), jnp.int32)
        return State(zero, params, zero, zero, zero, zero, params, count, count)

    def value(self, state: State, params: Params) -> Array:
        return self.strength * tree.weighted_sq(state.weight, params, state.anchor)

    def _read(self, state: State, params: Params) -> State:
        """Ends a window at ``params``."""
        path_score = jax.tree.map(
            lambda s, path, f, p, start: s
            + jnp.maximum(path, 0.0) / (0.5 * f * (p - start) ** 2 + self.damping),
            state.path_score, state.path, state.fisher, params, state.window_start,
        )  # fmt: skip
        return state._replace(
            path_score=path_score,
            path=zeros(params),
            window_start=params,
            step=jnp.zeros((), jnp.int32),
        )

    def observe(self, state: State, params: Params, grads: Params, updates: Params) -> State:
        state = state._replace(
            fisher=jax.tree.map(
                lambda f, g: self.rate * g**2 + (1 - self.rate) * f, state.fisher, grads
            ),
            path=jax.tree.map(lambda a, g, u: a - g * u, state.path, grads, updates),
            step=state.step + 1,
        )
        after = jax.tree.map(jnp.add, params, updates)
        return tree.select(state.step == self.window, self._read(state, after), state)

    def consolidate(
        self, state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        state = self._read(state, params)
        first = state.tasks == 0
        score = jax.tree.map(
            lambda old, new: jnp.where(first, new, 0.5 * (old + new)),
            state.score, state.path_score,
        )  # fmt: skip
        weight = jax.tree.map(jnp.add, _normalised(state.fisher), _normalised(score))
        return state._replace(
            weight=weight,
            anchor=params,
            score=score,
            path_score=zeros(params),
            tasks=state.tasks + 1,
        )


def _normalised(values: Params) -> Params:
    """Divided by the largest of all, so that it is 1; zeros stay."""
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(jnp.max, values))
    return jax.tree.map(lambda v: v / jnp.where(largest > 0, largest, 1.0), values)
