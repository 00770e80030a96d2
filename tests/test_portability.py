"""Systems unlike the one that the tests run on: Windows, optimised Python, no home, no output."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cljax.cli import terminal
from cljax.data import cache, prepared
from cljax.errors import UserError
from cljax.storage import files, locks

# What an interpreter of Windows does not have, without a home folder or a user of that number.
# Packages of others are imported before: what they do about it is their affair.
ELSEWHERE = """
import os, sys
import jax, numpy, optax, flax.linen, orbax.checkpoint, matplotlib.figure, filelock, tyro
for name in ("sched_getaffinity", "posix_fallocate", "statvfs", "sysconf", "getuid", "geteuid",
             "O_NOFOLLOW", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("fcntl", "pwd", "resource", "grp", "termios"):
    sys.modules[name] = None
for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "CLJAX_DATA_DIR"):
    os.environ.pop(name, None)
import pathlib
def homeless(*_):
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = classmethod(homeless)
os.path.expanduser = lambda path: path
"""


def child(code, *flags):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_without_docstrings_and_what_only_unix_has_a_run_is_made_kept_and_read(tmp_path):
    out = child(
        ELSEWHERE
        + textwrap.dedent(f"""
        import contextlib, importlib, io
        import cljax
        from cljax import nets, penalties
        from cljax.runner import artefacts
        from cljax.cli.command import main
        from cljax.errors import Interrupted, UserError

        print(cljax.LaMAML.__doc__, __debug__)
        text = io.StringIO()
        for command in (["list"], ["cite", "ewc"], ["run", "ewc", "mnist-rotations", "--help"],
                        ["protocol", "lamaml", "mnist-rotations", "--sample"]):
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                main(command)
        words = ("online-ewc", "kirkpatrick2017ewc", "--strength", "We train lamaml")
        print([word in text.getvalue() for word in words])
        asked = iter(range(100))
        run = importlib.import_module("cljax.runner.run")
        signals, run.signals = run.signals, lambda: contextlib.nullcontext(lambda: next(asked) >= 0)
        options = dict(seeds=1, net="mlp:3", out={str(tmp_path / "run")!r})
        recipe = cljax.recipes.Recipe("online", "mnist-rotations", stream_options=dict(
            sample=True, num_tasks=2, samples_per_task=20))
        try:
            cljax.run(recipe, **options)
        except Interrupted as stopped:
            print(stopped.kept)
        run.signals = signals
        with artefacts.claim(run.Path({str(tmp_path)!r}) / "run"):
            print(artefacts.busy(run.Path({str(tmp_path)!r}) / "run" / ".lock"))
        done = cljax.run(recipe, **options)
        again = cljax.resume(options["out"])
        print(done.resumed, cljax.load(options["out"]).results == again.results)
        """),
        "-OO",
    )  # fmt: skip
    assert out.splitlines() == ["None False", str([True] * 4), "True", "True", "False True"]


def test_folders_are_not_synced_where_they_cannot_be_opened(tmp_path, monkeypatch):
    """On Windows a folder has no handle, and a file to sync must be open for writing."""
    (tmp_path / "file").write_bytes(b"1")
    opened = []

    def open_(path, flags, *mode):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        opened.append(flags)
        return real(path, flags, *mode)

    real, file = os.open, tmp_path / "file"
    monkeypatch.setattr(files, "_WINDOWS", True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_)
        files.sync(tmp_path)
        files.sync(file)
    assert opened == [os.O_RDWR]


def test_a_lock_without_fcntl_is_busy_while_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert not locks.busy(tmp_path / ".lock")
    (tmp_path / ".lock").write_text("")
    assert locks.busy(tmp_path / ".lock")


def test_without_a_home_folder_data_are_asked_for_and_nothing_is_cached_elsewhere(
    tmp_path, monkeypatch
):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "CLJAX_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache.user_cache() is None
    with pytest.raises(UserError, match="home folder that is not known"):
        prepared.data_folder()
    with pytest.raises(UserError, match="home folder that is not known"):
        files.place("~/runs")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
def test_an_output_that_is_full_or_gone_ends_in_a_sentence_or_in_none(tmp_path):
    code = "import sys\nfrom cljax.cli.command import main\nmain(['list'])"
    shell = (
        f'{sys.executable} -c "{code}" > /dev/full; echo $? >> codes;'
        f'{sys.executable} -c "{code}" >&-; echo $? >> codes;'
        f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}} >> codes'
    )
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    (said,) = done.stderr.splitlines()
    assert said == "cljax: the output cannot be written: No space left on device."
    assert (tmp_path / "codes").read_text().split() == ["2", "0", "0"]


def test_handles_that_were_closed_are_taken_before_a_file_can_be(tmp_path, monkeypatch):
    """Else what somebody prints would land in the first file that is opened."""
    taken, none = [], tmp_path / "none"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda handle: os.stat(none))
        patched.setattr(os, "open", lambda path, flags: taken.append(path))
        for name in ("stdout", "stderr"):
            patched.setattr(sys, name, None)
        terminal.prepare()
        print("nowhere", file=sys.stderr)
        writable = sys.stdout.writable()
    assert taken == [os.devnull] * 3 and writable
