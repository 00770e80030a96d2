"""Which lanes of a sweep share a program, and that each keeps its own values in it."""

from __future__ import annotations

import json

import incremental_support
import jax
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
    for lane, policy in zip(plan.lanes, policies, strict=True):
        alone = cljax.run(method.replace(exemplars=policy), stream, seeds=[0], **options)
        of_lane = json.loads((swept.path / "lanes" / lane.name / "results.json").read_text())
        assert of_lane["evaluations"] == alone.results["evaluations"]
        found.append(of_lane["evaluations"])
    assert found[0] != found[1]
