"""Measures in words."""

from __future__ import annotations

import math

from cljax import measures, metrics


def test_every_measure_has_a_name_and_a_meaning_of_its_own() -> None:
    assert set(metrics.NAMES) <= set(measures.MEASURES)
    for part in ("name", "meaning"):
        told = [getattr(one, part) for one in measures.MEASURES.values()]
        assert len(set(told)) == len(told)
    assert measures.label("RA") == "final accuracy (RA)" and measures.label("mine") == "mine"


def test_differences_are_in_points_and_may_be_negative() -> None:
    for name in ("BTI", "FWT", "forgetting", "F"):
        assert measures.bounds(name) == (-1, 1) and measures.unit(name) == "points"
    for name in ("RA", "LA", "AIA", "accuracy_task_aware"):
        assert measures.bounds(name) == (0, 1) and measures.unit(name) == "%"


def test_a_measure_of_ones_own_may_be_any_number() -> None:
    assert measures.bounds("mine") == (-math.inf, math.inf) and measures.unit("mine") == "%"


def test_meanings_are_listed_in_order_for_what_is_shown() -> None:
    assert measures.ordered(["mine", "F", "LA", "RA"]) == ["RA", "LA", "F", "mine"]
    assert [name for name, _ in measures.legend(["mine", "F", "RA"])] == ["RA", "F"]
