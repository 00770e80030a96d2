from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cljax.errors import UserError
from cljax.streams.augment import (
    brightness,
    compose,
    crop_flip_brightness,
    crop_flip_rotation,
    horizontal_flip,
    random_crop,
    random_resized_crop,
    rotation,
)
from cljax.streams.transforms import IMAGENET_MEAN, IMAGENET_STD, normalised

KEY = jax.random.key(0, impl="threefry2x32")


def images(num: int = 6, height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    """No black anywhere, so that the fill shows."""
    rng = np.random.default_rng(height + width)
    return rng.integers(1, 256, (num, height, width, channels), dtype=np.uint8)


def smooth(num: int, height: int, width: int) -> np.ndarray:
    small = Image.fromarray
    return np.stack([
        np.asarray(small(image).resize((width, height), Image.Resampling.BICUBIC))
        for image in images(num, 9, 9)
    ])  # fmt: skip


AUGMENTATIONS = {
    "brightness": brightness(),
    "crop-flip-brightness": crop_flip_brightness(),
    "crop": random_crop(4),
    "flip": horizontal_flip(),
    "rotation": rotation(10),
    "resized crop": random_resized_crop(28, 32),
    "all": crop_flip_rotation(),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_draws_are_recorded_arrays_and_uint8_stays_uint8(name):
    augmentation, x = AUGMENTATIONS[name], images()
    draws = augmentation.draw(KEY, len(x))
    assert all(leaf.shape[0] == len(x) for leaf in jax.tree.leaves(draws))
    seen = augmentation.apply(jnp.asarray(x), draws)
    size = 28 if name == "resized crop" else 32
    assert seen.dtype == jnp.uint8 and seen.shape == (len(x), size, size, 3)
    # The same key, recorded draws, and a compiled program all give the same images.
    again = augmentation.apply(jnp.asarray(x), augmentation.draw(KEY, len(x)))
    replayed = augmentation.apply(jnp.asarray(x), jax.tree.map(np.asarray, draws))
    assert np.array_equal(seen, again) and np.array_equal(seen, replayed)
    compiled = jax.jit(augmentation.apply)(jnp.asarray(x), draws)
    gap = np.abs(np.asarray(compiled, int) - np.asarray(seen, int))
    assert gap.max() <= 1 and (gap > 0).mean() < 0.02  # a compiler may round a grey level apart
    other = jax.tree.leaves(augmentation.draw(jax.random.fold_in(KEY, 1), len(x)))
    assert any((a != b).any() for a, b in zip(other, jax.tree.leaves(draws), strict=True))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_of_batches_map(name):
    augmentation, x = AUGMENTATIONS[name], jnp.asarray(images(6)).reshape(2, 3, 32, 32, 3)
    draws = jax.vmap(lambda key: augmentation.draw(key, 3))(jax.random.split(KEY, 2))
    seen = jax.vmap(augmentation.apply)(x, draws)
    for i in range(2):
        own = augmentation.apply(x[i], jax.tree.map(lambda leaf, i=i: leaf[i], draws))
        assert (np.asarray(seen[i]) != np.asarray(own)).mean() < 1e-3


def test_precision_changes_no_draw():
    def drawn():
        return [np.asarray(leaf) for leaf in jax.tree.leaves(crop_flip_rotation().draw(KEY, 5))]

    single = drawn()
    with jax.enable_x64(True):
        double = drawn()
    for a, b in zip(single, double, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.data())
def test_a_crop_is_a_window_of_the_padded_image(pad, data):
    x = images(3, 7, 9)
    corner = st.tuples(st.integers(0, 2 * pad), st.integers(0, 2 * pad))
    corners = np.array([data.draw(corner) for _ in x], np.int32)
    seen = np.asarray(random_crop(pad).apply(jnp.asarray(x), corners))
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for i, (top, left) in enumerate(corners):
        assert np.array_equal(seen[i], padded[i, top : top + 7, left : left + 9])


def test_crops_by_hand():
    x = jnp.arange(1, 10, dtype=jnp.uint8).reshape(1, 3, 3, 1)
    crop = random_crop(1)
    assert np.array_equal(crop.apply(x, np.array([[1, 1]]))[0], x[0])
    shifted = crop.apply(x, np.array([[0, 2]]))[0, :, :, 0]
    assert shifted.tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_every_window_is_drawn():
    corners = np.asarray(random_crop(2).draw(KEY, 2000))
    assert corners.dtype == np.int32
    counts = np.bincount(corners[:, 0] * 5 + corners[:, 1], minlength=25)
    assert len(counts) == 25 and counts.min() > 40 and counts.max() < 130


def test_flips_by_hand():
    x = images(3, 4, 5)
    seen = np.asarray(horizontal_flip().apply(jnp.asarray(x), np.array([True, False, True])))
    assert np.array_equal(seen[0], x[0][:, ::-1]) and np.array_equal(seen[1], x[1])
    flipped = np.asarray(horizontal_flip().draw(KEY, 2000))
    assert flipped.dtype == bool and 900 < flipped.sum() < 1100


@pytest.mark.parametrize("shape", [(32, 32), (112, 112), (28, 28), (33, 20)])
def test_rotations_are_pillows(shape):
    angles = np.concatenate([np.linspace(-10, 10, 41), [0, 45, 90, 137, 180, 270]])
    x = images(len(angles), *shape)
    seen = np.asarray(rotation(10).apply(jnp.asarray(x), angles.astype(np.float32)))
    wanted = np.stack([
        np.asarray(Image.fromarray(image).rotate(angle))
        for image, angle in zip(x, angles.astype(np.float32).tolist(), strict=True)
    ])  # fmt: skip
    assert (seen != wanted).any(axis=-1).mean() < 1e-3
    assert (wanted == 0).any() and np.array_equal(seen[20], x[20])


def test_brightness_is_pillows():
    x = images(5)
    factors = np.array([0.0, 1 - 63 / 255, 1.0, 1.2, 1 + 63 / 255], np.float32)
    found = brightness().apply(jnp.asarray(x), jnp.asarray(factors))
    for image, factor, ours in zip(x, factors, found, strict=True):
        theirs = ImageEnhance.Brightness(Image.fromarray(image)).enhance(float(factor))
        np.testing.assert_array_equal(ours, np.asarray(theirs))
    assert int(found.max()) == 255 and not found[0].any()


def test_factors_are_uniform():
    drawn = np.asarray(brightness().draw(KEY, 4000))
    low, high = 1 - 63 / 255, 1 + 63 / 255
    assert low <= drawn.min() < low + 0.01 and high - 0.01 < drawn.max() <= high
    assert abs(drawn.mean() - 1) < 0.01


def test_angles_are_uniform():
    angles = np.asarray(rotation(10).draw(KEY, 4000))
    assert angles.dtype == np.float32 and np.abs(angles).max() <= 10
    assert np.histogram(angles, 8, (-10, 10))[0].min() > 400


@pytest.mark.parametrize(("stored", "size"), [((120, 120), 112), ((40, 30), 16), ((24, 24), 24)])
def test_resized_crops_are_pillows(stored, size):
    augmentation, x = random_resized_crop(size, stored), smooth(20, *stored)
    boxes = np.asarray(augmentation.draw(KEY, len(x)))
    seen = np.asarray(augmentation.apply(jnp.asarray(x), boxes)).astype(int)
    for i, (top, left, tall, wide) in enumerate(boxes):
        box = Image.fromarray(x[i]).crop((left, top, left + wide, top + tall))
        wanted = np.asarray(box.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(seen[i] - wanted).max() <= 1
        assert (seen[i] == wanted).mean() > 0.7  # which pass Pillow rounds first varies


def test_boxes_have_the_areas_and_shapes_asked_for():
    boxes = np.asarray(random_resized_crop(112, 120).draw(KEY, 4000))
    top, left, tall, wide = boxes.T
    assert boxes.dtype == np.int32 and (boxes >= 0).all()
    assert (tall > 0).all() and (top + tall <= 120).all()
    assert (wide > 0).all() and (left + wide <= 120).all()
    area, ratio = tall * wide / 120**2, wide / tall
    assert 0.07 < area.min() < 0.1 and area.max() > 0.95
    assert 0.7 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.42
    assert abs(np.log(ratio).mean()) < 0.02


@pytest.mark.parametrize(
    ("stored", "box"), [((10, 40), [0, 13, 10, 13]), ((40, 10), [13, 0, 13, 10])]
)
def test_without_a_fitting_box_the_largest_central_one_is_taken(stored, box):
    augmentation = random_resized_crop(8, stored, scale=(1.0, 1.0))
    assert np.asarray(augmentation.draw(KEY, 3)).tolist() == [box] * 3
    square = random_resized_crop(8, 12, scale=(9.0, 9.0))
    assert np.asarray(square.draw(KEY, 1)).tolist() == [[0, 0, 12, 12]]


def test_composition_is_one_after_the_other():
    x = images(4)
    both = compose(random_crop(3), horizontal_flip())
    corners, flipped = both.draw(KEY, 4)
    seen = horizontal_flip().apply(random_crop(3).apply(jnp.asarray(x), corners), flipped)
    assert np.array_equal(both.apply(jnp.asarray(x), (corners, flipped)), seen)
    assert both.name == "crop3-flip" and crop_flip_rotation().name == "crop4-flip-rotation10"
    nothing = compose()
    assert np.array_equal(nothing.apply(jnp.asarray(x), nothing.draw(KEY, 4)), x)


@pytest.mark.parametrize("x64", [False, True])
def test_normalised_by_channel(x64):
    x, task = images(2, 5, 6), np.zeros(2, np.int32)
    with jax.enable_x64(x64):
        transform = normalised(IMAGENET_MEAN, IMAGENET_STD)
        seen = jax.jit(transform.apply)((), jnp.asarray(x), jnp.asarray(task))
        dtype = np.float64 if x64 else np.float32
        mean, std = np.asarray(IMAGENET_MEAN, dtype), np.asarray(IMAGENET_STD, dtype)
        assert seen.dtype == dtype
        assert np.array_equal(seen, (x.astype(dtype) / dtype(255) - mean) / std)


def test_normalised_centre():
    task, plain = jnp.zeros(2, jnp.int32), normalised((0.0,), (1.0,))
    for size in (5, 6, 9):
        x = jnp.asarray(images(2, size, 7, 1))
        seen = normalised((0.0,), (1.0,), crop=5).apply((), x, task)
        rows = {5: 0, 6: 0, 9: 2}[size]
        wanted = plain.apply((), x[:, rows : rows + 5, 1:6], task)
        assert np.array_equal(seen, wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_crop(0), "pad is 0"),
        (lambda: brightness(1.5), "change is 1.5"),
        (lambda: brightness(float("nan")), "change is nan"),
        (lambda: rotation(-1.0), "degrees is -1.0"),
        (lambda: rotation(float("nan")), "degrees is nan"),
        (lambda: random_resized_crop(0, 9), "size is 0"),
        (lambda: random_resized_crop(8, 9, scale=(0.5, 0.1)), r"scale is \(0.5, 0.1\)"),
        (lambda: random_resized_crop(8, 9, ratio=(0.0, 1.0)), "ratio is"),
        (lambda: normalised((0.5,), (0.5, 0.5)), "each channel needs one"),
        (lambda: normalised((0.5,), (0.0,)), "above 0"),
        (lambda: normalised((0.5,), (1.0,), crop=0), "crop is 0"),
        (
            lambda: normalised((0.5,), (1.0,)).apply((), jnp.asarray(images(2)), jnp.zeros(2, int)),
            r"shape \[2, 32, 32, 3\]",
        ),
        (
            lambda: random_resized_crop(8, 9).apply(jnp.asarray(images(2)), np.zeros((2, 4))),
            "made for images of 9 x 9 pixels",
        ),
    ],
)
def test_wrong_options_get_a_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
