"""One rule of defaults, said where numbers stand; and what was tuned is told wherever they go."""

from __future__ import annotations

import json

import numpy as np
import pytest
import support

import cljax
from cljax.options import flat
from cljax.recipes import default, recipes
from cljax.references import protocol
from cljax.report import report
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare

FIELDS = ("net", "batch_size", "epochs", "entries")
PAIRS = [
    ("lamaml", "mnist-rotations"), ("er", "mnist-permutations"), ("mer", "mnist-rotations"),
    ("gem", "mnist-rotations"), ("ewc", "mnist-permutations"), ("online", "mnist-rotations"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _sample(monkeypatch):
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)


def stream_of(name):
    return cljax.streams.make(name, num_tasks=2, samples_per_task=20, sample=True).build()


@pytest.mark.parametrize(("method", "stream"), PAIRS)
def test_the_type_of_the_stream_changes_no_hyper_parameter(method, stream):
    made, own = cljax.resolve.method(method), stream_of(stream)
    by_name = [prepare(method, one, RunOptions(seeds=1)).config for one in (stream, own)]
    as_object = [prepare(made, one, RunOptions(seeds=1)).config for one in (stream, own)]
    for a, b in (by_name, as_object):
        assert a["method"] == b["method"] and all(a[name] == b[name] for name in FIELDS)
        assert a["recipe"] == b["recipe"]
    recipe = default(method, stream)
    assert by_name[1]["recipe"]["name"] == recipe.name != "default, untuned"
    assert all(by_name[1][name] == getattr(recipe, name) for name in FIELDS)
    options = by_name[1]["method"]["options"]
    if "penalty" in options and options["penalty"]:
        options = {**options, **options["penalty"]["options"]}
    assert {name: options[name] for name in recipe.method_options} == dict(recipe.method_options)


@pytest.mark.parametrize(("method", "stream"), PAIRS[:3])
def test_an_object_on_a_pair_with_a_recipe_gets_one_notice_that_names_what_differs(method, stream):
    recipe, made = default(method, stream), cljax.resolve.method(method)
    (notice,) = prepare(made, stream_of(stream), RunOptions(seeds=1)).config["notices"]
    assert recipe.name in notice and f"cljax.run('{method}', ...)" in notice
    plain = flat(made)
    for name, value in recipe.method_options.items():
        assert (f"{name}={value} (here {plain[name]})" in notice) == (plain[name] != value), name
    changed = made.replace(**recipe.method_options)
    (same,) = prepare(changed, stream_of(stream), RunOptions(seeds=1)).config["notices"]
    assert "whose options it has" in same
    assert prepare(method, stream_of(stream), RunOptions(seeds=1)).config["notices"] == []
    assert prepare(made, support.stream(), RunOptions(seeds=1)).config["notices"] == []


def test_the_default_recipe_of_a_sample_is_that_of_its_stream():
    for recipe in recipes():
        whole = default(recipe.method, recipe.stream)
        assert default(recipe.method, f"{recipe.stream}[sample]") == whole
    assert default("lamaml", "mnist-rotations[validation]").source == ""


def test_a_sweep_takes_the_recipe_for_a_name_and_defaults_for_a_factory():
    own = stream_of("mnist-rotations")
    settings = [{"lr": 0.1}]
    named = [cljax.sweep.plan("er", s, settings, seeds=1) for s in ("mnist-rotations", own)]
    made = [cljax.sweep.plan(cljax.ER, s, settings, seeds=1) for s in ("mnist-rotations", own)]
    for plans in (named, made):
        configs = [plan.prepared[0].config for plan in plans]
        assert configs[0]["method"] == configs[1]["method"]
        assert all(configs[0][name] == configs[1][name] for name in FIELDS)
    recipe = default("er", "mnist-rotations")
    config = named[1].prepared[0].config
    assert config["recipe"]["name"] == recipe.name and config["batch_size"] == recipe.batch_size
    assert made[1].prepared[0].config["recipe"]["name"] == "default, untuned"


def test_lanes_with_networks_as_objects_have_programs_of_their_own():
    nets = [lambda n: cljax.nets.mlp(3)(n), lambda n: cljax.nets.mlp(4)(n)]
    plan = cljax.sweep.plan(cljax.ER, support.stream(), [{"net": net} for net in nets], seeds=2)
    assert len(plan.groups) == 2
    again = cljax.sweep.plan(cljax.ER, support.stream(), [{"net": net} for net in nets], seeds=2)
    assert [lane.name for lane in again.lanes] == [lane.name for lane in plan.lanes]
    assert again.config["sweep_hash"] == plan.config["sweep_hash"]


@pytest.fixture(name="study", scope="module")
def _study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    methods = {
        "sgd": (cljax.Finetune, {"lr": [0.1, 0.01]}),
        "naive": (cljax.Finetune(), {"lr": [0.2, 0.02]}),
    }
    tune = cljax.Tune(seeds=(100, 101), tasks=2)
    return cljax.compare(
        methods, support.stream(), net="mlp:5", batch_size=4, out=folder, seeds=2, tune=tune
    ), folder


def test_what_a_comparison_tuned_stands_with_its_runs(study):
    found, folder = study
    for name, values in (("sgd", "0.1, 0.01"), ("naive", "0.2, 0.02")):
        run = found.runs[name]
        stored = json.loads((folder / "report" / name / "config.json").read_text())
        tuning, chosen = stored["tuning"], found.settings[name].setting["lr"]
        assert tuning["chosen"] == {"lr": chosen} and tuning["seeds"] == [100, 101]
        assert (tuning["settings"], tuning["runs"]) == (2, 4) and tuning["metric"] == "RA"
        words = f"tuned by RA on validation images of rolled[2 tasks]: lr={chosen} of 2 settings"
        assert stored["recipe"] == {"name": "tuned", "notes": "", "status": protocol.tuned(tuning)}
        assert stored["origins"]["lr"] == "tuned" and "untuned" not in run.protocol()
        for text in (run.protocol(), run.table()):
            assert words in text and values in text and "seeds 100, 101" in text, text
    page = report(folder, figures=False).page.read_text()
    assert "How settings were chosen" in page and "untuned" not in page
    assert page.count("tuned by RA on validation images of rolled[2 tasks]") >= 2


def test_what_a_sweep_tuned_goes_with_its_recipe(tmp_path):
    def valid(seed):
        return tuple(np.arange(36, 56) for _ in range(3))

    plan = cljax.sweep.plan(
        "finetune", support.stream(valid=valid), cljax.sweep.grid(lr=[0.1, 0.01]), seeds=2,
        net="mlp:5", batch_size=4,
    )  # fmt: skip
    done = cljax.sweep.run(plan, tmp_path)
    tuning = done.tuning()
    assert tuning["grid"] == {"lr": [0.1, 0.01]} and tuning["seeds"] == [1000, 1001]
    tuned = cljax.recipes.Recipe("er", "rolled", tuning=tuning, net="mlp:5", batch_size=4)
    config = prepare(tuned, support.stream(), RunOptions(seeds=1)).config
    assert "of 2 settings (lr of 0.1, 0.01), seeds 1000, 1001, 4 runs" in config["recipe"]["status"]
    assert config["recipe"]["name"] == "tuned" and config["origins"]["lr"] == "tuned"
    published = default("er", "mnist-rotations").replace(tuning=tuning)
    config = prepare(published, stream_of("mnist-rotations"), RunOptions(seeds=1)).config
    assert config["recipe"]["name"] == published.name  # beside the table that it came from
    assert "published" in config["recipe"]["status"] and "tuned by" in config["recipe"]["status"]
