"""What users rely on stays: hashes of runs and recipes, flags and their help, lists, names.

``interface.json`` says what they are; ``python tests/test_interface.py`` writes it anew, and its
difference is what a change breaks, or adds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

import cljax
from cljax import recipes, resolve
from cljax.cli import command, job
from cljax.cli.flags import _right
from cljax.memory import MEMORIES, POLICIES
from cljax.methods import METHODS
from cljax.options import flat
from cljax.runner.config import canonical, plain
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams import STREAMS

GOLDEN = Path(__file__).with_name("interface.json")
# Runs on the shipped sample, by METHOD, STREAM and, where it is not the pair's first, the recipe.
RUNS = (
    "lamaml mnist-rotations", "lamaml mnist-rotations lamaml:paper", "cmaml mnist-permutations",
    "sync-lamaml mnist-many-permutations", "mer mnist-permutations", "gem mnist-rotations",
    "ewc mnist-rotations", "er mnist-rotations-gaussian", "lamaml split-mnist-i-blurry",
    "itaml split-mnist", "itaml split-mnist itaml:released", "lwf split-mnist", "lucir mnist-b5-5",
    "finetune split-mnist",
)  # fmt: skip
KINDS = ("methods", "streams", "nets", "data", "penalties", "policies", "memories")


def hash_of_run(name: str) -> str:
    """The hash of a run that is given by its names: config and identity, nothing is trained."""
    method, stream, *source = name.split()
    recipe = recipes.recipe(method, stream, *(source[0].split(":") if source else ()))
    options = RunOptions(seeds=2, lanes="threads")
    return prepare(recipe.replace(sample=True), None, options).config["config_hash"]


def hash_of_objects() -> str:
    """The hash of a run that is given by objects, as README's second screen has them."""
    method = cljax.ER(lr=0.1, capacity=100, penalty=cljax.penalties.EWC(100.0, num_examples=50))
    stream = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=100)
    options = RunOptions(
        seeds=2, net=cljax.nets.mlp(100, 100), online=True, readout=True, lanes="threads"
    )
    return prepare(method, stream, options).config["config_hash"]


def hash_of_recipe(recipe: recipes.Recipe) -> str:
    """The hash of a recipe's fields and of all options of its method and stream."""
    method = resolve.method(recipe.method, **recipe.method_options)
    stream = resolve.stream_source(recipe.stream).replace(**recipe.stream_options)
    made = [dataclasses.asdict(recipe), plain(method), plain(dict(flat(stream)))]
    return hashlib.sha256(canonical(made).encode()).hexdigest()[:16]


def commands() -> dict[str, list[Any]]:
    """By command, or by exemplar policy, its flags: name, type, default and help."""
    run = [resolve.Option(name, *flag) for name, flag in job.run_flags().items()]
    methods = {f"run {name} STREAM": resolve.options_of(m) for name, m in METHODS.items()}
    streams = {f"run METHOD {name}": resolve.options_of(s) for name, s in STREAMS.items()}
    policies = {f"--exemplars {name}": resolve.options_of(p) for name, p in POLICIES.items()}
    memories = {f"--memory {name}": resolve.options_of(m) for name, m in MEMORIES.items()}
    return {"run METHOD STREAM": run, **methods, **streams, **policies, **memories}


def flags() -> dict[str, dict[str, str]]:
    """By command, the type and the default of each flag."""
    return {
        name: {flag: f"{_right(kind)} = {default}" for flag, kind, default, _ in options}
        for name, options in commands().items()
    }


def helps() -> list[str]:
    """What ``--help`` says of each flag, wherever it is the same once."""
    return sorted({f"{o.name}: {o.help}" for options in commands().values() for o in options})


def printed(*arguments: str) -> list[str]:
    """The lines that a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command.main(arguments)
    return text.getvalue().splitlines()


def recipe_hashes() -> dict[str, str]:
    """By method, stream and name, the hash of each recipe."""
    return {f"{r.method} {r.stream} {r.name}": hash_of_recipe(r) for r in recipes.recipes()}


def lists() -> dict[str, list[str]]:
    """By kind, what ``cljax list`` prints of it, and the help of the command."""
    return {"--help": printed("--help")} | {kind: printed("list", kind) for kind in KINDS}


def interface() -> dict[str, object]:
    """What the golden file holds."""
    return {
        "runs": {**{name: hash_of_run(name) for name in RUNS}, "of objects": hash_of_objects()},
        "recipes": recipe_hashes(),
        "flags": flags(),
        "help": helps(),
        "lists": lists(),
        "names": sorted(cljax.__all__),
    }


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_by_its_names_has_the_hash_that_it_had(name, golden):
    assert hash_of_run(name) == golden["runs"][name]


def test_a_run_of_objects_has_the_hash_that_it_had(golden):
    assert hash_of_objects() == golden["runs"]["of objects"]


def test_every_recipe_means_what_it_meant(golden):
    assert recipe_hashes() == golden["recipes"]


def test_every_flag_has_the_type_and_the_default_that_it_had(golden):
    assert flags() == golden["flags"]


def test_every_flag_is_explained_as_it_was(golden):
    assert helps() == golden["help"]


def test_the_lists_of_names_are_those_that_were(golden):
    assert lists() == golden["lists"]


def test_the_public_names_are_those_that_were(golden):
    assert sorted(cljax.__all__) == golden["names"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(interface(), indent=1, ensure_ascii=False) + "\n", "utf-8")
