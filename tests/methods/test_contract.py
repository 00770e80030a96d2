"""What every method keeps to, one table for all of them.

Each method is compiled twice: as one program over lanes (seeds, a traced hyper-parameter, rows
outside the mask), and as a single update that a Python loop calls.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import support
from contract_support import (
    AT_END,
    CASES,
    CLOSED_FORM,
    DRAWS_NOTHING,
    batches_for,
    bind,
    make,
    scanned,
)

from cljax.method import Method
from cljax.methods import CHECKED, METHODS
from cljax.options import options_of
from cljax.types import Learner

EVERY = pytest.mark.parametrize("name", sorted(METHODS))
EVERY_LEARNER = pytest.mark.parametrize("name", sorted(set(METHODS) - AT_END))
EVERY_STEP = pytest.mark.parametrize("name", sorted(set(METHODS) - AT_END - CLOSED_FORM))
KEYS = 0, 7, 0, 0, 0
OTHER_SEED, OTHER_VALUE, MASKED, POISONED = 1, 2, 3, 4  # what differs from lane 0


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Tried(NamedTuple):
    """What one method did; the loops' final states and losses in the order of the seeds."""

    initial: Any  # the first state's shapes and types
    lanes: Any  # (state, losses), leaves [lane, ...]
    loops: list[Any]
    learned: np.ndarray  # losses of 60 updates on one easy task
    num_traces: int  # of the update, in all loops


@functools.cache
def tried(name: str) -> Tried:
    """Three tasks, so that a value compiled in from the first one would show."""
    method, traced = make(name), CASES[name][1]
    learner, batches = bind(method), batches_for(name, 6)
    masked = batches._replace(mask=batches.mask.at[:, 3].set(False))
    poisoned = masked._replace(x=batches.x.at[:, 3].set(50.0), y=batches.y.at[:, 3].set(0))
    data = jax.tree.map(lambda *a: np.stack(a), batches, batches, batches, masked, poisoned)
    value = 1.0 if traced is None else method.options[traced]
    values = np.array([value, value, value / 4, value, value])
    keys = jax.vmap(jax.random.key)(np.array(KEYS))

    @jax.jit
    @jax.vmap
    def lanes(key, value, batches):
        learner = bind(make(name, **({} if traced is None else {traced: value})))
        return learner.init(key), scanned(learner, batches, key)

    num_traces = 0

    @jax.jit
    def step(state, batch, key):
        nonlocal num_traces
        num_traces += 1
        draws = learner.draw(state, batch, jax.random.fold_in(key, batch.clock.step))
        state, info = learner.update(state, batch, draws)
        return state, info.loss

    def loop(lane, batches):
        state, key = support.at(starts, lane), keys[lane]
        losses = []
        for i in range(batches.y.shape[0]):
            state, loss = step(state, support.at(batches, i), key)
            losses.append(loss)
        return state, np.stack(losses)

    starts, ends = lanes(keys, values, data)
    batches = jax.tree.map(np.asarray, batches)
    loops = [loop(lane, batches) for lane in (0, OTHER_SEED)]
    learned = loop(0, easy(batches_for(name, 60, tasks=1)))[1]
    return Tried(jax.eval_shape(learner.init, keys[0]), ends, loops, learned, num_traces)


def easy(batches):
    """The same labels with inputs around centres that lie apart."""
    batches, rng = jax.tree.map(np.asarray, batches), np.random.default_rng(1)
    centres = 2 * rng.normal(size=(support.NUM_CLASSES, support.NUM_INPUTS))
    return batches._replace(x=centres[batches.y % support.NUM_CLASSES] + 0.1 * batches.x)


def test_every_method_has_a_row():
    assert set(CASES) == set(METHODS) == set(CHECKED)


@EVERY
def test_protocol(name):
    method = make(name)
    assert isinstance(method, Method) and method.name == name
    learner = bind(method)
    assert isinstance(learner, Learner) and "logits" in learner.predictors
    told = sys.modules[type(method).__module__].__doc__ or ""
    assert told.count("\n") > 5 and all(option.help for option in options_of(method))


@EVERY
def test_an_update_changes_no_structure_shape_or_type(name):
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree)
    assert kinds(tried(name).initial) == kinds(tried(name).loops[0][0])


@EVERY
def test_one_compilation_for_many_calls(name):
    assert tried(name).num_traces == 1


@EVERY
def test_jit_scan_and_vmap_equal_the_plain_loop_over_three_tasks(name):
    support.assert_close(support.at(tried(name).lanes, 0), tried(name).loops[0], 1e-12)


@EVERY
def test_vmap_over_seeds_equals_single_seeds(name):
    lanes = tried(name).lanes
    support.assert_close(support.at(lanes, OTHER_SEED), tried(name).loops[1], 1e-12)
    assert np.any(lanes[1][OTHER_SEED] != lanes[1][0]) != (name in DRAWS_NOTHING)


@EVERY_STEP
def test_a_traced_hyper_parameter_is_not_compiled_in(name):
    """That its value does what the number does, lane 0 shows."""
    losses = tried(name).lanes[1]
    assert np.any(losses[OTHER_VALUE] != losses[0])


@EVERY
def test_examples_outside_the_mask_do_not_matter(name):
    lanes = tried(name).lanes
    support.assert_close(support.at(lanes, MASKED), support.at(lanes, POISONED), 1e-12)
    assert np.any(lanes[1][MASKED] != lanes[1][0])


@EVERY_LEARNER
def test_learning_reduces_the_loss(name):
    losses = tried(name).learned
    assert losses[-5:].mean() < 0.5 * losses[:2].mean()
