"""A measure that has no meaning for a run is absent, with the reason, wherever it is shown."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import support

import cljax
from cljax import keys, measures, metrics
from cljax.engine.lanes import Divergence
from cljax.engine.learn import History
from cljax.references import protocol, tables
from cljax.report import sections
from cljax.report.folders import ReportFolder
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.runner.results import results_of
from cljax.types import Evaluation

T, S = 3, 2


def stream(num_tasks=T, val=0.0, **options):
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(num_tasks), 8)
    y = 2 * task + np.arange(len(task)) % 2
    data = (rng.normal(size=(len(y), 4)).astype(np.float32), y, task)
    return cljax.streams.from_arrays(
        data, test=data, val=val, dtype="float32", scenario="class", **options
    )


def results(method, source=None, diverged=(None,) * S, **options):
    """A run's config and results, from matrices that every seed has in full, without training."""
    source = stream() if source is None else source
    options = {"net": "mlp:3", "batch_size": 4, "entries": "full", **options}
    made = prepare(method, source, RunOptions(seeds=S, **options))
    tasks = source.num_tasks
    full = np.random.default_rng(1).uniform(size=(S, tasks + 1, tasks))
    names = [entry["name"] for entry in made.config["evaluations"]]
    gone = np.array([step is not None for step in diverged])
    full[gone, 1:] = np.nan
    curve = tuple(((4, row),) for row in full[:, -1])
    model = made.net(source.num_classes)
    learner = made.method.bind(model, source.spec(4))
    history = History(
        (0, 1), (learner.init(keys.purpose(0, "init")),) * S, dict.fromkeys(names, full),
        np.full(tasks, 8), np.zeros((S, 6)), np.ones((S, 6)), np.full(6, 4),
        dict.fromkeys(names, curve), {}, diverged, {}, (), np.full(6, 4),
    )  # fmt: skip
    found = results_of(made.config, made.method, model, source, history)
    json.dumps(found, allow_nan=False)  # never NaN
    return made.config, found


LOST = ("LA", "BTI", "forgetting", "F")
CASES = {
    "iid": (cljax.IID, {}, "learns all tasks at once", (*metrics.AFTER_EACH,)),
    "joint": (cljax.Joint, {}, "goes on learning", LOST),
    "iid by batches of tasks": (
        lambda: cljax.IID(tasks_per_batch=2), {}, "learns all tasks at once", LOST
    ),
    "a stream without ends": (
        cljax.Finetune, {"source": cljax.streams.task_free(stream())}, "have no ends", LOST
    ),
    "a blurry stream": (
        cljax.ER, {"source": cljax.streams.blurry(stream(), 0.5)}, "have no ends", ("LA", "AIA")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_measures_without_meaning_are_absent_with_the_reason(name):
    make, options, reason, names = CASES[name]
    config, found = results(make(), **options)
    for metric in names:
        assert metric not in found["metrics"] and reason in found["absent"][metric]
        assert metric not in found["evaluations"]["logits"]["metrics"]
        assert reason in found["evaluations"]["logits"]["absent"][metric]
    assert {"RA", "prequential_accuracy"} <= set(found["metrics"])
    assert not set(found["metrics"]) & set(found["absent"])


def test_other_methods_keep_their_measures():
    _, found = results(cljax.Finetune())
    assert set(found["metrics"]) == set(metrics.NAMES) - {"FWT"}
    assert set(found["absent"]) == {"FWT"}  # see below
    _, joint = results(cljax.Joint())
    assert {"RA", "AIA"} <= set(joint["metrics"])


@pytest.mark.parametrize(("scenario", "there"), [("class", False), ("task", True)])
def test_transfer_to_what_no_answer_may_be_is_absent(scenario, there):
    """In scenario class both terms of FWT are 0 where a task's classes are its own."""
    asked = [Evaluation(scenario=scenario)]
    _, found = results(cljax.Finetune(), evaluations=asked)
    assert ("FWT" in found["metrics"]) == there
    assert there or "that both of its terms are 0" in found["absent"]["FWT"]
    shared = support.stream()  # every task has all classes
    mask = np.ones_like(shared.class_mask)
    assert metrics.unmeasured({}, "s", boundaries=True, scenario="class", class_mask=mask) == {}


@pytest.mark.parametrize("make", [cljax.IID, cljax.Joint])
def test_tables_protocol_and_report_say_so(make):
    config, found = results(make())
    lines = protocol.table(config, found).splitlines()
    for metric in ("LA", "BTI"):
        (line,) = [line for line in lines if measures.label(metric) in line]
        assert line.endswith(f" -  {found['absent'][metric]}")
    text = protocol.paragraph(config)
    assert "LA and BTI are not reported: " in text and "BTI their difference" not in text
    shown = {row[0] for row in tables.metrics(found).rows}
    assert shown.isdisjoint(map(measures.label, LOST))
    folder = ReportFolder(None, "run", "one", config, found)  # type: ignore[arg-type]
    page = "".join(str(part) for part in sections.of_run(folder, few=True))
    assert f"(BTI): {found['absent']['BTI']}" in page and not folder.forgets
    run = cljax.Run(config, found)
    with pytest.raises(cljax.errors.UserError, match="metric LA is absent: .*[^.]\\.$"):
        run.metric("LA")
    assert "LA the mean accuracy" in protocol.paragraph(results(cljax.Finetune())[0])


@pytest.mark.parametrize(
    ("metric", "source", "method", "options", "reason"),
    [
        ("FWT", stream(), cljax.Finetune, {"entries": "full"}, "both of its terms are 0"),
        ("LA", stream(), cljax.Joint, {}, "goes on learning"),
        ("BTI", cljax.streams.blurry(stream(), 0.5), cljax.Finetune, {}, "have no ends"),
        ("F", stream(1), cljax.Finetune, {}, "needs at least 2 tasks, but the stream has 1"),
        ("prequential_accuracy", stream(), cljax.Finetune, {}, "run with online=True"),
        ("average_anytime_accuracy", stream(), cljax.Finetune, {}, "set eval_every"),
    ],
)
def test_no_sweep_or_comparison_is_ranked_by_a_measure_that_will_be_absent(
    metric, source, method, options, reason, tmp_path
):
    options = {"net": "mlp:3", "batch_size": 4, **options}
    said = f"The metric {metric} would be absent .*{reason}"
    ranked = {"metric": metric, "seeds": 1, "on": "test"}
    with pytest.raises(cljax.errors.UserError, match=said):
        cljax.sweep.plan(method(), source, [{}], **ranked, **options)
    if metric == "LA":  # also of the second method, before the first one runs
        methods = {"a": (cljax.Finetune, {"lr": [0.1]}), "b": (method, {"lr": [0.1]})}
        tune = cljax.Tune(metric=metric, seeds=(100,))
        with pytest.raises(cljax.errors.UserError, match=said):
            cljax.compare(
                methods, stream(val=0.25), tune=tune, seeds=1, out=tmp_path / "c", **options
            )
        assert not (tmp_path / "c").exists()


def test_a_sweep_is_ranked_by_a_measure_that_an_evaluation_or_an_option_makes():
    base = {"net": "mlp:3", "batch_size": 4, "seeds": 1, "on": "test"}
    for metric, options in (
        ("FWT", {"entries": "full", "evaluations": [Evaluation(scenario="task")]}),
        ("prequential_accuracy", {"online": True}),
        ("average_anytime_accuracy", {"eval_every": 2}),
    ):
        plan = cljax.sweep.plan(
            cljax.Finetune(), stream(), [{}], metric=metric, **base, **options
        )  # fmt: skip
        assert plan.config["metric"] == metric


def test_a_stream_of_one_task_has_nothing_to_forget():
    _, found = results(cljax.Finetune(), stream(1))
    for metric in ("BTI", "F", "FWT", "forgetting"):
        assert found["absent"][metric] == "needs at least 2 tasks, but the stream has 1."
    assert found["metrics"]["LA"]["mean"] == found["metrics"]["RA"]["mean"]


def test_when_all_seeds_diverged_nothing_is_measured():
    gone = (Divergence(0, 1, "loss"),) * S
    evaluations = [Evaluation(scenario="class", metric="accuracy_of_mine")]
    _, found = results(cljax.Finetune(), diverged=gone, evaluations=evaluations)
    assert found["metrics"] == {}
    assert set(found["absent"]) >= set(metrics.NAMES)
    reasons = {found["absent"][name] for name in (*metrics.NAMES, "accuracy_of_mine")}
    assert len(reasons) == 1 and re.match(rf"all {S} seeds diverged \(seed \d+ at", *reasons)
    assert found["evaluations"]["logits"]["metrics"] == {}


def test_one_diverged_seed_leaves_the_others_measures():
    _, found = results(cljax.Finetune(), diverged=(None, Divergence(0, 1, "loss")))
    assert set(found["metrics"]) == set(metrics.NAMES) - {"FWT"}
    assert found["metrics"]["RA"]["values"][1] is None


def test_an_entry_that_was_not_evaluated_is_no_number():
    matrix = np.full((2, T + 1, T), 0.5)
    matrix[1, 1, 0] = np.nan  # the first task has no row of its own in one seed
    values, absent = metrics.compute(matrix, [1] * T)
    for metric in ("F", "LA", "BTI", "forgetting", "AIA"):
        assert "for 1 of 2 seeds (1)" in absent[metric] and metric not in values
    assert "no seed learned" in metrics.compute_online(np.ones((2, 0)), []).absent[
        "prequential_accuracy"
    ]  # fmt: skip
    assert "no seed learned" in metrics.compute_online(np.ones((1, 3)), [0] * 3).absent[
        "prequential_accuracy"
    ]  # fmt: skip
