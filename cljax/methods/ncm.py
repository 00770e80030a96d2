"""Nearest class mean: features are of the class whose mean over all its examples is nearest.

    update(batch):   n_c, mu_c  =  count and mean of the features of class c so far
    predict(x):      argmin_c |f(x) - mu_c|  =  argmax_c <f(x), mu_c> - |mu_c|^2 / 2

With ``normalize`` features have length 1 before they are averaged, and so have the means then.
There is no memory of examples. The order of examples and their batches do not matter.

Symbols: f(x) the features, mu_c ``moments.means``, n_c ``moments.counts``.

Source: Mensink, Verbeek, Perronnin, Csurka, "Distance-Based Image Classification: Generalizing to
New Classes at Near-Zero Cost", IEEE TPAMI 2013, whose metric is not learned here; normalised as in
Rebuffi et al., "iCaRL", CVPR 2017 (arXiv:1611.07725), but over all examples.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

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
from cljax.nets.cosine import unit
from cljax.types import Array, Batch, Info

__all__ = ["NCM", "State"]


class State(NamedTuple):
    """Counts and means of the features of each class."""

    moments: Moments


class NCM(ClosedForm, name="ncm"):
    """Nearest class mean of features that do not change.

    Paper: Mensink et al., IEEE TPAMI 2013. Pseudo-code and symbols: ``cljax.methods.ncm``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.NCM(), cljax.streams.toy("class"), seeds=1)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    normalize: bool = False
    """Compare directions: divide features, and means, by their lengths."""

    def init(self, problem: Problem, key: Array) -> State:
        return State(no_moments(problem, num_features(problem)))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """Counts a batch; ``info.loss`` is the ``deviation`` from the means of before."""
        z, member = members(problem, batch)
        z = self._seen(z)
        loss = deviation(z, member, state.moments.means)
        return State(merge(state.moments, z, member)), Info(loss)

    def solve(self, state: State) -> Moments:
        return state.moments._replace(means=self._seen(state.moments.means))

    def scores(self, view: Moments, z: Array) -> Array:
        own = 0.5 * jnp.sum(jnp.square(view.means), axis=1)
        return known_only(matmul(self._seen(z), view.means.T) - own[None], view.counts)

    def _seen(self, z: Array) -> Array:
        return unit(z) if self.normalize else z
