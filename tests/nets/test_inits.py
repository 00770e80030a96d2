"""Initialisers against Flax's."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from cljax.nets.inits import KERNELS, variance_scaling


@pytest.mark.parametrize("shape", [(7, 4), (3, 3, 2, 6)])
@pytest.mark.parametrize("arguments", [*KERNELS.values(), (2.0, "fan_out", "normal")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_kernels_have_the_bits_of_flax(arguments, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        key = jax.random.key(5)
        ours = variance_scaling(*arguments)(key, shape, dtype)
        assert ours.dtype == dtype
        theirs = nn.initializers.variance_scaling(*arguments)(key, shape, dtype)
        np.testing.assert_array_equal(ours, theirs)
