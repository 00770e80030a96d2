"""Streams by name and as objects: the same run, and which name an object has."""

from __future__ import annotations

import dataclasses
import json
import textwrap

import jax
import pytest
import support

import cljax
from cljax import resolve, streams
from cljax.errors import UserError
from cljax.options import flat
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams import STREAMS
from cljax.streams.catalogue import entry_of

ONE = RunOptions(seeds=1)
SMALL = {"sample": True, "num_tasks": 2, "samples_per_task": 20}
OBJECTS = {
    "mnist-rotations": streams.MNISTRotations(**SMALL),
    "mnist-many-permutations": streams.MNISTManyPermutations(**SMALL),
    "split-mnist-blurry": streams.Blurry(stream=streams.SplitMNIST(**SMALL), fraction=0.2),
}


@pytest.fixture(autouse=True)
def _sample(monkeypatch):
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)


def without_place(config):
    """A config without what says where it was made."""
    return {k: v for k, v in config.items() if k not in ("commit", "command", "device", "versions")}


@pytest.mark.parametrize("method", ["er", "lamaml"])
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_the_same_run_as_its_name(method, name):
    options = {**SMALL, **({"fraction": 0.2} if "blurry" in name else {})}
    recipe = cljax.recipe(method, name).replace(**options)
    by_name = prepare(recipe, options=ONE).config
    by_object = prepare(method, OBJECTS[name], ONE).config
    assert by_name["begun_as"] is not None and by_name["stream_options"] == options
    assert without_place(by_object) == without_place(by_name)


def test_an_object_with_a_method_that_is_one_keeps_its_options_on_record():
    config = prepare(cljax.ER(), OBJECTS["mnist-rotations"], ONE).config
    built = prepare(cljax.ER(), OBJECTS["mnist-rotations"].build(), ONE).config
    assert config["config_hash"] == built["config_hash"]
    assert config["stream_options"] == SMALL and built["stream_options"] == {}
    assert config["begun_as"]["stream_options"] == SMALL and "begun_as" not in built


def test_a_recipe_says_which_of_its_stream_options_an_object_does_not_have():
    recipe = dataclasses.replace(
        cljax.recipe("er", "split-mnist"), stream_options={"num_tasks": 2, "pixels": "normalised"}
    )
    source = streams.SplitMNIST(num_tasks=2, sample=True)
    made = prepare(recipe, source, ONE).config
    (notice,) = made["notices"]
    assert "split-mnist is as it was made" in notice and "has pixels=normalised." in notice
    assert made["stream_options"] == {"num_tasks": 2, "pixels": "unit", "sample": True}
    assert prepare(recipe, source.replace(pixels="normalised"), ONE).config["notices"] == []


def test_sweeps_and_comparisons_take_objects(tmp_path):
    source = OBJECTS["mnist-rotations"]
    settings = [{"lr": 0.1}, {"lr": 0.2}]
    recipe = cljax.recipe("er", "mnist-rotations").replace(**SMALL)
    plans = [
        cljax.sweep.plan(recipe, None, settings, seeds=1),
        cljax.sweep.plan("er", source, settings, seeds=1),
    ]
    assert plans[0].config["base"] is not None and plans[0].config == plans[1].config
    assert plans[0].config["stream"] == "mnist-rotations[sample]"
    study = cljax.compare(
        {"a": (cljax.Finetune(), {"lr": [0.1]}), "b": (cljax.Finetune(), {"lr": [0.2]})},
        source, net="mlp:2", tune=cljax.Tune(seeds=(100,)), seeds=1, out=tmp_path, batch_size=10,
    )  # fmt: skip
    assert study.runs["a"].results["stream"] == "mnist-rotations[sample]"


def test_every_name_is_the_entry_of_its_own_stream():
    for name, source in STREAMS.items():
        assert entry_of(source) == (name, {})


@pytest.mark.parametrize(
    ("source", "name", "options"),
    [
        (streams.CIFAR100(classes_per_task=5, val=0.0), "cifar100-20x5", {"val": 0.0}),
        (STREAMS["cifar100-b50-25"].replace(base=20), "cifar100-b50-25", {"base": 20}),
        # Of two that are as near the first one counts.
        (streams.ImageNet(classes=1000), "imagenet100-10x10", {"classes": 1000}),
        (streams.TaskFree(stream=streams.MNISTRotations()), "mnist-rotations-task-free", {}),
        (streams.TaskFree(stream=streams.MNISTPermutations(num_tasks=3), order="shuffled"),
         "mnist-permutations-task-free", {"num_tasks": 3, "order": "shuffled"}),
        # Names that no list shows.
        (streams.Blurry(stream=streams.SplitSVHN()), "split-svhn-blurry", {}),
        (streams.IBlurry(stream=streams.TinyImageNet(classes_per_task=8), fraction=0.2),
         "tinyimagenet-40x5-i-blurry", {"classes_per_task": 8, "fraction": 0.2}),
        (streams.Gaussian(stream=streams.CIFAR100(base=50), width=2.0),
         "cifar100-10x10-gaussian", {"base": 50, "width": 2.0}),
    ],
)  # fmt: skip
def test_an_object_has_the_name_that_it_differs_from_least(source, name, options):
    assert entry_of(source) == (name, options)
    assert flat(streams.make(name, **options)) == flat(source)


def test_a_stream_that_no_name_has_runs_as_what_it_opens():
    class Mine(streams.MNISTRotations):
        """Of one's own."""

    for source in (Mine(**SMALL), streams.Blurry(stream=Mine(**SMALL))):
        assert entry_of(source) is None
        config = prepare("er", source, ONE).config
        assert config["stream"]["name"].startswith("mine")
        assert "begun_as" not in config
        assert config["config_hash"] == prepare("er", source.build(), ONE).config["config_hash"]


def test_a_stream_that_no_list_shows_is_recorded_and_resumed_by_its_name():
    source = streams.Blurry(stream=streams.MNISTManyPermutations(**SMALL), fraction=0.2)
    config = prepare("er", source, ONE).config
    begun = json.loads(json.dumps(config["begun_as"]))
    assert begun["stream"] == "mnist-many-permutations-blurry"
    again = prepare(cljax.recipes.Recipe(**begun), None, ONE).config
    assert without_place(again) == without_place(config)
    assert config["config_hash"] == prepare("er", source.build(), ONE).config["config_hash"]


def test_options_are_arguments_of_jax_and_are_checked_when_made():
    source = OBJECTS["split-mnist-blurry"]
    assert jax.tree.leaves(source) == [] and jax.tree.map(lambda leaf: leaf, source) == source
    assert hash(source) == hash(source.replace(num_tasks=2)) != hash(source.replace(num_tasks=5))
    with pytest.raises(UserError, match="num_tasks is 3, but ten digits split into 1, 2, 5 or 10"):
        source.replace(num_tasks=3)
    with pytest.raises(UserError, match="option of blurry 'num_task' is not known.*num_tasks"):
        source.replace(num_task=3)
    with pytest.raises(UserError, match="stream is a Stream, but Blurry is made of the options"):
        streams.Blurry(stream=support.stream())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="stream 'mnist-rotation' is not known"):
        streams.make("mnist-rotation")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of streams of a user's own."""
    (tmp_path / "my_streams.py").write_text(
        textwrap.dedent('''
        from collections.abc import Sequence
        from cljax import streams

        class Rotations(streams.MNISTRotations):
            """Mine."""
            num_tasks: int = 2
            sample: bool = True

        three = Rotations(num_tasks=3)
        opened = Rotations(samples_per_task=20).build()

        def function(*, samples_per_task: int = 20, weights: Sequence[float] = (0.5,), other=3):
            return Rotations(samples_per_task=samples_per_task)

        def untyped(*, size: "Unknown" = 3): ...
        def broken(): raise KeyError("no")
        def nothing(): ...
        ''')
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_streams"


def test_a_users_own_stream_is_options_a_function_or_a_stream(mine):
    for name, tasks, options in (
        ("Rotations", 2, {"samples_per_task": 30}), ("three", 3, {"samples_per_task": 30}),
        ("function", 2, {"samples_per_task": 30}), ("opened", 2, {}),
    ):  # fmt: skip
        stream = resolve.stream(f"{mine}:{name}", **options)
        assert stream.num_tasks == tasks and len(stream.subsets(0)[0]) == (30 if options else 20)
        with pytest.raises(UserError, match=f"option of {mine}:{name} 'size' is not known"):
            resolve.stream(f"{mine}:{name}", size=1)
    flags = lambda name: resolve.options_of(resolve.stream_source(f"{mine}:{name}"))
    assert {o.name: o.default for o in flags("three")}["num_tasks"] == 3
    assert all(o.help for o in flags("Rotations")) and flags("opened") == []
    assert [(o.name, o.type, o.default) for o in flags("function")] == [
        ("samples_per_task", int, 20), ("weights", tuple[float, ...], (0.5,)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("untyped", "options of the function untyped cannot be read.*Unknown"),
        ("broken", "my_streams:broken failed with KeyError"),
        ("nothing", "The stream is None, but it must be a Stream"),
        ("missing", "names 'missing', which the module my_streams does not have"),
        ("__name__", "is 'my_streams', but it must be a function"),
    ],
)
def test_a_users_own_stream_that_is_none_gets_a_sentence(mine, name, message):
    with pytest.raises(UserError, match=message):
        resolve.stream(f"{mine}:{name}")
