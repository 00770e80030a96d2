"""The optimiser where a new task begins: kept or reset, as its option says."""

from __future__ import annotations

import numpy as np
import optax
import pytest

import cljax
from cljax.errors import UserError
from cljax.methods import METHODS
from cljax.runner.config import plain

DIGITS = cljax.streams.SplitMNIST(sample=True, samples_per_task=20).build()
# Examples of a task are two updates; an optimiser that counts its steps.
COUNTS = optax.chain(optax.sgd(0.01), optax.scale_by_schedule(lambda count: 1.0))


def steps(method):
    """How many steps the optimiser has counted when the last of five tasks ends."""
    run = cljax.run(
        method, DIGITS, seeds=1, net="mlp:4", batch_size=10, lanes="sequential", progress=False
    )
    return int(run.states[0].opt_state[1].count)


@pytest.mark.parametrize(
    ("method", "default"),
    [(cljax.Finetune, "keep"), (cljax.ICaRL, "reset"),
     *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
         (cljax.ER, "keep"), (cljax.Replayed, "reset"), (cljax.FixedRep, "reset")))],
)  # fmt: skip
def test_an_optimiser_is_kept_or_reset_at_borders_and_by_default_as_it_was(method, default):
    assert method().optimizer_at_border == default
    kept, reset = (
        steps(method(optimizer=COUNTS, optimizer_at_border=how)) for how in ("keep", "reset")
    )
    last = int(np.ceil(len(DIGITS.subsets(0)[-1]) / 10))
    assert last <= reset < kept


def test_an_option_that_came_later_is_recorded_where_it_is_no_default():
    assert "optimizer_at_border" not in plain(cljax.ER())["options"]
    assert plain(cljax.ER(optimizer_at_border="reset"))["options"]["optimizer_at_border"] == "reset"


def test_a_reset_at_borders_asks_for_them():
    stream = cljax.streams.task_free(DIGITS)
    with pytest.raises(UserError, match="finetune needs task boundaries"):
        method = cljax.Finetune(optimizer_at_border="reset")
        cljax.run(method, stream, seeds=1, net="mlp:4", progress=False)


def test_every_method_with_an_optimiser_of_its_own_says_what_happens_at_borders():
    for name, method in METHODS.items():
        if "optimizer" in method.options:
            assert getattr(method, "optimizer_at_border", None) in ("keep", "reset"), name
