"""Means of exemplars in the space of normalised features, one for each class.

    mean_c = normalise(mean over the exemplars x of c of  f(x) / |f(x)|)

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR 2017 (arXiv:1611.07725), algorithm 1;
the mirrored view is that of its code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.memory.selection import features_of
from cljax.nets.cosine import unit
from cljax.types import Array, Model, Spec, Variables

__all__ = ["class_means"]


def class_means(
    model: Model, spec: Spec, variables: Variables, kept: Any, *, mirror: bool = False
) -> tuple[Array, Array]:
    """Means [C, D] of length 1, 0 where a class has no exemplar, and which have any, [C] bool.

    Args:
      kept: with the fields of ``Exemplars``.
      mirror: over the exemplars and their mirror images, stored as [M, height, width, ...].
    """
    views: list[Any] = [kept]
    if mirror:
        if any(leaf.ndim < 3 for leaf in jax.tree.leaves(kept.x)):
            raise UserError(
                "mirror is true, but these examples are vectors, which have no left and right; "
                "choose mirror=false."
            )
        views.append(kept._replace(x=jax.tree.map(lambda a: jnp.flip(a, axis=2), kept.x)))
    # A sum over one-hot rows, in full precision, gives the same bits each time.
    own = (kept.y[None] == jnp.arange(spec.num_classes)[:, None]) & kept.mask[None]
    features: Any = sum(unit(features_of(model, spec, variables, view)) for view in views)
    features = jnp.where(kept.mask[:, None], features, 0.0)
    sums = jnp.matmul(own.astype(features.dtype), features, precision=jax.lax.Precision.HIGHEST)
    return unit(sums), jnp.any(own, axis=1)
