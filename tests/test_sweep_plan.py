"""Plans of sweeps: settings, the folders they name, lanes, groups, and what they cost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import support
from hypothesis import given
from sweep_support import RATES, SMALL, planned, valid

import cljax
from cljax import sweep
from cljax.errors import UserError
from cljax.method import Cost
from cljax.runner.config import canonical
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare


def test_a_grid_is_every_combination():
    points = sweep.grid(lr=[0.1, 0.2], capacity=(3, 4, 5))
    assert len(points) == 6 and points[0] == {"lr": 0.1, "capacity": 3}
    assert {(p["lr"], p["capacity"]) for p in points} == set(
        itertools.product((0.1, 0.2), (3, 4, 5))
    )
    assert sweep.grid(lr=np.linspace(0.1, 0.2, 3))[1]["lr"] == pytest.approx(0.15)


@pytest.mark.parametrize("values", [[], (), "0.1", 0.1, range(0), np.zeros(0)], ids=repr)
def test_a_grid_without_a_list_of_values_is_refused(values):
    with pytest.raises(UserError, match="lr is .* needs a list of values"):
        sweep.grid(lr=values)


def test_a_seed_in_each_setting_makes_the_lanes():
    plan = planned(sweep.grid(lr=[0.1, 0.3], seed=range(5, 8)), seeds=9)
    assert [lane.seed for lane in plan.lanes] == [5, 6, 7] * 2
    assert {tuple(lane.setting) for lane in plan.lanes} == {("lr",)}


SETTINGS = st.dictionaries(
    st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True),
    st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans()),
    max_size=12,
)


@given(SETTINGS)
def test_every_setting_names_a_single_folder(setting):
    name = sweep.label(setting)
    assert 0 < len(name) <= 120 and name.isascii() and name.isprintable()
    assert "/" not in name and Path(name).name == name and name not in (".", "..")


@given(SETTINGS, st.randoms())
def test_the_order_of_a_setting_does_not_change_its_folder(setting, random):
    shuffled = list(setting.items())
    random.shuffle(shuffled)
    assert sweep.label(dict(shuffled)) == sweep.label(setting)


@given(
    st.lists(st.floats(1e-4, 1e4).map(lambda x: float(f"{x:.3g}")), min_size=2, unique=True),
    st.text(max_size=200),
)
def test_different_values_have_different_folders(values, net):
    names = {sweep.label({"lr": value, "net": net}) for value in values}
    assert len(names) == len(values)


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        (sweep.grid(alpha_init=[0.1, 0.2, 0.3], alpha_lr=[0.1, 0.2]), 1),
        (sweep.grid(alpha_init=[0.1, 0.2], capacity=[5, 6, 7]), 3),
        (sweep.grid(alpha_init=[0.1, 0.2], batch_size=[4, 6]), 2),
        (sweep.grid(net=["mlp:5", "mlp:6"], epochs=[1, 2]), 4),
        (sweep.grid(clip_norm=[None, 2.0, 3.0], algebra=["general", "low-rank"]), 6),
    ],
    ids=lambda value: ",".join(value[0]) if isinstance(value, list) else str(value),
)
def test_real_options_share_a_program_and_others_make_groups(settings, groups):
    own = {name: value for name, value in SMALL.items() if name not in settings[0]}
    plan = sweep.plan("lamaml", support.stream(), settings, seeds=2, **own)
    assert len(plan.groups) == groups
    assert sorted(i for group in plan.groups for i in group) == list(range(len(plan.lanes)))
    real = ("alpha_init", "alpha_lr")
    for group in plan.groups:
        own = {
            canonical({k: v for k, v in plan.lanes[i].setting.items() if k not in real})
            for i in group
        }
        assert len(own) == 1


def test_a_setting_has_the_last_word():
    plan = planned(sweep.grid(batch_size=[4, 6], net=["mlp:5", "mlp:6"]), epochs=2)
    found = [(made.config["batch_size"], made.config["epochs"]) for made in plan.prepared]
    assert found == [(4, 2)] * 4 + [(6, 2)] * 4 and len(plan.groups) == 4


def test_a_plan_tells_lanes_programs_bytes_and_time():
    plan = planned(sweep.grid(lr=[0.1, 0.3], batch_size=[4, 6]), batch_size=None)
    text = str(plan)
    assert "8 lanes (4 settings, 2 seeds), 2 compiled programs, " in text
    assert "MB of state a lane, " in text and "at a time" in text and "estimated " in text
    weights = 6 * 5 + 5 + 5 * 4 + 4  # of a network with one layer of 5
    assert plan.state_bytes == 4 * weights and plan.flops > 0
    assert "1 compiled program, " in str(planned(RATES))


def test_work_that_is_not_stated_gives_no_estimate():
    class Untold(cljax.Finetune):
        """Fine-tuning that does not state its work."""

        def cost(self, problem):
            return Cost()

    assert "no estimate" in str(planned(RATES, Untold))


def test_tuning_seeds_are_apart_from_those_of_runs():
    seeds = {lane.seed for lane in planned(RATES, seeds=3).lanes}
    assert seeds == {1000, 1001, 1002} and sweep.FIRST_SEED == 1000
    reported = prepare(cljax.Finetune(), support.stream(), RunOptions(**SMALL)).config["seeds"]
    assert reported == [0, 1, 2, 3, 4] and not seeds & set(reported)
    assert {lane.seed for lane in planned(RATES, on="test").lanes} == {0, 1}
    assert {lane.seed for lane in planned(RATES, seeds=[7, 9]).lanes} == {7, 9}


def test_lanes_see_neither_tests_nor_their_training_images():
    source = support.stream(valid=valid)
    digits = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=60).build()
    for stream in (source, digits):
        plan = planned(RATES, stream=stream)
        for lane, made in zip(plan.lanes, plan.prepared, strict=True):
            shown, own = made.stream, stream.subsets(lane.seed)
            assert shown.test_x is stream.train_x and shown.test_y is stream.train_y
            for task, rows in enumerate(shown.test_index):
                assert len(rows) and not set(rows) & set(own[task])
                np.testing.assert_array_equal(rows, stream.valid(lane.seed)[task])
                np.testing.assert_array_equal(shown.subsets(lane.seed)[task], own[task])


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([{"rate": 0.1}], {}, "'rate' is not known"),
        ([{"lr": math.nan}], {}, "lr is nan"),
        ([{"lr": 0.1}, {"lr": 0.1}], {}, "lr=0.1/seed-1000 is there twice"),
        ([{"lr": 0.1, "seed": -1}], {"on": "test"}, "seed -1 must be a whole number"),
        ([{"batch_size": 0}], {"batch_size": None}, "batch_size is 0"),
        (RATES, {"seeds": 0}, "seeds is 0"),
        (RATES, {"lanes_at_a_time": 0}, "lanes_at_a_time is 0"),
        (RATES, {"metric": "R"}, "metric 'R' is not known"),
        (RATES, {"metric": "forgetting"}, "forgetting .*entries"),  # before anything is trained
        (RATES, {"on": "tests"}, "on 'tests'"),
        (RATES, {"what": "onlin"}, "did you mean online"),
        (RATES, {"net": "mlp:x"}, "whole numbers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_plan_that_cannot_be_is_refused(settings, options, message):
    with pytest.raises(UserError, match=message):
        planned(settings, **options)


def test_tuning_needs_validation_images():
    empty = support.stream(valid=lambda seed: tuple(np.zeros(0, np.int32) for _ in range(3)))
    with pytest.raises(UserError, match="no validation images for task 0"):
        planned(RATES, stream=empty)
    assert planned(RATES, stream=empty, on="test").lanes
