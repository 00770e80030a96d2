"""FeCAM: a Gaussian a class, each with a covariance of its own, normalised to a correlation.

    update(batch):   n_c, mu_c, S_c  =  count, mean and scatter of the features g(x) of class c
        g(x) = sign(f(x)) |f(x)|^beta                                   Tukey's transform
    predict(x):      argmin_c  (u(g(x)) - u(mu_c))^T  N(K_c)^-1  (u(g(x)) - u(mu_c))
        Sigma_c = S_c / (n_c - 1)
        K_c     = Sigma_c + gamma_1 v_1 I + gamma_2 v_2 (1 - I)         shrinkage
        N(K)_ij = K_ij / sqrt(K_ii K_jj)                                correlations

v_1 and v_2 are the means of the covariance's diagonal and of its other entries, u(z) = z / |z| with
``normalize``, else z. There is no memory of examples. Order and batches do not matter.

Symbols: S_c ``scatters``, mu_c ``moments.means``, beta ``power``, gamma_1 and gamma_2
``diagonal`` and ``off_diagonal``.

Source: Goswami, Liu, Twardowski, van de Weijer, "FeCAM: Exploiting the Heterogeneity of Class
Distributions in Exemplar-Free Continual Learning", NeurIPS 2023 (arXiv:2309.14062), from the
method's description.

Differs: Tukey's transform is written for features of ReLU; of one below 0 it keeps the sign, and a
power of 0, the logarithm, is left out. ``normalize`` is an option, since the description leaves
open whether lengths count. A class of features that never vary has the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax.checks import check_memory
from cljax.method import Problem
from cljax.methods.groups.closed_form import (
    ClosedForm,
    Moments,
    deviation,
    known_only,
    members,
    merge,
    no_moments,
    num_features,
    scatters,
)
from cljax.nets.cosine import unit
from cljax.options import Positive, Rate
from cljax.types import Array, Batch, Info

__all__ = ["FeCAM", "State", "View"]


class State(NamedTuple):
    """Moments of each class, and its scatter [C, D, D]."""

    moments: Moments
    scatters: Array


class View(NamedTuple):
    """Means as they are compared, and the inverses of the correlations."""

    means: Array  # [C, D]
    precisions: Array  # [C, D, D]
    counts: Array  # [C]


class FeCAM(ClosedForm, name="fecam"):
    """FeCAM: Mahalanobis distances with a normalised covariance a class (Goswami et al. 2023).

    Paper: Goswami et al., NeurIPS 2023 (arXiv:2309.14062). Pseudo-code, symbols and what differs:
    ``cljax.methods.fecam``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.FeCAM(), cljax.streams.toy("class"), seeds=1)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    power: Positive = 0.5
    """Of Tukey's transform (beta); 1 leaves features as they are."""
    diagonal: Rate = 1.0
    """Shrinkage towards the mean variance (gamma_1)."""
    off_diagonal: Rate = 1.0
    """Shrinkage towards the mean covariance (gamma_2), at most that of the diagonal."""
    normalize: bool = True
    """Compare directions: divide features, and means, by their lengths."""

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        classes, size = problem.spec.num_classes, num_features(problem)
        what = f"A covariance of {size} features for each of {classes} classes"
        check_memory(what, 4 * classes * size**2, "features of a network (cljax.streams.encoded)")

    def init(self, problem: Problem, key: Array) -> State:
        size = num_features(problem)
        moments = no_moments(problem, size)
        return State(moments, jnp.zeros((*moments.means.shape, size)))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """Counts a batch; ``info.loss`` is the ``deviation`` from the means of before."""
        z, member = members(problem, batch)
        z, moments = self._transformed(z), state.moments
        added = scatters(moments, z, member)
        loss = deviation(z, member, moments.means)
        return State(merge(moments, z, member), state.scatters + added), Info(loss)

    def solve(self, state: State) -> View:
        (counts, means), scatter = state
        sigma = scatter / jnp.maximum(counts - 1, 1)[:, None, None]
        # Class by class: on CPUs, batched inverses in two programs that run at once can wait for
        # each other's workers for ever.
        precisions = jax.lax.map(lambda s: jnp.linalg.inv(self._correlations(s)), sigma)
        return View(self._seen(means), precisions, counts)

    def scores(self, view: View, z: Array) -> Array:
        z = self._seen(self._transformed(z))

        def distances(mean: Array, precision: Array) -> Array:  # [B], of one class
            away = z - mean[None]
            turned = jnp.matmul(away, precision, precision=jax.lax.Precision.HIGHEST)
            return jnp.sum(turned * away, axis=1)

        return known_only(-jax.lax.map(lambda c: distances(*c), view[:2]).T, view.counts)

    def _transformed(self, z: Array) -> Array:
        size = jnp.abs(z)
        return jnp.sign(z) * jnp.where(size > 0, size, 1.0) ** self.power

    def _seen(self, z: Array) -> Array:
        return unit(z) if self.normalize else z

    def _correlations(self, sigma: Array) -> Array:
        """The shrunk covariance [D, D] with a diagonal of ones."""
        size = sigma.shape[0]
        eye = jnp.eye(size, dtype=sigma.dtype)
        trace = jnp.trace(sigma)
        others = (jnp.sum(sigma) - trace) / max(size * (size - 1), 1)
        sigma = sigma + self.diagonal * trace / size * eye + self.off_diagonal * others * (1 - eye)
        deviations = jnp.sqrt(jnp.diagonal(sigma))
        varies = deviations > 0
        scale = jnp.where(varies, deviations, 1.0)
        return jnp.where(
            varies[:, None] & varies[None], sigma / (scale[:, None] * scale[None]), eye
        )
