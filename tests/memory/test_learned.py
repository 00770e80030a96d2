"""Pixels that are learned: units, range, rounding, and how a phase begins and ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mnemonics_support import CLASSES, PER_CLASS, SIZE, problem

from cljax.memory import exemplars as store
from cljax.memory import learned as pixels
from cljax.types import Batch, Clock, Spec


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_a_step_in_grey_levels_is_a_step_in_normalised_pixels():
    _, spec, _, kept, *_ = problem()
    kept = kept._replace(velocity=jnp.ones_like(kept.pixels))
    shown = lambda k: spec.show(k.pixels, None)
    grads = jnp.asarray(np.random.default_rng(1).normal(size=kept.pixels.shape))
    active = jnp.arange(6) % 2 == 0
    after = pixels.moved(kept, grads, active, spec, lr=0.1, momentum=0.9)
    # The gradient in n = e / 8 - 0.1 is 8 times that in e; the velocity is kept in e.
    expected = shown(kept) - 0.1 * (0.9 / 8 + 8 * grads)
    np.testing.assert_allclose(shown(after)[::2], expected[::2], rtol=1e-12)
    np.testing.assert_array_equal(after.pixels[1::2], kept.pixels[1::2])
    np.testing.assert_array_equal(after.velocity[1::2], kept.velocity[1::2])


def images(values):
    """Stored bytes, and a state around them."""
    example = jax.ShapeDtypeStruct((SIZE,), jnp.uint8)
    show = lambda x, task, key=None: x.astype(jnp.float64) / 255
    spec = Spec(example, np.ones((1, CLASSES), bool), 4, stored=example, show=show)
    budget = store.budget_of(spec.class_mask, per_class=PER_CLASS)
    kept = pixels.empty(spec, budget, rounding="nearest")
    return spec, kept._replace(x=jnp.asarray(values, jnp.uint8), mask=jnp.ones(6, bool))


def at(step: int, last: bool = False) -> Batch:
    clock = Clock(*(jnp.int32(0),) * 2, jnp.int32(step), jnp.bool_(True), jnp.bool_(last))
    return Batch(*(jnp.zeros(1),) * 5, clock)


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_what_is_stored_stays_in_range(rounding):
    spec, kept = images(np.full((6, SIZE), 250))
    kept = pixels.begin(kept, at(0))
    up = jnp.full(kept.pixels.shape, -1.0).at[0].set(1.0)
    after = pixels.moved(kept, up, jnp.ones(6, bool), spec, lr=1.0, momentum=0.0)
    assert float(after.pixels.max()) == 255.0 and float(after.pixels[0].min()) == 0.0
    moved = after._replace(pixels=jnp.full_like(after.pixels, 99.7))
    unfinished = pixels.finish(moved, at(3), jnp.ones(6, bool), rounding)
    np.testing.assert_array_equal(unfinished.x, 250)
    done = pixels.finish(moved, at(3, last=True), jnp.arange(6) < 2, rounding)
    assert done.x.dtype == jnp.uint8
    np.testing.assert_array_equal(done.x[:2], 100 if rounding == "nearest" else 99)
    np.testing.assert_array_equal(done.x[2:], 250)


def test_untouched_exemplars_survive_both_ways_of_rounding():
    spec, kept = images(np.arange(24).reshape(6, SIZE) * 10)
    for rounding in ("nearest", "truncate"):
        begun = pixels.begin(kept, at(0))
        still = pixels.moved(
            begun, jnp.zeros_like(begun.pixels), jnp.ones(6, bool), spec, lr=1.0, momentum=0.9
        )
        done = pixels.finish(still, at(0, last=True), jnp.ones(6, bool), rounding)
        np.testing.assert_array_equal(done.x, kept.x)


def test_a_phase_begins_with_what_is_stored_and_at_rest():
    _, kept = images(np.arange(24).reshape(6, SIZE))
    kept = kept._replace(velocity=jnp.ones_like(kept.pixels))
    begun = pixels.begin(kept, at(0))
    np.testing.assert_array_equal(begun.pixels, kept.x)
    np.testing.assert_array_equal(begun.velocity, 0.0)
    for ours, theirs in zip(*map(jax.tree.leaves, (pixels.begin(kept, at(1)), kept)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
