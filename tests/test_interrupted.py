"""What is refused leaves nothing, what is interrupted says what is kept, and signals end it."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from pathlib import Path

import pytest
from folders_support import (
    METHOD,
    SMALL,
    call,
    one_sentence,
    small_plan,
    small_run,
)  # fmt: skip
from support import stream

import cljax
from cljax import sweep
from cljax.engine import signals
from cljax.errors import Interrupted, UserError
from cljax.storage import checkpoint

TWICE = [cljax.Evaluation("a"), cljax.Evaluation("a")]


@pytest.mark.parametrize(
    ("running", "options", "said"),
    [
        ({"devices": 3}, {}, "devices is 3"),  # found by ``learn``, after the folder was made
        ({}, {"evaluations": TWICE}, "two evaluations named a"),
        ({}, {"evaluations": [cljax.Evaluation("b", "nothing")]}, "'nothing' is not known"),
    ],
    ids=str,
)
def test_a_refused_run_leaves_no_folder(running, options, said, tmp_path):
    how = cljax.Running(**running)
    with pytest.raises(UserError, match=said):
        small_run(tmp_path / "runs" / "a", running=how, **options)
    assert not list(tmp_path.iterdir())
    if not options:
        with pytest.raises(UserError, match=said):
            sweep.run(small_plan(), tmp_path / "runs" / "a", running=how)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a" * 300, "nul\0byte", "~nobody-of-that-name/run"])
def test_a_path_that_cannot_be_is_a_sentence(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["report", name], ["resume", name], ["sweep", "status", name], ["sweep", "merge", name],
        ["run", "online", "mnist-rotations", "--sample", "--num-tasks", "2", "--out", name],
    ):  # fmt: skip
        said = call(capsys, *arguments)
        assert one_sentence(*said) and len(said[2]) < 300, said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_looked_into_is_a_sentence(tmp_path, capsys, monkeypatch):
    """As mode 000 is for everyone but a privileged user."""

    def denied(path, *arguments, **options):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path, *arguments, **options)

    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", denied)
    for arguments in (["report", tmp_path], ["resume", tmp_path], ["sweep", "status", tmp_path]):
        said = call(capsys, *arguments)
        assert one_sentence(*said) and "Permission denied" in said[2], said


def test_kept_is_said_only_where_something_is(tmp_path, monkeypatch):
    runs = importlib.import_module("cljax.runner.run")
    asked = iter(range(10**6))
    answers = contextlib.nullcontext(lambda: next(asked) > 2)
    monkeypatch.setattr(runs, "signals", lambda: answers)
    never = cljax.Running(checkpoint_every="never")
    with pytest.raises(Interrupted, match="keeps no checkpoint") as stopped:
        small_run(tmp_path / "run", running=never)
    assert not stopped.value.kept and stopped.value.code == 130
    monkeypatch.setattr(checkpoint, "save", lambda folder, *arguments, **options: folder)
    with pytest.raises(Interrupted, match="before the first checkpoint") as stopped:
        small_run(tmp_path / "other")
    assert not stopped.value.kept and "and kept" not in str(stopped.value)


def test_a_run_that_cannot_be_told_again_is_not_said_to_go_on(tmp_path, monkeypatch):
    runs = importlib.import_module("cljax.runner.run")
    asked = iter(range(10**6))
    monkeypatch.setattr(runs, "signals", lambda: contextlib.nullcontext(lambda: next(asked) > 2))
    own = (i for i in ())  # of which nobody can tell what it holds

    class Untold(type(METHOD)):
        def bind(self, model, spec):
            return own and super().bind(model, spec)

    untold = Untold(**METHOD.options)
    with pytest.raises(Interrupted, match="cannot be continued, .* pass id='") as stopped:
        cljax.run(untold, stream(), seeds=1, out=tmp_path / "run", **SMALL)
    assert not stopped.value.kept and "goes on" not in str(stopped.value)


def test_a_sweep_of_which_nothing_is_kept_does_not_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("cljax.sweep.execute.signals", lambda: contextlib.nullcontext(lambda: True))
    never = cljax.Running(checkpoint_every="never")
    assert sweep.run(small_plan(), tmp_path / "never", running=never).exit_code == 130
    assert sweep.run(small_plan(), tmp_path / "kept").exit_code == 75


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_says_that_it_waits_and_the_second_ends_at_once(
    first, second, capsys, monkeypatch
):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with signals.signals() as asked:
        assert not asked()
        os.kill(os.getpid(), first)
        assert asked() and "compilation has ended" in capsys.readouterr().err
        if second == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), second)
        else:
            os.kill(os.getpid(), second)
            assert codes == [130]


def test_an_interruption_at_once_waits_for_no_thread():
    import threading
    from concurrent.futures import ThreadPoolExecutor

    going = threading.Event()
    with pytest.raises(KeyboardInterrupt), signals.at_once(ThreadPoolExecutor(1)) as pool:
        late = pool.submit(going.wait, 60)
        raise KeyboardInterrupt
    assert not late.done()
    going.set()
    assert signals.waits(Interrupted()) and signals.waits(ValueError())


def test_a_run_that_is_refused_is_no_obstacle_to_the_next(tmp_path):
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    Path(tmp_path / "run" / ".hidden").write_text("1")
    with pytest.raises(UserError):
        small_run(tmp_path / "run", running=cljax.Running(devices=3))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"tensorboard", ".hidden"}
    done = cljax.run(METHOD, stream(), seeds=1, out=tmp_path / "run", **SMALL)
    assert not done.resumed and cljax.load(tmp_path / "run").results["seeds"] == [0]
