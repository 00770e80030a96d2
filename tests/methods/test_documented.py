"""Every method says where it is from, how it goes, and how it is used."""

from __future__ import annotations

import re
import sys

import pytest

from cljax.methods import METHODS


def definition(name):
    """The class that a method's update is in: its penalty's, where it is fine-tuning with one."""
    penalty = getattr(METHODS[name], "penalty", None)
    return type(METHODS[name]) if penalty is None else type(penalty)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_its_paper_its_pseudo_code_and_an_example(name):
    kind = definition(name)
    own, module = kind.__doc__ or "", sys.modules[kind.__module__].__doc__ or ""
    assert re.search(r"\nPaper: .*?\b(19|20)\d\d\b", re.sub(r"\n +", "\n", own)), "no paper"
    assert f"``{kind.__module__}``" in own, "it does not say where its pseudo-code is"
    assert re.search(r"\n\n    \S", module), "its module has no pseudo-code"
    assert "\nSource: " in module or "\nSource of" in module
    assert "\nDiffers" not in module or "differs" in own, "what differs is not pointed at"
    assert "Example:" in own and f"cljax.{kind.__name__}(" in own.replace(".penalties", "")
