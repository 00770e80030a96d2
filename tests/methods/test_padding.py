"""Rows outside the mask are nowhere: padding, empty replay slots, on networks with BatchNorm."""

from __future__ import annotations

import contract_support
import jax
import numpy as np
import padding_support
import pytest
import support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from padding_support import CASES, programs

# The longest programs among those that say little new, and the steps of others under other names,
# whose masks the contract looks at.
SLOW = {"lamaml last, second order", "gem low-rank", "mer algorithm 7", "itaml released",
        "sgd", "online", "iid", "joint", "sync-lamaml", "online-ewc", "fomaml"}  # fmt: skip
EVERY = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES]
)
MASKS = [np.array(m, bool) for m in ((1, 1, 0), (1, 0, 1), (0, 1, 1))]
SOME = settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield
    programs.cache_clear()


@EVERY
@SOME
@given(
    mask=st.lists(st.booleans(), min_size=3, max_size=3),
    kind=st.sampled_from(["others", "huge", "nan"]),
    seed=st.integers(0, 2**31),
)
def test_what_rows_outside_the_mask_hold_moves_no_bit(case, mask, kind, seed):
    """Of parameters, statistics, optimiser, memory: all that a prediction is made from."""
    at, key = programs(case), jax.random.key(seed)
    clean = padding_support.filled(at.batch, np.array(mask), seed, "zeros")
    other = padding_support.filled(at.batch, np.array(mask), seed, kind)
    draws = at.draw(at.state, clean, key)
    expected, info = at.update(at.state, clean, draws)
    found, seen = at.update(at.state, other, padding_support.poisoned(draws))
    padding_support.same_bits((found, seen.loss), (expected, info.loss))


@EVERY
@SOME
@given(mask=st.sampled_from(MASKS), seed=st.integers(0, 2**31))
def test_a_batch_with_padding_gives_the_update_of_its_valid_rows_alone(case, mask, seed):
    """The shorter batch has the same draws, and inner steps on as many rows."""
    at = programs(case)
    padded = padding_support.filled(at.batch, mask, seed, "others")
    draws = at.draw(at.state, padded, jax.random.key(seed))
    expected, _ = at.short(at.state, *padding_support.without_padding(padded, draws, mask))
    found, _ = at.update(at.state, padded, draws)
    support.assert_close(found, expected, 1e-12)


@EVERY
def test_a_batch_of_padding_alone_is_no_step(case):
    at = programs(case)
    empty = padding_support.filled(at.batch, np.zeros(3, bool), 0, "others")
    after, info = at.update(at.state, empty, at.draw(at.state, empty, jax.random.key(0)))
    assert info.loss == 0
    if "alpha" in at.state._fields and "task" in at.state._fields:
        after = after._replace(task=at.state.task)  # the clock's, with or without a step
    padding_support.same_bits(after, at.state)


@EVERY
def test_a_batch_with_valid_rows_is_a_step(case):
    """What the tests above compare is not an update that does nothing."""
    at = programs(case)
    two = padding_support.filled(at.batch, np.array([0, 1, 1], bool), 0, "others")
    after, _ = at.update(at.state, two, at.draw(at.state, two, jax.random.key(0)))
    moved = lambda a, b: max(
        float(np.abs(x - y).max())
        for x, y in zip(*(jax.tree.leaves(jax.device_get(t)) for t in (a, b)), strict=True)
    )
    at_end = case in contract_support.AT_END  # what such a step moves is the memory
    if not hasattr(after, "params"):  # a closed form: statistics alone
        assert moved(after, at.state) > 1e-6
        return
    part = "memory" if at_end else "params"
    assert moved(getattr(after, part), getattr(at.state, part)) > 1e-6
    frozen = case == "fixed-rep" or at_end  # the former from the second task on
    if jax.tree.leaves(after.model_state):
        assert (moved(after.model_state, at.state.model_state) > 1e-6) != frozen


@pytest.mark.parametrize("case", ["lamaml", "la-er", "er", "gem", "agem", "mer", "icarl-ti"])
def test_empty_slots_of_a_memory_hold_nothing(case):
    at, key = programs(case), jax.random.key(3)
    after = []
    for state in (at.start, padding_support.emptied(at.start)):
        moved, _ = at.update(state, at.batch, at.draw(state, at.batch, key))
        after.append((moved.params, moved.model_state))
    padding_support.same_bits(*after)


FOLLOWING = ["finetune", "er", "gem", "agem", "lamaml", "la-er", "meta-bgd", "icarl-ti"]


@pytest.mark.parametrize("case", FOLLOWING)
def test_running_statistics_follow_what_a_step_learns_from(case):
    """By the formula r = 0.9 r + 0.1 s, pass after pass; the unit look-ahead leaves no trace."""
    at = programs(case)
    draws = at.draw(at.state, at.batch, jax.random.key(4))
    after, _ = at.update(at.state, at.batch, draws)
    mean, var = (np.asarray(at.state.model_state["batch_stats"][k]) for k in ("mean", "var"))
    for rows in padding_support.learned_from(case, at, draws):
        mean, var = (0.9 * mean + 0.1 * rows.mean(0), 0.9 * var + 0.1 * rows.var(0, ddof=1))
    found = after.model_state["batch_stats"]
    support.assert_close((found["mean"], found["var"]), (mean, var), 1e-12)


PHASES = [("ewc", {}), ("mas", {}), ("lwf", {}), ("bic", {}), ("lucir", {"balanced_epochs": 1}),
          ("rep", {}), ("icarl-ti", {}), ("ewc", {"fisher": "mean-gradient"})]  # fmt: skip


@pytest.mark.parametrize(("case", "options"), PHASES, ids=[case for case, _ in PHASES])
def test_rows_outside_the_mask_move_no_bit_in_a_phase(case, options):
    at = programs(case)
    learner = at.learner
    if options:
        method = padding_support.made(case, **options)
        learner = method.bind(*padding_support.problem(method))
    mask, key = np.array([1, 1, 0], bool), jax.random.key(0)
    clean = padding_support.filled(at.batch, mask, 0, "zeros")
    other = padding_support.filled(at.batch, mask, 0, "nan")
    for phase in learner.phases:
        step = jax.jit(lambda batch, phase=phase: phase.update(
            at.state, batch, phase.draw(at.state, batch, key)))  # fmt: skip
        padding_support.same_bits(step(clean), step(other))


@pytest.mark.parametrize(("case", "name"), [("bic", "correction"), ("rep", "pretrain")])
def test_a_batch_of_padding_alone_is_no_step_in_a_phase(case, name):
    """Not even of momentum or decay, which go on after a step."""
    at = programs(case)
    phase = next(phase for phase in at.learner.phases if phase.name == name)
    step = jax.jit(lambda state, batch: phase.update(
        state, batch, phase.draw(state, batch, jax.random.key(0))))  # fmt: skip
    state, _ = step(at.state, at.batch)
    empty = padding_support.filled(at.batch, np.zeros(3, bool), 0, "others")
    padding_support.same_bits(step(state, empty)[0], state)
