"""Made factories look and act as if written by hand."""

from __future__ import annotations

import inspect

import optax
import pytest

import cljax
from cljax.config import plain
from cljax.methods import METHODS
from cljax.resolve import options_of


def test_a_method_with_a_penalty_has_the_options_of_both():
    names = [option.name for option in options_of(METHODS["ewc"])]
    assert names[:2] == ["strength", "fisher"] and {"lr", "optimizer"} <= set(names)
    assert "penalty" not in names
    assert all(option.help for option in options_of(METHODS["ewc"]))


def test_its_options_are_recorded_by_value():
    method = METHODS["si"](strength=0.5, lr=0.2)
    assert method.name == "si"
    assert method.options["strength"] == 0.5 and method.options["lr"] == 0.2


@pytest.mark.parametrize("name", ["online-ewc", "sync-lamaml", "cmaml", "online"])
def test_a_variant_hides_what_it_fixes(name):
    hidden = {"online-ewc": "anchors", "cmaml": "alpha_lr", "online": "penalty"}.get(name)
    signature = inspect.signature(METHODS[name])
    assert hidden not in signature.parameters
    assert hidden is None or f"  {hidden}:" not in (METHODS[name].__doc__ or "")
    assert all(option.help for option in options_of(METHODS[name]))


def test_an_unknown_option_is_refused_as_by_a_function():
    with pytest.raises(TypeError, match="strenght"):
        METHODS["ewc"](strenght=1.0)


def test_a_penalty_is_part_of_a_runs_identity_by_its_options():
    a, b = (plain(cljax.er(penalty=cljax.ewc(s)).options) for s in (1.0, 2.0))
    assert a != b and a["penalty"]["options"]["strength"] == 1.0


def test_a_users_own_functions_are_told_apart_by_what_they_close_over():
    def mine(strength):
        def value(state, params):
            return strength * 0.0

        def nothing(*arguments):
            return ()

        return cljax.Penalty(nothing, value, nothing, nothing)

    assert plain(mine(0.1)) != plain(mine(1.0))
    assert plain(mine(0.1)) == plain(mine(0.1))
    adam = [plain(cljax.finetune(optimizer=optax.adam(lr)).options) for lr in (0.1, 0.1, 0.2)]
    assert adam[0] == adam[1] != adam[2]
