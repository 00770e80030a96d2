"""Streaming linear discriminant analysis: a Gaussian a class, with one covariance for all.

    update(batch):   for each example (z, y) = (f(x), y) in its order, t = 0, 1, ...:
        d     = z - mu_y
        Sigma = (t Sigma + t / (t + 1) d d^T) / (t + 1)
        n_y   = n_y + 1;   mu_y = mu_y + d / n_y
    predict(x):      Lambda = ((1 - eps) Sigma + eps I)^-1
        argmax_c  <Lambda mu_c, f(x)> - <mu_c, Lambda mu_c> / 2

    covariance "pooled":   n_y / (n_y + 1) in the place of t / (t + 1), so that
        Sigma = (sum over c of the scatter S_c) / (sum over c of n_c)

There is no memory of examples. With the streaming covariance the order of the examples matters, as
in the paper, while how they are cut into batches does not: an example is compared with its class's
mean of before, which is 0 for the first of a class, and weighs t / (t + 1) whatever its class. The
pooled one is exact, and neither order nor batches matter.

Symbols: Sigma ``covariance``, eps ``shrinkage``, mu_c ``moments.means``, n_c ``moments.counts``.

Source: Hayes, Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis",
CVPR Workshops 2020 (arXiv:1909.01520), from the method's description.

Differs: there is no initialisation by a first batch, from whose examples the paper estimates the
first covariance; it begins at 0. The pooled covariance is ours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.method import Problem
from cljax.methods.groups.closed_form import (
    ClosedForm,
    Moments,
    deviation,
    known_only,
    matmul,
    members,
    merge,
    no_moments,
    num_features,
)
from cljax.options import Share
from cljax.types import Array, Batch, Info

__all__ = ["SLDA", "State", "View"]


class State(NamedTuple):
    """Moments of each class, and the covariance [D, D] that all share."""

    moments: Moments
    covariance: Array


class View(NamedTuple):
    """A linear classifier: ``z @ kernel + bias``."""

    kernel: Array  # [D, C]
    bias: Array  # [C]
    counts: Array  # [C]


class SLDA(ClosedForm, name="slda"):
    """Streaming linear discriminant analysis (Hayes and Kanan 2020).

    Paper: Hayes, Kanan, CVPR Workshops 2020 (arXiv:1909.01520). Pseudo-code, symbols and what
    differs: ``cljax.methods.slda``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.SLDA(), cljax.streams.toy("class"), seeds=1)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    shrinkage: Share = 1e-4
    """Share of the identity in the covariance that is inverted (eps), above 0."""
    covariance: Literal["streaming", "pooled"] = "streaming"
    """How it is estimated: example by example, in their order, as in the paper; or pooled, which is
    exact in any order."""

    def check(self) -> None:
        super().check()
        if isinstance(self.shrinkage, (int, float)) and self.shrinkage == 0:
            raise UserError(
                "shrinkage is 0, but a covariance of few examples has no inverse without some; "
                "choose a number above 0, such as 0.0001."
            )

    def init(self, problem: Problem, key: Array) -> State:
        size = num_features(problem)
        return State(no_moments(problem, size), jnp.zeros((size, size)))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """Counts a batch; ``info.loss`` is the ``deviation`` from the means of before."""
        (counts, means), sigma = state
        z, member = members(problem, batch)
        loss = deviation(z, member, means)
        after = merge(state.moments, z, member)
        # By sums over the rows before each, all rows at once: t Sigma only grows by a term a row.
        earlier = jnp.tril(matmul(member, member.T), -1)  # [B, B], of the same class
        own = matmul(member, counts.astype(z.dtype))
        number = own + jnp.sum(earlier, axis=1)  # of examples of the class before a row
        sums = own[:, None] * matmul(member, means) + matmul(earlier, z)
        away = z - sums / jnp.maximum(number, 1)[:, None]
        total, rows = jnp.sum(counts), jnp.sum(member, axis=1)
        seen = number if self.covariance == "pooled" else total + jnp.cumsum(rows) - rows
        added = matmul((seen / (seen + 1))[None] * away.T, away)
        new = jnp.maximum(jnp.sum(after.counts), 1)
        return State(after, total / new * sigma + added / new), Info(loss)

    def solve(self, state: State) -> View:
        (counts, means), sigma = state
        sigma = (1 - self.shrinkage) * sigma + self.shrinkage * jnp.eye(sigma.shape[0])
        kernel = jax.scipy.linalg.solve(sigma, means.T, assume_a="pos")
        return View(kernel, -0.5 * jnp.sum(means.T * kernel, axis=0), counts)

    def scores(self, view: View, z: Array) -> Array:
        return known_only(matmul(z, view.kernel) + view.bias[None], view.counts)
