"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import cljax

ROOT = Path(cljax.__file__).parents[1]
WITH = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "cljax").rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", WITH)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))  # prints what differs
    assert found.attempted and not found.failed


def test_the_pieces_that_are_used_most_have_examples():
    assert len(WITH) >= 10
