"""A run that is killed while its update rule is learned goes on to the bits of an unbroken one."""

from __future__ import annotations

import json
import random

import pytest
from end_to_end.test_kill import (
    begin,  # noqa: F401, fixtures come by their names
    going_on,
    killed,
    results,
    unbroken,  # noqa: F401
)
from mnist_support import real_data_dir

from cljax.errors import UserError
from cljax.storage.checkpoint import newest_place
from cljax.streams import make

WINDOWS = 3000
COMMAND = [
    "teacher", "fashion-5-5", "--seeds", "1", "--readout", "--steps", "10", "--pretrain-steps",
    "10", "--hidden", "2", "--episodes-at-once", "2", "--old-size", "4", "--truncation", "2",
    "--truncation-cap", "2", "--level-every", "100000", "--longest", "9", "--target", "4",
    "--episodes", "100000", "--windows", str(WINDOWS),
]  # fmt: skip


def windows_done(out):
    """Windows of meta-training in the newest checkpoint; 0 before or after it."""
    place = newest_place(out / "checkpoint")
    if place is None:
        return 0
    try:
        header = json.loads((place / "position.json").read_text())
    except (OSError, ValueError):  # being removed
        return 0
    # Only meta-training has so many steps.
    shapes = {array["name"]: array["shape"] for array in header["arrays"]}
    inside = shapes.get("0/place/carry/losses") == [WINDOWS]
    return header["position"]["lanes"]["0"]["at"] if inside else 0


@pytest.mark.slow
def test_a_run_killed_in_meta_training_goes_on_to_the_same_results(begin, unbroken, tmp_path):  # noqa: F811
    data_dir = real_data_dir()
    try:
        make("fashion-5-5", data_dir=data_dir).build()
    except UserError as error:
        pytest.skip(str(error))
    command = [*COMMAND, "--data-dir", str(data_dir)]
    expected, _ = unbroken(command)
    out, rng, before = tmp_path / "run", random.Random(0), 0
    for _ in range(3):
        child = begin(*going_on(command, out))
        further = lambda before=before: windows_done(out) > before
        assert killed(child, further, rng.uniform(0, 0.1)), "it ended before it could be killed"
        assert before < windows_done(out) < WINDOWS
        before = windows_done(out)
    child = begin(*going_on(command, out))
    assert child.wait() == 0, child.said.read_text()
    assert results(out) == expected
