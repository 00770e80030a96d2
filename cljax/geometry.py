"""Where data and exemplars lie in feature space, as numbers: borders, clusters, neighbours.

    boundary ratio   r_i = |f_i - mu_y| / min_{c != y} |f_i - mu_c|          y = label of i
                     0 at the own centroid, 1 on the border between two, above 1 beyond it
    silhouette       s_i = (b_i - a_i) / max(a_i, b_i)                       from -1 to 1
                     a_i = mean of |f_i - f_j| over the other j of i's class
                     b_i = least, over the other classes, of the mean of |f_i - f_j| over j in it
    accuracy         share of the data whose nearest exemplar has their label

Symbols: f ``features``, mu ``Centroids.mean``. Distances are Euclidean, in the features' units,
and sums of squared differences, not of expanded products, so that near points lose no digits.

Sources: silhouette, Rousseeuw, J. Comput. Appl. Math. 20, 1987, p. 53. Figures 1 and 5 of Liu,
Su, Liu, Schiele, Sun, "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), show learned exemplars
near the borders of classes without a number for it; the ratio and the accuracy are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError, check_positive, in_words
from cljax.types import Array, PyTree

__all__ = [
    "Centroids", "Silhouette", "boundary_ratio", "centroids", "nearest_exemplar_accuracy",
    "silhouette",
]  # fmt: skip

_BLOCK = 256  # rows whose distances to all others are held at a time


class Centroids(NamedTuple):
    """Mean features of each class."""

    mean: Array  # [C, D]
    known: Array  # [C] bool, False for a class without a row, whose mean is 0


class Silhouette(NamedTuple):
    """``mean`` [] over the valid rows, and ``samples`` [N], NaN where masked out."""

    mean: Array
    samples: Array


def centroids(
    features: Float[Array, "N D"],
    labels: Int[Array, " N"],
    num_classes: int | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> Centroids:
    """The centroid of each class.

    Args:
      num_classes: C, static; None: one more than the largest label, which must not be traced.
      mask: True = a row that counts; None: all do.

    Raises:
      UserError: for other shapes, or a label outside 0 to C - 1.
    """
    rows = _rows("", features, labels, mask)
    num_classes = _num_classes(labels, mask, num_classes)
    members = _members(rows, num_classes)
    count = jnp.sum(members, axis=0)
    sums = jnp.matmul(members.T, rows.features, precision=jax.lax.Precision.HIGHEST)
    return Centroids(sums / jnp.maximum(count, 1)[:, None], count > 0)


def boundary_ratio(
    features: Float[Array, "N D"],
    labels: Int[Array, " N"],
    means: Centroids,
    mask: Bool[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    """Distance to the own centroid over that to the nearest other one, for each row.

    Exemplars compare with data by the same centroids, those of the data.

    Args:
      means: of C classes, from ``centroids``.
      mask: True = a row that counts; None: all do.

    Returns:
      [N], 0 or more; 1 where both distances are 0, NaN where masked out, where the own centroid
      is not known, or where there is no other.

    Raises:
      UserError: for other shapes, or a label outside 0 to C - 1.
    """
    rows = _rows("", features, labels, mask)
    num_classes = _num_classes(labels, mask, means.mean.shape[0])
    _check_width(rows, means.mean, "centroids")

    def ratio(row: tuple[Array, Array]) -> Array:
        feature, label = row
        distances = _distances(means.mean, feature)
        own = jnp.arange(num_classes) == label
        near = jnp.min(jnp.where(means.known & own, distances, jnp.inf))
        other = jnp.min(jnp.where(means.known & ~own, distances, jnp.inf))
        value = jnp.where((near == 0) & (other == 0), 1.0, near / other)
        return jnp.where(jnp.isinf(near) | jnp.isinf(other), jnp.nan, value)

    values = _by_rows(ratio, (rows.features, rows.labels), _BLOCK)
    return jnp.where(rows.mask, values, jnp.nan)


def silhouette(
    features: Float[Array, "N D"],
    labels: Int[Array, " N"],
    num_classes: int | None = None,
    mask: Bool[Array, " N"] | None = None,
    *,
    block: int = _BLOCK,
) -> Silhouette:
    """How much nearer each row is to its own class than to the next one, in O(N^2 D) time.

    The only row of its class has 0, and so has a row at distance 0 of both classes. With fewer
    than two classes all is NaN.

    Args:
      num_classes: C, static; None: one more than the largest label, which must not be traced.
      mask: True = a row that counts; None: all do.
      block: rows at a time; ``block`` N distances are held.

    Raises:
      UserError: for other shapes, or a label outside 0 to C - 1.
    """
    check_positive(block=block)
    rows = _rows("", features, labels, mask)
    num_classes = _num_classes(labels, mask, num_classes)
    members = _members(rows, num_classes)
    count = jnp.sum(members, axis=0)

    def score(row: tuple[Array, Array]) -> Array:
        feature, own = row
        distances = _distances(rows.features, feature)
        sums = jnp.matmul(distances, members, precision=jax.lax.Precision.HIGHEST)  # [C]
        size = jnp.sum(own * count)
        a = jnp.sum(own * sums) / jnp.maximum(size - 1, 1)
        others = (own == 0) & (count > 0)
        b = jnp.min(jnp.where(others, sums / jnp.maximum(count, 1), jnp.inf))
        largest = jnp.maximum(a, b)
        value = jnp.where((size <= 1) | (largest == 0), 0.0, (b - a) / largest)  # NaN stays NaN
        return jnp.where(jnp.any(others), value, jnp.nan)

    samples = _by_rows(score, (rows.features, members), block)
    samples = jnp.where(rows.mask, samples, jnp.nan)
    return Silhouette(jnp.mean(samples, where=rows.mask), samples)


def nearest_exemplar_accuracy(
    features: Float[Array, "N D"],
    labels: Int[Array, " N"],
    exemplar_features: Float[Array, "M D"],
    exemplar_labels: Int[Array, " M"],
    mask: Bool[Array, " M"] | None = None,
    *,
    data_mask: Bool[Array, " N"] | None = None,
    block: int = _BLOCK,
) -> Float[Array, ""]:
    """Share of the data whose nearest exemplar has their label; of equally near ones, the first.

    Data that are exemplars themselves are their own neighbours: take other data, such as test
    examples, or mask them out.

    Args:
      mask: True = an exemplar; None: all are.
      data_mask: True = a row that counts; None: all do.
      block: rows of data at a time; ``block`` M distances are held.

    Returns:
      [] in [0, 1]; NaN without exemplars or data, or where features are NaN.

    Raises:
      UserError: for other shapes.
    """
    check_positive(block=block)
    rows = _rows("", features, labels, data_mask)
    exemplars = _rows("exemplar ", exemplar_features, exemplar_labels, mask)
    _check_width(rows, exemplars.features, "exemplar features")
    if not exemplars.labels.size:
        return jnp.full((), jnp.nan)

    def right(row: tuple[Array, Array]) -> Array:
        feature, label = row
        distances = jnp.where(exemplars.mask, _distances(exemplars.features, feature), jnp.inf)
        nearest = jnp.argmin(distances)
        hit = exemplars.labels[nearest] == label
        return jnp.where(jnp.isfinite(distances[nearest]), hit, jnp.nan)

    return jnp.mean(_by_rows(right, (rows.features, rows.labels), block), where=rows.mask)


class _Rows(NamedTuple):
    features: Array  # [N, D]
    labels: Array  # [N]
    mask: Array  # [N] bool


def _distances(points: Array, feature: Array) -> Array:
    """[N] from [N, D] to [D]."""
    return jnp.sqrt(jnp.sum((points - feature[None]) ** 2, axis=1))


def _by_rows(function: Callable[[PyTree], Array], rows: PyTree, block: int) -> Array:
    """``function`` of each row, so many at a time."""
    return jax.lax.map(function, rows, batch_size=block)


def _members(rows: _Rows, num_classes: int) -> Array:
    """[N, C], 1 where a valid row is of a class."""
    member = rows.labels[:, None] == jnp.arange(num_classes)[None]
    return (member & rows.mask[:, None]).astype(rows.features.dtype)


def _num_classes(labels: Array, mask: Array | None, num_classes: int | None) -> int:
    """C; checks the valid labels where they are known."""
    if isinstance(labels, Tracer) or isinstance(mask, Tracer):
        if num_classes is None:
            raise UserError("num_classes must be given where labels or their mask are traced.")
        return num_classes
    valid = np.asarray(labels) if mask is None else np.asarray(labels)[np.asarray(mask, bool)]
    low, high = (int(valid.min()), int(valid.max())) if valid.size else (0, 0)
    num_classes = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= num_classes:
        raise UserError(
            f"labels lie from {low} to {high}, but must lie from 0 to {num_classes - 1}."
        )
    return num_classes


def _rows(kind: str, features: Array, labels: Array, mask: Array | None) -> _Rows:
    """As arrays, features in floats of at least 32 bits and 0 where masked out."""
    try:
        features, labels = jnp.asarray(features), jnp.asarray(labels)
        mask = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
    except (TypeError, ValueError, OverflowError) as error:
        given = ", ".join(map(in_words, (features, labels, mask)))
        raise UserError(
            f"{kind}features, labels and mask are {given}, but must be arrays of numbers."
        ) from error
    if features.ndim != 2 or labels.shape != features.shape[:1] or mask.shape != labels.shape:
        raise UserError(
            f"{kind}features, labels and mask have shapes {list(features.shape)}, "
            f"{list(labels.shape)} and {list(mask.shape)}, but must be [rows, D], [rows], [rows]."
        )
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return _Rows(jnp.where(mask[:, None], features, 0.0), labels, mask)


def _check_width(rows: _Rows, others: Array, kind: str) -> None:
    if others.shape[1:] != rows.features.shape[1:]:
        raise UserError(
            f"features have {rows.features.shape[1]} dimensions, but the {kind} have shape "
            f"{list(others.shape)}; take both from one network."
        )
