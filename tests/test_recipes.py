"""Recipes are data that the factories accept, found by name."""

from __future__ import annotations

import pytest

import cljax
from cljax.errors import UserError
from cljax.recipes import default, recipe, recipes
from cljax.resolve import method, options_of, stream_source


@pytest.mark.parametrize("entry", recipes(), ids=lambda r: f"{r.method}-{r.stream}-{r.variant}")
def test_every_recipe_names_options_that_exist(entry):
    known = {option.name for option in options_of(method(entry.method))}
    assert set(entry.method_options) <= known
    method(entry.method, **entry.method_options)
    assert set(entry.stream_options) <= {o.name for o in options_of(stream_source(entry.stream))}


def test_the_released_scripts_values():
    values = recipe("lamaml", "mnist-permutations", "lamaml", "reference").method_options
    assert (values["alpha_init"], values["alpha_lr"], values["glances"]) == (0.15, 0.3, 5)
    assert (
        recipe("lamaml", "mnist-rotations", "lamaml", "paper").method_options["alpha_init"] == 0.3
    )
    many = recipe("sync-lamaml", "mnist-many-permutations").method_options
    assert (many["lr"], many["glances"], many["capacity"]) == (0.03, 10, 500)


def test_lookup():
    assert default("lamaml", "mnist-rotations").name == "lamaml-table1:reference"
    assert recipe("lamaml", "mnist-rotations", "lamaml-table1").variant == "reference"
    assert default("lamaml", "split-mnist").name == "default, untuned"
    with pytest.raises(UserError, match="No recipe 'itaml' .* lamaml-table1:reference"):
        recipe("lamaml", "mnist-rotations", "itaml")


def test_replace_sorts_options_to_their_owners():
    changed = default("lamaml", "mnist-rotations").replace(num_tasks=3, alpha_lr=0.1, batch_size=5)
    assert changed.stream_options == {"num_tasks": 3} and changed.batch_size == 5
    assert changed.method_options["alpha_lr"] == 0.1
    with pytest.raises(UserError, match="option of lamaml 'alhpa'"):
        cljax.run(default("lamaml", "mnist-rotations").replace(alhpa=1), seeds=1)
