"""Which lanes of a sweep share a program, and that each keeps its own values in it."""

from __future__ import annotations

import functools
import json

import incremental_support
import jax
import numpy as np
import optax
import pytest
import support

import cljax
from cljax import sweep


def test_lanes_share_a_program_only_where_all_that_differs_is_in_it():
    """A policy's rate has the name of its method's; None and a number are two structures."""
    stream, policies = incremental_support.stream(), (0.01, 5.0)
    settings = [
        {"exemplars": cljax.memory.Mnemonics(lr=lr, inner_steps=2, outer_epochs=1)}
        for lr in policies
    ]
    method = cljax.ICaRL(per_class=4, capacity=None)
    options = {"seeds": 1, "net": "mlp:5", "batch_size": 8, "on": "test"}
    plan = sweep.plan(method, stream, settings, **options)
    assert plan.groups == ((0, 1),)  # the rate is a leaf of the policy, and so of the method
    leaves = [[float(leaf) for leaf in jax.tree.leaves(made.method)] for made in plan.prepared]
    assert leaves[0] != leaves[1]
    rates = sweep.plan(
        cljax.LaMAML(capacity=6, replay_size=2), support.stream(), [{"lr": None}, {"lr": 0.1}],
        seeds=1, net="mlp:5", batch_size=4, on="test",
    )  # fmt: skip
    assert rates.groups == ((0,), (1,))


def test_a_swept_policy_gives_the_result_of_a_run_of_its_own(tmp_path):
    stream = incremental_support.stream()
    policies = [
        cljax.memory.Mnemonics(lr=lr, inner_steps=2, outer_epochs=1, rounding="none")
        for lr in (0.01, 5.0)
    ]
    method = cljax.ICaRL(per_class=4, capacity=None)
    options = {"net": "mlp:5", "batch_size": 8, "entries": "diagonal-last"}
    settings = [{"exemplars": policy} for policy in policies]
    plan = sweep.plan(method, stream, settings, seeds=[0], on="test", **options)
    swept = sweep.run(plan, tmp_path)
    found = []
    for lane in plan.lanes:
        of_lane = json.loads((swept.path / "lanes" / lane.name / "results.json").read_text())
        found.append(of_lane["evaluations"])
    alone = cljax.run(method.replace(exemplars=policies[1]), stream, seeds=[0], **options)
    assert found[1] == alone.results["evaluations"] != found[0]


def _wide(num_classes):
    return cljax.nets.mlp(6)(num_classes)


OBJECTS = {
    "networks": [{"net": net} for net in (cljax.nets.mlp(4), functools.partial(_wide), _wide)],
    "optimisers": [{"optimizer": made} for made in (optax.sgd(0.1), optax.adam(0.1))],
    "a list of one": [{"net": cljax.nets.mlp(4)}, {"net": "mlp:4,4"}],
    "float32": [{"lr": np.float32(0.1)}, {"lr": np.float32(0.3)}],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_setting_has_the_folder_of_what_the_sweep_writes_of_it(kind):
    plan = sweep.plan(
        cljax.Finetune(), support.stream(), OBJECTS[kind], seeds=1, net="mlp:5", batch_size=4,
        on="test",
    )  # fmt: skip
    written = json.loads(json.dumps(plan.config["lanes"]))
    assert [sweep.Lane(**entry).name for entry in written] == [lane.name for lane in plan.lanes]
    assert len({lane.name for lane in plan.lanes}) == len(plan.lanes)


def test_tuples_of_one_have_the_folder_of_lists_of_one():
    assert sweep.label({"widths": (5,)}) == sweep.label({"widths": [5]})


def test_a_sweep_over_networks_as_objects_is_merged_and_compared(tmp_path):
    settings = [{"net": cljax.nets.mlp(4)}, {"net": _wide}]
    plan = sweep.plan(
        cljax.Finetune(lr=0.1), support.stream(), settings, seeds=1, batch_size=4
    )  # fmt: skip
    done = sweep.run(plan, tmp_path / "swept")
    assert sweep.merge(done.path).best().setting == done.best().setting
    assert {sweep.label(s.setting) for s in done.settings} == {sweep.label(s) for s in settings}
    source = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=100)
    of = [sweep.plan("finetune", source, s, seeds=1).config["base"] for s in ([{}], settings)]
    assert of[0] is not None and of[1] is None  # a recipe could not name the networks


def test_a_comparison_runs_the_object_that_it_chose(tmp_path):
    grid = {"penalty": [cljax.penalties.EWC(1.0), cljax.penalties.LwF(1.0)]}
    study = cljax.compare(
        {"a": (cljax.Finetune(lr=0.1), grid), "b": (cljax.Finetune(), {"lr": [0.1, 0.01]})},
        support.stream(), net="mlp:4", batch_size=4, seeds=2, out=tmp_path,
        tune=cljax.Tune(seeds=(100,), tasks=2),
    )  # fmt: skip
    chosen = study.settings["a"].setting["penalty"]["name"]
    assert study.runs["a"].config["method"]["options"]["penalty"]["name"] == chosen
