"""A run that is killed or interrupted at any moment goes on to the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cljax.cli.command import main
from cljax.runner.config import canonical

DATA = ["mnist-rotations", "--sample", "--num-tasks", "3", "--seeds", "2"]
CLASSES = ["split-mnist", "--sample", "--seeds", "2"]
# What changes no result: checkpoints and segments as often as can be.
OFTEN = ["--checkpoint-every", "0.05s", "--segment-seconds", "0.05"]
SMALL = ["lamaml", *DATA, "--samples-per-task", "100"]
METHODS = {
    "lamaml": [*DATA, "--samples-per-task", "300", "--eval-every", "70", "--online"],
    "er": [*DATA, "--samples-per-task", "1000", "--lanes", "vmap"],
    "ewc": [*DATA, "--samples-per-task", "1000"],  # phases
    "gem": [*DATA, "--samples-per-task", "500", "--precision", "float64"],
    "mer": [*DATA, "--samples-per-task", "60", "--lanes", "sequential"],
    "lucir": [  # phases before and after tasks, exemplars that are learned
        *CLASSES, "--net", "mlp:20:cosine", "--epochs", "5", "--capacity", "40", "--exemplars",
        "mnemonics:inner_steps=2,outer_epochs=3", "--balanced-epochs", "5",
    ],
}  # fmt: skip


@pytest.fixture
def begin(tmp_path):
    """Starts a command; what it says is in a file. None outlives the test."""
    children = []

    def begin(*arguments):
        said = tmp_path / f"said-{len(children)}"
        with open(said, "w") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "cljax", *arguments], cwd=tmp_path, stderr=file,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        child.said = said
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()  # nothing, if it has ended
        child.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The results of a command that nothing disturbs, and the seconds it takes; kept."""
    known = {}

    def unbroken(command):
        if canonical(command) not in known:
            out = tmp_path_factory.mktemp("unbroken") / "run"
            began = time.monotonic()
            arguments = [sys.executable, "-m", "cljax", "run", *command, *OFTEN, "--out", str(out)]
            done = subprocess.run(arguments, cwd=out.parent, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            known[canonical(command)] = (results(out), time.monotonic() - began)
        return known[canonical(command)]

    return unbroken


def results(out):
    """All but the times, as canonical text; and that nothing is left half done."""
    assert not (out / "checkpoint").exists()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} >= {"segment", "eval"}
    found = json.loads((out / "results.json").read_text())
    assert found.pop("time").keys() >= {"train_s", "eval_s", "total_s"}
    return canonical(found)


def going_on(command, out):
    """The arguments that go on with a run, or begin it."""
    if (out / "config.json").exists():
        return ["resume", str(out), *OFTEN]
    return ["run", *command, *OFTEN, "--out", str(out)]


def kept(out):
    """The numbers of a run's checkpoints, and the names of those that are being written."""
    try:
        names = os.listdir(out / "checkpoint")
    except FileNotFoundError:
        names = []
    written = {name for name in names if name.startswith(".writing-")}
    return [0, *(int(name) for name in names if name.isdecimal())], written


def moment(name, out, seconds):
    """Asks from now on whether a moment of the run in ``out`` has come."""
    now = time.monotonic()
    numbers, saves = kept(out)
    return {
        "a while": lambda: time.monotonic() > now + seconds,
        "its beginning": (out / "config.json").exists,
        "a save": lambda: kept(out)[1] - saves,
        "a checkpoint": lambda: max(kept(out)[0]) > max(numbers),
        "its plots": (out / "plots").exists,
    }[name]


def wait_for(come, child):
    """Waits until a moment has come, or the child ended."""
    patience = time.monotonic() + 600
    while child.poll() is None and not come():
        assert time.monotonic() < patience, child.said.read_text()
        time.sleep(0.002)


def killed(child, come, delay):
    """Kills a child some seconds after a moment; False if it had finished before."""
    wait_for(come, child)
    if child.poll() is None:
        time.sleep(delay)
        child.kill()
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.said.read_text()
    return code != 0


def kill_at_each(names, command, out, begin, unbroken, seed):
    """Kills a run at each moment in turn, going on each time, and compares what it comes to."""
    rng = random.Random(seed)
    expected, seconds = unbroken(command)
    names, attempts = list(names), 0
    while names:
        attempts += 1
        assert attempts < 40, names
        come = moment(names[0], out, rng.uniform(0.2, 0.9) * seconds)
        child = begin(*going_on(command, out))
        if killed(child, come, rng.uniform(0, 0.3 if names[0] == "a checkpoint" else 0.05)):
            names.pop(0)
        else:  # too late for this moment: from the beginning
            assert results(out) == expected
            shutil.rmtree(out)
    child = begin(*going_on(command, out))
    assert child.wait() == 0, child.said.read_text()
    assert results(out) == expected


def test_a_killed_run_goes_on_to_the_results_of_an_unbroken_one(begin, unbroken, tmp_path):
    kill_at_each(["a save", "a checkpoint"], SMALL, tmp_path / "run", begin, unbroken, 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_survives_kills_at_many_moments(method, begin, unbroken, tmp_path):
    moments = ["a while", "its beginning", "a save", "a checkpoint", "a save", "its plots"]
    command = [method, *METHODS[method]]
    kill_at_each(moments, command, tmp_path / "run", begin, unbroken, method)


def test_an_interrupted_run_is_kept_and_goes_on(begin, unbroken, tmp_path):
    """By SIGINT while it compiles, then by SIGTERM while it trains."""
    out = tmp_path / "run"
    for number in (signal.SIGINT, signal.SIGTERM):
        child = begin(*going_on(SMALL, out))
        compiles = lambda child=child: "compiling" in child.said.read_text()
        wait_for(compiles if number == signal.SIGINT else moment("a checkpoint", out, 0), child)
        child.send_signal(number)
        assert child.wait() == 75, child.said.read_text()
        said = child.said.read_text().splitlines()
        assert said == [
            "compiling, then training ...",
            "cljax: stopping once this segment or compilation has ended; again stops at once ...",
            f"cljax: interrupted and kept; `cljax resume {out}` goes on.",
        ]
        assert not (out / "results.json").exists()
        numbers, written = kept(out)
        assert max(numbers) > 0 and not written
    child = begin("resume", str(out))
    assert child.wait() == 0 and child.said.read_text() == "compiling, then training ...\n"
    assert results(out) == unbroken(SMALL)[0]


def test_a_second_process_on_a_folder_is_refused_and_the_first_unharmed(
    begin, unbroken, tmp_path, capsys
):
    out = tmp_path / "run"
    first = begin(*going_on(SMALL, out))
    wait_for(moment("its beginning", out, 0), first)
    first.send_signal(signal.SIGSTOP)  # so that it has not finished
    for arguments in (["run", *SMALL, "--out", str(out)], ["resume", str(out)]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("cljax: ") and "another process" in said
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.said.read_text()
    assert results(out) == unbroken(SMALL)[0]
