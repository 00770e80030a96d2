"""Prediction by the nearest mean of exemplars, in the space of normalised features.

    predict(x) = argmin_c |f(x) / |f(x)| - mean_c|  =  argmax_c <f(x) / |f(x)|, mean_c>

with the means of ``cljax.memory.class_means``.

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR 2017 (arXiv:1611.07725), algorithm 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax.memory.class_means import class_means
from cljax.nets.cosine import unit
from cljax.types import Array, Batch, Model, Predictor, PyTree, Spec, Variables

__all__ = ["nearest_mean"]


def nearest_mean(model: Model, spec: Spec, *, mirror: bool = False) -> Predictor:
    """Scores are cosines with the class means, for states with ``exemplars``.

    Args:
      mirror: means over the exemplars and their mirror images, stored as [M, height, width, ...].
    """

    def prepare(state: PyTree) -> tuple[Variables, Array, Array]:
        variables = Variables(state.params, state.model_state)
        means, known = class_means(model, spec, variables, state.exemplars, mirror=mirror)
        return variables, means, known

    def scores(view: tuple[Variables, Array, Array], batch: Batch) -> Array:
        variables, means, known = view
        features = unit(model.apply(variables, batch.x, False)[0].features)
        cosines = jnp.matmul(features, means.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(known[None], cosines, jnp.finfo(cosines.dtype).min)

    return Predictor(prepare, scores)
