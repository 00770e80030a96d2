"""What classifiers share that are solved for, not trained: statistics of each class's features.

    update(batch):   n_c, mu_c, S  =  those of all rows so far, from those of before and the batch's
    predict(x):      argmax_c  score_c(f(x); statistics)

The features f(x) are the examples as the stream shows them, as one vector: those of a frozen
network where the stream is ``cljax.streams.encoded``, else the pixels. The run's network has no
part in it. Each example counts once: later epochs change nothing. Statistics of a batch are merged
into those of before by counts, so that sums of squares lose no digits:

    n' = n + m,   d = mu_batch - mu,   mu' = mu + (m / n') d,   S' = S + S_batch + (n m / n') d d^T

Symbols: n_c, mu_c, S_c count, mean and scatter of class c; m and mu_batch those of the batch.

Source: the merging is that of Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance",
The American Statistician, 1983.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.method import Cost, Method, Problem
from cljax.types import Array, Batch, Predictor, PyTree

__all__ = [
    "ClosedForm", "Moments", "deviation", "known_only", "matmul", "members", "merge", "no_moments",
    "num_features", "scatters", "vectors",
]  # fmt: skip


class Moments(NamedTuple):
    """Of the features of each class: how many, and their mean, 0 where there are none."""

    counts: Array  # [C] int32
    means: Array  # [C, D]


class ClosedForm(Method):
    """A classifier that is solved for from statistics of features, without a gradient.

    A subclass has ``init`` and ``update``, ``solve(state) -> view``, which runs once an evaluation,
    and ``scores(view, z [B, D]) -> [B, C]``.
    """

    @property
    def needs_classes(self) -> str:
        return "counts the examples of each class"

    @property
    def fixed_loss(self) -> str:
        return "solves for its classifier and minimises nothing by steps"

    @property
    def unweighted(self) -> str:
        return "solves for its classifier and sums no losses of rows"

    def solve(self, state: Any) -> PyTree:
        """What scores are computed from."""
        raise NotImplementedError

    def scores(self, view: Any, z: Array) -> Array:
        """Scores [B, C] of features [B, D]; the least number for classes not seen yet."""
        raise NotImplementedError

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        """The classifier's scores, and the features that a readout is fitted on."""
        scores = lambda view, batch: self.scores(view, vectors(batch.x))
        features = Predictor(lambda state: (), lambda view, batch: vectors(batch.x))
        return {"logits": Predictor(self.solve, scores), "features": features}

    def cost(self, problem: Problem) -> Cost:
        return Cost(gradients=0)


def num_features(problem: Problem) -> int:
    """D, the numbers of one example as the stream shows it."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(problem.spec.example))


def no_moments(problem: Problem, size: int) -> Moments:
    """Those of no examples yet, with ``size`` features."""
    classes = problem.spec.num_classes
    return Moments(jnp.zeros(classes, jnp.int32), jnp.zeros((classes, size)))


def vectors(x: PyTree) -> Array:
    """Examples, leaves ``[B, ...]``, as floats [B, D]."""
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(flat, axis=1).astype(jnp.result_type(float))


def members(problem: Problem, batch: Batch) -> tuple[Array, Array]:
    """A batch's features [B, D] and its classes [B, C], 1 in each row's own; else, and in rows that
    do not count, 0."""
    counts = batch.mask & batch.clock.first_pass
    z = vectors(tree.blank(batch.x, counts))
    classes = jnp.arange(problem.spec.num_classes)
    return z, ((batch.y[:, None] == classes[None]) & counts[:, None]).astype(z.dtype)


def matmul(a: Array, b: Array) -> Array:
    """A matrix product in full precision on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def merge(moments: Moments, z: Array, member: Array) -> Moments:
    """The moments with a batch's features [B, D], whose classes are ``member`` [B, C]."""
    new, means = _of_batch(z, member)
    share = new / jnp.maximum(moments.counts + new, 1)
    means = moments.means + share[:, None] * (means - moments.means)
    return Moments(moments.counts + new.astype(jnp.int32), means)


def scatters(moments: Moments, z: Array, member: Array) -> Array:
    """What ``merge`` adds to the scatters of the classes [C, D, D]."""
    new, means = _of_batch(z, member)
    weight = moments.counts * new / jnp.maximum(moments.counts + new, 1)
    within, between = z - matmul(member, means), means - moments.means  # rows of no class: 0
    summed = lambda *parts: jnp.einsum(*parts, precision=jax.lax.Precision.HIGHEST)
    inside = summed("bc,bi,bj->cij", member, within, within)
    return inside + summed("c,ci,cj->cij", weight, between, between)


def deviation(z: Array, member: Array, means: Array) -> Array:
    """Mean of ``|z - mu_y|^2 / 2`` [] over a batch: what its features cost under a unit Gaussian
    around the means [C, D] of before, in nats but for a constant."""
    rows = jnp.maximum(jnp.sum(member), 1)
    return 0.5 * jnp.sum(jnp.square(z - matmul(member, means))) / rows


def known_only(scores: Array, counts: Array) -> Array:
    """Scores [B, C], the least number for classes without an example."""
    return jnp.where(counts[None] > 0, scores, jnp.finfo(scores.dtype).min)


def _of_batch(z: Array, member: Array) -> tuple[Array, Array]:
    """Counts [C] and means [C, D] of a batch."""
    counts = jnp.sum(member, axis=0)
    return counts, matmul(member.T, z) / jnp.maximum(counts, 1)[:, None]
