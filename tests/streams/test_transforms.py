from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cljax.streams.transforms import as_is, cast, gather_pixels, pixels, rotation_table

ODD = np.random.default_rng(7).integers(1, 256, (28, 28), dtype=np.uint8)  # no black: fill shows


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    padded = np.append(image.reshape(-1), np.uint8(0))
    return padded[rotation_table(degrees)].reshape(28, 28)


@pytest.mark.parametrize("degrees", [*np.linspace(0.01, 359.9, 400), 0.0, 45.0, 90.0, 180.0, 270.0])
def test_a_turned_image_is_pillows(degrees):
    assert np.array_equal(turned(ODD, degrees), np.asarray(Image.fromarray(ODD).rotate(degrees)))


@settings(max_examples=300)
@given(st.floats(-720, 720, allow_subnormal=False))
def test_any_angle_is_pillows(degrees):
    assert np.array_equal(turned(ODD, degrees), np.asarray(Image.fromarray(ODD).rotate(degrees)))


def tables() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rotation_table(30.0), rng.permutation(784), np.full(784, 784)])


@pytest.mark.parametrize("task", [np.full(300, 1), np.arange(300) % 3], ids=["one", "several"])
def test_many_examples_at_once_are_as_few(task):
    x = np.random.default_rng(1).integers(0, 256, (300, 784), dtype=np.uint8)
    transform, task = gather_pixels(tables()), jnp.asarray(task, jnp.int32)
    apply = jax.jit(transform.apply)
    at_once = apply(transform.tables, x, task)
    parts = [apply(transform.tables, x[i : i + 100], task[i : i + 100]) for i in (0, 100, 200)]
    assert np.array_equal(at_once, np.concatenate(parts))


def test_tables_may_be_numpys_as_a_stream_holds_them():
    x = np.random.default_rng(1).integers(0, 256, (300, 784), dtype=np.uint8)
    task = np.ones(300, np.int32)
    transform = gather_pixels(tables())
    by_numpy, by_jax = (transform.apply(given, x, task)
                        for given in (transform.tables, jnp.asarray(transform.tables)))  # fmt: skip
    np.testing.assert_array_equal(by_numpy, by_jax)


@pytest.mark.parametrize("x64", [False, True])
def test_each_example_goes_through_its_own_table(x64):
    x = np.random.default_rng(1).integers(0, 256, (5, 784), dtype=np.uint8)
    task = np.array([1, 0, 2, 1, 0], np.int32)
    with jax.enable_x64(x64):
        transform = gather_pixels(tables())
        held = jax.tree.map(jnp.asarray, transform.tables)
        seen = jax.jit(transform.apply)(held, jnp.asarray(x), jnp.asarray(task))
        eager = transform.apply(held, jnp.asarray(x), jnp.asarray(task))
    dtype = np.float64 if x64 else np.float32
    padded = np.pad(x, ((0, 0), (0, 1)))
    wanted = np.stack([padded[i, tables()[t]] for i, t in enumerate(task)]).astype(dtype)
    assert seen.dtype == dtype
    assert np.array_equal(seen, wanted / dtype(255))  # to the bit, so as NumPy divides
    assert np.array_equal(seen, eager)


def test_images_are_flattened_for_the_table():
    x = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8))
    transform, task = gather_pixels(tables()), jnp.zeros(2, jnp.int32)
    held = jnp.asarray(transform.tables)
    flat = transform.apply(held, x.reshape(2, 784), task)
    assert np.array_equal(transform.apply(held, x, task), flat)


def test_pixels_keep_their_shape_and_divide_exactly():
    x = jnp.arange(256, dtype=jnp.uint8).reshape(4, 8, 8)
    seen = jax.jit(pixels.apply)((), x, jnp.zeros(4, jnp.int32))
    assert seen.shape == x.shape
    assert np.array_equal(seen, np.asarray(x).astype(np.float32) / np.float32(255))


def test_values_of_other_types_stay_as_they_are():
    task = jnp.zeros(3, jnp.int32)
    half = jnp.asarray([0.5, -2.0, 300.0], jnp.float16)
    assert cast.apply((), half, task).dtype == jnp.float32
    assert np.array_equal(cast.apply((), half, task), half)
    words = jnp.asarray([3, 500, -1], jnp.int32)
    assert as_is.apply((), words, task).dtype == jnp.int32
