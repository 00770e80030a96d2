"""Prediction by the nearest mean of exemplars, in the space of normalised features.

    mean_c = normalise(mean over the exemplars x of c of  f(x) / |f(x)|)
    predict(x) = argmin_c |f(x) / |f(x)| - mean_c|  =  argmax_c <f(x) / |f(x)|, mean_c>

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR 2017 (arXiv:1611.07725), algorithm 1;
the mirrored view is that of its code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cljax.memory.policies import features_of
from cljax.types import Array, Batch, Model, Predictor, PyTree, Spec, Variables

__all__ = ["nearest_mean"]


def nearest_mean(model: Model, spec: Spec, *, mirror: bool = False) -> Predictor:
    """Scores are cosines with the class means, for states with ``exemplars``.

    Args:
      mirror: means over the exemplars and their mirror images, stored as [M, height, width, ...].
    """

    def prepare(state: PyTree) -> tuple[Variables, Array, Array]:
        variables, kept = Variables(state.params, state.model_state), state.exemplars
        views: list[Any] = [kept]
        if mirror:
            views.append(kept._replace(x=jax.tree.map(lambda a: jnp.flip(a, axis=2), kept.x)))
        # A sum over one-hot rows, in full precision, gives the same bits each time.
        own = (kept.y[None] == jnp.arange(spec.num_classes)[:, None]) & kept.mask[None]
        features = sum(_normalised(features_of(model, spec, variables, view)) for view in views)
        features = jnp.where(kept.mask[:, None], features, 0.0)
        sums = jnp.matmul(own.astype(features.dtype), features, precision=jax.lax.Precision.HIGHEST)
        return variables, _normalised(sums), jnp.any(own, axis=1)

    def scores(view: tuple[Variables, Array, Array], batch: Batch) -> Array:
        variables, means, known = view
        features = _normalised(model.apply(variables, batch.x, False)[0].features)
        cosines = jnp.matmul(features, means.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(known[None], cosines, jnp.finfo(cosines.dtype).min)

    return Predictor(prepare, scores)


def _normalised(a: Array) -> Array:
    length = jnp.linalg.norm(a, axis=-1, keepdims=True)
    return a / jnp.where(length > 0, length, 1.0)
