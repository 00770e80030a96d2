"""Lanes over many devices and processes: what they find does not depend on how many."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support
from support import learn

import cljax
from cljax.cli.command import main
from cljax.errors import UserError
from cljax.runner.config import canonical

RUN = ["run", "lamaml", "mnist-rotations", "--sample", "--num-tasks", "2", "--samples-per-task",
       "60", "--seeds", "3", "--precision", "float64", "--lanes", "map"]  # fmt: skip
SWEEP = ["sweep", "online", "mnist-rotations", "--sample", "--num-tasks", "2", "--seeds", "1",
         "--samples-per-task", "60", "--over", "lr=0.05,0.1,0.2", "--lanes", "map",
         "--net", "mlp:8"]  # fmt: skip
EIGHT = "--xla_force_host_platform_device_count=8"
# Run by a process of its own, because the number of devices cannot change later.
COMPARES = """
import jax
import numpy as np
import support
import cljax
from support import learn

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8


def run(**options):
    method = cljax.ER(lr=0.1, capacity=6)
    stream, model = support.stream(), cljax.nets.mlp(5)(support.NUM_CLASSES)
    return learn(method, model, stream, list(range(6)), batch_size=4, online=True, **options)


def compare(close, **options):
    found = run(**options)
    assert found.seeds == expected.seeds and len(found.states) == 6
    jax.tree.map(close, found.states, expected.states)
    jax.tree.map(close, found.losses, expected.losses)
    assert found.evaluations.keys() == expected.evaluations.keys()
    for name, matrices in expected.evaluations.items():
        np.testing.assert_array_equal(found.evaluations[name], matrices)
    np.testing.assert_array_equal(found.online_correct, expected.online_correct)
    print(options)


same = np.testing.assert_array_equal
near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
expected = run(lanes="sequential")
assert not np.array_equal(expected.losses[0], expected.losses[1])
compare(same, lanes="map", devices=8)
compare(same, lanes="map", devices=4, lanes_at_a_time=4)
compare(near, lanes="vmap", devices=8)
"""


@pytest.fixture(name="started")
def _started(tmp_path):
    """Starts processes; what they say is in files, and none outlives the test."""
    children = []

    def start(*arguments):
        said = [tmp_path / f"{name}-{len(children)}" for name in ("out", "err")]
        with open(said[0], "w") as out, open(said[1], "w") as err:
            child = subprocess.Popen(
                [sys.executable, *arguments], stdout=out, stderr=err, cwd=tmp_path
            )
        child.out, child.err = said
        children.append(child)
        return child

    try:
        yield start
    finally:
        for child in children:
            child.kill()  # nothing, if it has ended
            child.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def codes(children, patience=200):
    """Exit codes; None of a process that has not ended in so many seconds."""
    end = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0, end - time.monotonic()))
    return [child.poll() for child in children]


def results(folder):
    """What a run found, as canonical text; not how long it took and where."""
    found = json.loads((folder / "results.json").read_text())
    assert found.pop("time") and found.pop("device")
    return canonical(found)


def test_lanes_over_eight_devices_have_the_bits_of_single_runs():
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}",
        "PYTHONPATH": str(Path(support.__file__).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPARES], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.slow
def test_two_processes_find_what_one_does_and_only_the_first_speaks(started, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    command = ["-m", "cljax", *RUN, "--out", str(tmp_path / "two"), "--distributed"]
    both = [started(*command, f"{address},{i}/2") for i in range(2)]
    assert codes(both) == [0, 0], [child.err.read_text() for child in both]
    alone = started("-m", "cljax", *RUN, "--out", str(tmp_path / "one"))
    assert codes([alone]) == [0], alone.err.read_text()
    assert results(tmp_path / "two") == results(tmp_path / "one")
    counts = [
        json.loads((tmp_path / name / "results.json").read_text())["device"]["count"]
        for name in ("one", "two")
    ]
    assert counts == [1, 2]
    first, second = (child.out.read_text() for child in both)
    table = alone.out.read_text().partition(str(tmp_path / "one"))[0]
    assert "RA" in table and table in first
    assert "RA" not in second and str(tmp_path / "two") not in second
    assert "Traceback" not in "".join(child.err.read_text() for child in both)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }


def test_two_processes_share_a_sweep(started, capsys, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    command = ["-m", "cljax", *SWEEP, "--out", str(tmp_path / "two"), "--distributed"]
    both = [started(*command, f"{address},{i}/2") for i in range(2)]
    assert codes(both) == [0, 0], [child.err.read_text() for child in both]
    with pytest.raises(SystemExit) as done:
        main([*SWEEP, "--out", str(tmp_path / "one")])
    assert done.value.code == 0
    for name in ("results.json", "table.txt"):
        two, one = ((tmp_path / folder / name).read_bytes() for folder in ("two", "one"))
        assert two == one
    table = (tmp_path / "one" / "table.txt").read_text()
    assert capsys.readouterr().out.startswith(table)
    assert table in both[0].out.read_text() and "RA on" not in both[1].out.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": "map", "devices": 99}, "devices is 99, but there are 1 here"),
        ({"lanes": "vmap", "devices": 2}, "devices is 2, but there are 1 here"),
        ({"lanes": "threads", "devices": 2}, "devices is 2 with lanes=threads, but only"),
        ({"lanes": "sequential", "devices": 2}, "devices is 2 with lanes=sequential, but only"),
        ({"lanes": "map", "devices": 0}, "devices is 0"),
        ({"lanes": "map", "devices": -1}, "devices is -1"),
    ],
    ids=str,
)
def test_devices_that_cannot_be_are_refused(options, message):
    model = cljax.nets.mlp(5)(support.NUM_CLASSES)
    with pytest.raises(UserError, match=message):
        learn(cljax.Finetune(), model, support.stream(), [0, 1], batch_size=4, **options)


@pytest.mark.parametrize(
    "text",
    ["here", "127.0.0.1,0/2", "127.0.0.1:4000", "127.0.0.1:4000,2/2", "127.0.0.1:4000,0/0",
     "127.0.0.1:port,0/2", "127.0.0.1:4000,-1/2", ""],
)  # fmt: skip
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_processes_that_cannot_be_are_one_sentence(command, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main([command, "lamaml", "mnist-rotations", "--sample", "--distributed", text])
    captured = capsys.readouterr()
    assert done.value.code == 2 and captured.out == ""
    assert captured.err.startswith("cljax: ") and captured.err.count("\n") == 1
    assert "--distributed" in captured.err and "HOST:PORT,I/N" in captured.err
    assert not list(tmp_path.iterdir())
