"""RanPAC: features through a random layer, and a ridge regression on all examples so far.

    once:            W ~ Normal(0, 1)  [D, M]
    update(batch):   h = relu(W^T f(x));   G = G + sum of h h^T;   C = C + sum of h onehot(y)^T
    after a task:    lambda = argmin over 10^-8, ..., 10^8 of the squared error on a held-out share
                     of the task's examples, solved with G and C of all others
    predict(x):      argmax_c  ((G + lambda I)^-1 C)_c^T h

What was held out is in G and C once lambda is chosen. With ``ridge`` given nothing is held out, no
task needs an end, and order and batches do not matter. There is no memory of examples.

The squared error needs no example either: with G_h, C_h of the held-out ones it is, but for a
constant, tr(V^T G_h V) - 2 tr(V^T C_h),  V = (G + lambda I)^-1 C. One eigendecomposition of G
serves all lambda; directions that no example has are left out.

Symbols: G ``sums.gram``, C ``sums.prototypes``, W ``projection``, M ``projections``, lambda
``ridge``.

Source: McDonnell, Gong, Parvaneh, Abbasnejad, van den Hengel, "RanPAC: Random Projections and
Pre-trained Models for Continual Learning", NeurIPS 2023 (arXiv:2307.02251), from the method's
description: 80 and 20 parts of each task, seventeen lambda.

Differs: the network is not adapted on the first task (the paper's adapters); 2000 projections
instead of 10 000; each example is held out by chance, so that a share is not exact.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.method import Problem
from cljax.methods.groups.closed_form import (
    ClosedForm,
    deviation,
    known_only,
    matmul,
    members,
    num_features,
)
from cljax.options import Count, Positive, StaticShare
from cljax.types import Array, Batch, Info, Needs, Phase, PyTree, StepPlan

__all__ = ["Draws", "RanPAC", "State", "Sums", "View"]

_LAMBDAS = tuple(10.0**power for power in range(-8, 9))


class Sums(NamedTuple):
    """Over examples, of their projected features."""

    counts: Array  # [C], of each class
    gram: Array  # [M, M]
    prototypes: Array  # [M, C]


class State(NamedTuple):
    """The random layer, sums over all examples but the held-out ones of this task, and those."""

    projection: Array  # [D, M]
    sums: Sums
    held_out: PyTree  # Sums; (): the ridge is given
    ridge: Array  # []


class Draws(NamedTuple):
    """Every random choice of one update."""

    held_out: Array  # [B] bool


class View(NamedTuple):
    """The random layer and the classifier on it."""

    projection: Array  # [D, M]
    kernel: Array  # [M, C]
    counts: Array  # [C]


class RanPAC(ClosedForm, name="ranpac"):
    """RanPAC: ridge regression on random projections of features (McDonnell et al. 2023).

    Paper: McDonnell et al., NeurIPS 2023 (arXiv:2307.02251). Pseudo-code, symbols and what differs:
    ``cljax.methods.ranpac``.

    Example:
        >>> import cljax
        >>> method = cljax.RanPAC(projections=64)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    projections: Count = 2000
    """Of the features (M); what is kept grows with the square of it."""
    ridge: Positive | None = None
    """Strength of the ridge (lambda); None: chosen after each task on examples held out of it."""
    held_out: StaticShare = 0.2
    """Share of each task's examples that chooses the ridge; without one it stays 1."""

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=self.ridge is None)

    @property
    def instead_of_boundaries(self) -> str:
        return "give a ridge, such as ridge=1.0, since without one it is chosen as a task ends"

    def init(self, problem: Problem, key: Array) -> State:
        size, classes = self.projections, problem.spec.num_classes
        projection = jax.random.normal(key, (num_features(problem), size))
        none = Sums(jnp.zeros(classes), jnp.zeros((size, size)), jnp.zeros((size, classes)))
        ridge = jnp.asarray(1.0 if self.ridge is None else self.ridge, none.gram.dtype)
        return State(projection, none, none if self.ridge is None else (), ridge)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        share = self.held_out if self.ridge is None else 0.0
        return Draws(jax.random.bernoulli(key, share, batch.mask.shape))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """Sums a batch; ``info.loss`` is the ``deviation`` of h from its class's mean of before."""
        z, member = members(problem, batch)
        h = _layer(state.projection, z)
        before = _all_of(state)
        means = before.prototypes / jnp.maximum(before.counts, 1)[None]
        loss = deviation(h, member, means.T)
        apart = draws.held_out[:, None]
        state = state._replace(sums=_add(state.sums, jnp.where(apart, 0, h), member * ~apart))
        if self.ridge is None:
            held_out = _add(state.held_out, jnp.where(apart, h, 0), member * apart)
            state = state._replace(held_out=held_out)
        return state, Info(loss)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """A step that chooses the ridge, unless it is given; its plan names no example."""
        if self.ridge is not None:
            return ()
        return (Phase("ridge", _plan, lambda state, batch, key: (), _choose),)

    def solve(self, state: State) -> View:
        counts, gram, prototypes = _all_of(state)
        values, vectors = jnp.linalg.eigh(gram)
        turned = matmul(vectors.T, prototypes)
        kernel = matmul(vectors, _inverses(values, state.ridge)[:, None] * turned)
        return View(state.projection, kernel, counts)

    def scores(self, view: View, z: Array) -> Array:
        return known_only(matmul(_layer(view.projection, z), view.kernel), view.counts)


def _layer(projection: Array, z: Array) -> Array:
    return jax.nn.relu(matmul(z, projection))


def _add(sums: Sums, h: Array, member: Array) -> Sums:
    counts, gram, prototypes = sums
    added = jnp.sum(member, axis=0), matmul(h.T, h), matmul(h.T, member)
    return Sums(counts + added[0], gram + added[1], prototypes + added[2])


def _all_of(state: State) -> Sums:
    """The sums over all examples."""
    if not state.held_out:
        return state.sums
    return jax.tree.map(jnp.add, state.sums, state.held_out)


def _inverses(values: Array, ridge: Array | float) -> Array:
    """``1 / (values + ridge)`` [M], 0 for eigenvalues that are 0 but for rounding."""
    least = jnp.finfo(values.dtype).eps * values.size * jnp.max(values)
    return jnp.where(values > least, 1 / (values + ridge), 0.0)


def _choose(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
    """The ridge with the least squared error on what was held out, which joins the others then."""
    held_out = state.held_out
    values, vectors = jnp.linalg.eigh(state.sums.gram)
    turned, theirs = (matmul(vectors.T, s.prototypes) for s in (state.sums, held_out))
    gram = matmul(matmul(vectors.T, held_out.gram), vectors)

    def error(ridge: Array) -> Array:
        kernel = _inverses(values, ridge)[:, None] * turned
        return jnp.sum(kernel * (matmul(gram, kernel) - 2 * theirs))

    lambdas = jnp.asarray(_LAMBDAS, state.ridge.dtype)
    best = lambdas[jnp.argmin(jax.lax.map(error, lambdas))]
    some = (jnp.sum(held_out.counts) > 0) & (jnp.sum(state.sums.counts) > 0)
    ridge = jnp.where(some, best, state.ridge)
    empty = tree.full_like(held_out, 0)
    return State(state.projection, _all_of(state), empty, ridge), Info(jnp.zeros(()))


def _plan(task: int, rows: StepPlan) -> StepPlan:
    """One step after a task."""
    row = lambda value, kind: np.full(1, value, kind)
    none = np.zeros((1, 1), np.int32)
    number = row(task, np.int32)
    return StepPlan(
        none, none, none > 0, number, row(0, np.int32), row(False, bool), row(True, bool)
    )
