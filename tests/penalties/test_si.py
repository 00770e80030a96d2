"""SI: what a path that raised the loss does to importance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.errors import UserError


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def after(paths, moves, damping=0.1, **options):
    """Importance after tasks with such paths [T, P], in which theta moved so far [T, P]."""
    penalty = cljax.penalties.SI(1.0, damping=damping, **options)
    theta = {"w": jnp.zeros(paths.shape[1])}
    state = penalty.init(theta)
    for path, move in zip(paths, moves, strict=True):
        # One step of the whole move, with the gradient that makes that path.
        grads = {"w": jnp.asarray(-path / np.where(move == 0, 1.0, move))}
        step = {"w": jnp.asarray(move)}
        state = penalty.observe(state, theta, grads, step)
        theta = {"w": theta["w"] + step["w"]}
        state = penalty.consolidate(state, theta, None, None, None)  # type: ignore
    return np.asarray(state.importance["w"])


CASES = {
    "a little taken away": ([[2.0], [-0.1]], [[0.5], [0.5]]),
    "more than there is": ([[0.2], [-3.0]], [[0.5], [0.5]]),
    "first lost, then gained": ([[-1.0], [0.5]], [[0.3], [-0.2]]),
    "in the third of four tasks": ([[1.0], [0.4], [-0.9], [0.1]], [[1.0], [-0.5], [0.7], [0.1]]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_total_is_what_is_cut_at_zero(case):
    paths, moves = (np.array(a) for a in CASES[case])
    total = np.zeros(1)
    for path, move in zip(paths, moves, strict=True):
        total = np.maximum(total + path / (move**2 + 0.1), 0)
    np.testing.assert_allclose(after(paths, moves), total, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_or_the_term_of_each_task(case):
    paths, moves = (np.array(a) for a in CASES[case])
    terms = np.maximum(paths / (moves**2 + 0.1), 0)
    found = after(paths, moves, importance="clip-each")
    np.testing.assert_allclose(found, terms.sum(axis=0), rtol=1e-12)


def test_of_a_single_task_both_are_one():
    rng = np.random.default_rng(0)
    paths, moves = rng.normal(size=(2, 1, 30))
    ours = [after(paths, moves, importance=kind) for kind in ("clip-total", "clip-each")]
    np.testing.assert_array_equal(*ours)


def test_importance_is_never_negative_and_large_paths_hold():
    rng = np.random.default_rng(1)
    paths, moves = rng.normal(size=(2, 5, 200))
    found = after(paths, moves)
    assert (found >= 0).all() and (found == 0).any() and (found > 0).any()


def test_an_unknown_importance_is_refused():
    with pytest.raises(UserError, match="clip-total"):
        cljax.penalties.SI(importance="clip")  # type: ignore
