"""Made factories look and act as if written by hand."""

from __future__ import annotations

import dataclasses

import optax
import pytest

import cljax
from cljax.errors import UserError
from cljax.identity.content import content
from cljax.methods import METHODS, make
from cljax.methods.class_incremental import ClassIncremental
from cljax.options import real_options
from cljax.resolve import options_of
from cljax.runner.config import plain


def test_a_method_with_a_penalty_has_the_options_of_both():
    options = options_of(METHODS["ewc"])
    names = [option.name for option in options]
    assert {"strength", "fisher", "lr", "optimizer"} <= set(names)
    assert "penalty" not in names and all(option.help for option in options)


def test_its_options_are_recorded_by_value():
    method = make("si", strength=0.5, lr=0.2)
    assert method.name == "si" and method.options["lr"] == 0.2
    assert method.options["penalty"] == cljax.penalties.SI(0.5)


@pytest.mark.parametrize("name", ["icarl", "bic", "lwf-exemplars", "lucir"])
def test_a_class_incremental_method_has_the_options_that_all_share(name):
    options = {option.name: option for option in options_of(METHODS[name])}
    own = {"icarl": "loss", "bic": "temperature", "lwf-exemplars": "strength"}
    assert own.get(name, "less_forget") in options
    shared = {field.name for field in dataclasses.fields(ClassIncremental)}
    assert shared <= set(METHODS[name].options) and all(o.help for o in options.values())
    method = make(name, lr=0.5)
    assert method.name == name and method.options["lr"] == 0.5
    assert options["imprint"].default == options["freeze"].default == (name == "lucir")
    reals = {"lr", "decay", "balanced_lr"}
    assert reals < set(real_options(method)) and "momentum" not in real_options(method)


@pytest.mark.parametrize("name", ["online-ewc", "sync-lamaml", "cmaml", "online"])
def test_a_variant_hides_what_it_fixes(name):
    hidden = {"online-ewc": "anchors", "cmaml": "alpha_lr", "online": "penalty"}.get(name)
    options = {option.name: option for option in options_of(METHODS[name])}
    assert hidden not in options and all(option.help for option in options.values())


def test_an_unknown_option_is_refused_with_its_neighbour():
    for name in ("ewc", "lwf-exemplars"):
        with pytest.raises(UserError, match="strenght.*did you mean strength"):
            make(name, strenght=1.0)


def test_a_penalty_is_part_of_a_runs_identity_by_its_options():
    a, b = (plain(cljax.ER(penalty=cljax.penalties.EWC(s)).options) for s in (1.0, 2.0))
    assert a != b and a["penalty"]["options"]["strength"] == 1.0


def test_a_users_own_functions_are_told_apart_by_what_they_close_over():
    def mine(strength):
        class Mine(cljax.penalties.Penalty):
            def value(self, state, params):
                return strength * 0.0

        return Mine()

    assert content(mine(0.1)) != content(mine(1.0))
    assert content(mine(0.1)) == content(mine(0.1))
    adam = [content(cljax.Finetune(optimizer=optax.adam(lr)).options) for lr in (0.1, 0.1, 0.2)]
    assert adam[0] == adam[1] != adam[2]
