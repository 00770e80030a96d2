"""Random keys and what is drawn with them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cljax import keys

KEY = keys.purpose(3, "init")


@pytest.mark.parametrize("shape", [(), (0, 2), (7,), (3, 2, 4), (2, 1, 3, 5)])
@pytest.mark.parametrize("draw", [jax.random.normal, jax.random.uniform, jax.random.bits])
def test_a_flat_draw_has_the_bits_of_the_shaped_one(draw, shape):
    flat = jax.jit(lambda key: keys.flat(draw, key, shape))(KEY)
    assert flat.shape == shape
    np.testing.assert_array_equal(flat, draw(KEY, shape))


def test_a_flat_draw_passes_its_other_arguments_on():
    flat = keys.flat(jax.random.randint, KEY, (2, 3, 4), 5, maxval=9)
    np.testing.assert_array_equal(flat, jax.random.randint(KEY, (2, 3, 4), 5, 9))
