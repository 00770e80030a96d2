"""Numbers of feature space: values worked out by hand, and scikit-learn's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import geometry
from cljax.errors import UserError

CLASSES = 7
# Compiled whole, each is one program instead of dozens of small ones.
CENTROIDS = jax.jit(geometry.centroids, static_argnums=2)
RATIO = jax.jit(geometry.boundary_ratio)
SILHOUETTE = jax.jit(geometry.silhouette, static_argnums=2, static_argnames="block")
NEAREST = jax.jit(geometry.nearest_exemplar_accuracy, static_argnames="block")


def _blobs(num: int = 120, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features [num, 7] of 5 clusters of unequal sizes that overlap a little, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.choice(5, num, p=np.array([1, 2, 3, 4, 5]) / 15)
    features = shift + 1.5 * rng.normal(size=(5, 7))[labels] + rng.normal(size=(num, 7))
    return features.astype(np.float32), labels


def _with_leftovers(features: np.ndarray, labels: np.ndarray):
    """The same rows with masked ones between them, which hold NaN and a label of no class."""
    wide = np.full((2 * len(labels), features.shape[1]), np.nan, np.float32)
    owner, mask = np.full(len(wide), -1), np.arange(len(wide)) % 2 == 0
    wide[mask], owner[mask] = features, labels
    return wide, owner, mask


def test_centroids_are_the_means_of_the_classes() -> None:
    features = np.array([[0.0, 2.0], [2.0, 4.0], [5.0, 5.0], [9.0, 9.0]])
    found = geometry.centroids(features, np.array([0, 0, 3, 0]), mask=np.array([1, 1, 1, 0]))
    np.testing.assert_array_equal(found.mean, [[1, 3], [0, 0], [0, 0], [5, 5]])
    assert found.known.tolist() == [True, False, False, True]


def test_boundary_ratio_by_hand() -> None:
    # Class 1 has no row; its centroid, 0 in the array, must not count.
    means = CENTROIDS(np.array([[1.0, 0.0], [5.0, 0.0], [1.0, 8.0]]), np.array([0, 2, 3]), 4)
    rows = np.array([[1.0, 0], [2, 0], [3, 0], [4, 0], [2, 0], [1, 0], [2, 0]])
    ratio = RATIO(rows, np.array([0, 0, 0, 0, 2, 2, 1]), means)
    np.testing.assert_allclose(ratio, [0, 1 / 3, 1, 3, 3, np.inf, np.nan], rtol=1e-6)


def test_boundary_ratio_where_centroids_coincide_or_are_alone() -> None:
    point = np.array([[3.0, 1.0]])
    same = geometry.Centroids(jnp.tile(jnp.asarray(point), (2, 1)), jnp.ones(2, bool))
    ratio = RATIO(np.concatenate([point, point + 1]), np.array([0, 0]), same)
    assert ratio.tolist() == [1.0, 1.0]
    alone = same._replace(known=jnp.array([True, False]))
    assert np.isnan(RATIO(np.concatenate([point, point + 1]), np.array([0, 0]), alone)).all()


def test_silhouette_by_hand() -> None:
    found = SILHOUETTE(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(found.samples, [3 / 4, 2 / 3, 0], rtol=1e-6)  # the last one is alone
    np.testing.assert_allclose(found.mean, (3 / 4 + 2 / 3) / 3, rtol=1e-6)


def test_silhouette_of_equal_points_is_0_and_of_one_class_undefined() -> None:
    same = np.ones((4, 2))
    assert SILHOUETTE(same, np.array([0, 0, 1, 1]), 2).samples.tolist() == [0, 0, 0, 0]
    assert np.isnan(SILHOUETTE(same, np.zeros(4, int), 2).mean)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_silhouette_equals_that_of_scikit_learn(shift: float) -> None:
    from sklearn.metrics import silhouette_samples, silhouette_score

    features, labels = _blobs(shift=shift)
    labels[17] = 6  # alone in its class; nobody is in class 5
    found = SILHOUETTE(features, labels, CLASSES)
    exact = features.astype(np.float64)
    assert abs(float(found.mean) - silhouette_score(exact, labels)) < 1e-6
    np.testing.assert_allclose(found.samples, silhouette_samples(exact, labels), atol=2e-6)
    assert found.samples[17] == 0


def test_in_float64_all_digits_agree() -> None:
    from sklearn.metrics import silhouette_score

    features, labels = _blobs()
    exact = features.astype(np.float64)
    with jax.enable_x64(True):
        mean = float(SILHOUETTE(exact, labels, CLASSES).mean)
    assert abs(mean - silhouette_score(exact, labels)) < 1e-13


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_change_nothing(block: int) -> None:
    features, labels = _blobs()
    whole, cut = (SILHOUETTE(features, labels, CLASSES, block=b) for b in (256, block))
    np.testing.assert_allclose(cut.samples, whole.samples, atol=1e-6)
    some, own = features[::7] + 0.5, labels[::7]
    near = [NEAREST(features, labels, some, own, block=b) for b in (256, block)]
    assert 0 < near[0] < 1 and near[0] == near[1]


def test_memory_is_that_of_a_block() -> None:
    num, dims = 4096, 64

    def both(x, y):
        near = geometry.nearest_exemplar_accuracy(x, y, x, y, block=32)
        return geometry.silhouette(x, y, 10, block=32).mean + near

    shapes = (jax.ShapeDtypeStruct((num, dims), jnp.float32), jax.ShapeDtypeStruct((num,), "int32"))
    used = jax.jit(both).lower(*shapes).compile().memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < num * num * 4 / 8  # all distances would be 64 MiB


def test_masked_equals_sliced() -> None:
    features, labels = _blobs()
    wide, owner, mask = _with_leftovers(features, labels)
    means, same = CENTROIDS(features, labels, CLASSES), CENTROIDS(wide, owner, CLASSES, mask)
    np.testing.assert_allclose(same.mean, means.mean, rtol=1e-5, atol=1e-6)
    assert same.known.tolist() == means.known.tolist() == [True] * 5 + [False] * 2
    ratio = np.asarray(RATIO(wide, owner, means, mask))
    assert np.isnan(ratio).tolist() == (~mask).tolist()
    np.testing.assert_allclose(ratio[mask], RATIO(features, labels, means), rtol=1e-6)
    found = SILHOUETTE(features, labels, CLASSES)
    masked = SILHOUETTE(wide, owner, CLASSES, mask)
    np.testing.assert_allclose(masked.samples[mask], found.samples, atol=1e-6)
    np.testing.assert_allclose(masked.mean, found.mean, atol=1e-6)
    some, own = features[::7] + 0.5, labels[::7]
    plain = NEAREST(features, labels, some, own)
    assert 0 < plain < 1
    assert plain == NEAREST(wide, owner, *_with_leftovers(some, own), data_mask=mask)


def test_nearest_exemplar_by_hand() -> None:
    data, labels = np.array([[0.0], [2.0], [3.0], [9.0]]), np.array([0, 0, 1, 1])
    exemplars, owners = np.array([[1.0], [3.0], [8.0]]), np.array([0, 1, 0])

    def accuracy(mask, data_mask) -> float:
        given = {"mask": np.array(mask), "data_mask": np.array(data_mask)}
        return float(NEAREST(data, labels, exemplars, owners, **given))

    # 2 is as near to 1 as to 3, and 9 is nearest to an 8 of class 0.
    assert accuracy([1, 1, 1], [1, 1, 1, 1]) == 0.75
    assert accuracy([1, 1, 0], [1, 1, 1, 1]) == 1.0
    assert accuracy([1, 1, 1], [0, 0, 1, 1]) == 0.5
    assert np.isnan(accuracy([0, 0, 0], [1, 1, 1, 1]))
    assert np.isnan(accuracy([1, 1, 1], [0, 0, 0, 0]))


def test_nearest_exemplar_equals_scikit_learns_neighbour() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = _blobs()
    some, own = features[::7] + 0.5, labels[::7]
    wanted = KNeighborsClassifier(1).fit(some, own).score(features, labels)
    assert 0.3 < wanted < 0.99
    assert float(NEAREST(features, labels, some, own)) == pytest.approx(wanted, abs=1e-6)


def test_nan_is_never_counted_as_wrong_or_right() -> None:
    features, labels = _blobs()
    some, own = features[::7] + 0.5, labels[::7]
    broken = np.where(np.arange(120)[:, None] == 3, np.nan, features)
    assert np.isnan(NEAREST(broken, labels, some, own))
    assert np.isnan(NEAREST(features, labels, broken[::3], labels[::3]))
    assert np.isnan(SILHOUETTE(broken, labels, CLASSES).mean)


def test_mapped_over_networks_and_uncompiled() -> None:
    features, labels = _blobs()

    def numbers(x, y):
        near = geometry.nearest_exemplar_accuracy(x, y, x[:9] + 1, y[:9])
        means = geometry.centroids(x, y, 5)
        return geometry.boundary_ratio(x, y, means), geometry.silhouette(x, y, 5).mean, near

    both = np.stack([features[::-1], features])
    mapped = jax.jit(jax.vmap(numbers, in_axes=(0, None)))(both, labels)
    for one, wanted in zip(mapped, numbers(features, labels), strict=True):
        np.testing.assert_allclose(one[1], wanted, atol=1e-6)
        assert not np.allclose(one[0], wanted)
    with pytest.raises(UserError, match="num_classes must be given"):
        jax.jit(geometry.silhouette)(features, labels)


def test_small_types_are_widened() -> None:
    for dtype in (jnp.uint8, jnp.bfloat16):
        features = jnp.asarray([[0], [1], [200]], dtype)
        samples = SILHOUETTE(features, np.array([0, 0, 1]), 2).samples
        assert samples.dtype == jnp.float32
        np.testing.assert_allclose(samples, [199 / 200, 198 / 199, 0], atol=1e-6)


def test_wrong_inputs_are_refused() -> None:
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    means = geometry.Centroids(jnp.zeros((2, 2)), jnp.ones(2, bool))
    for wrong in (x[:3], x[:, 0], x[None]):
        with pytest.raises(UserError, match=r"but must be \[rows, D\]"):
            geometry.silhouette(wrong, y)
    with pytest.raises(UserError, match=r"but must be \[rows, D\]"):
        geometry.centroids(x, y, mask=np.ones(3))
    with pytest.raises(UserError, match="labels lie from -1 to 1, but must lie from 0 to 1"):
        geometry.centroids(x, np.array([0, -1, 1, 0]))
    with pytest.raises(UserError, match="labels lie from 0 to 2, but must lie from 0 to 1"):
        geometry.boundary_ratio(x, np.array([0, 1, 2, 0]), means)
    with pytest.raises(UserError, match="3 dimensions, but the centroids have shape"):
        geometry.boundary_ratio(np.zeros((4, 3)), y, means)
    with pytest.raises(UserError, match="dimensions, but the exemplar features have shape"):
        geometry.nearest_exemplar_accuracy(x, y, np.zeros((4, 3)), y)
    with pytest.raises(UserError, match="block is 0"):
        geometry.silhouette(x, y, block=0)


def test_no_rows_are_undefined_and_do_not_fail() -> None:
    x, y = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
    empty = geometry.silhouette(x, y)
    assert empty.samples.shape == (0,) and np.isnan(empty.mean)
    some, own = np.ones((3, 2), np.float32), np.arange(3)
    assert np.isnan(NEAREST(x, y, some, own))
    assert np.isnan(NEAREST(some, own, x, y))
    assert RATIO(x, y, geometry.Centroids(jnp.asarray(some), jnp.ones(3, bool))).shape == (0,)
