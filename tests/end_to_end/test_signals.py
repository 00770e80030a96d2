"""Signals to a command that compiles: the first one waits and says so, the second one does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from cljax.cli.command import main

# A network whose programs take long to compile.
SLOW = ["run", "lamaml", "mnist-rotations", "--sample", "--num-tasks", "2", "--seeds", "1",
        "--samples-per-task", "40", "--net", "mlp:64,64,64,64,64,64", "--inner-steps", "10",
        "--out", "run"]  # fmt: skip
WAITS = "cljax: stopping once this segment or compilation has ended; again stops at once ..."


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_compilation_at_once(first, second, tmp_path, monkeypatch, capsys):
    said = tmp_path / "said"
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")

    def wait_for(text):
        end = time.monotonic() + 300
        while text not in said.read_text():
            assert child.poll() is None and time.monotonic() < end, said.read_text()
            time.sleep(0.01)

    with open(said, "w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "cljax", *SLOW], cwd=tmp_path, stderr=file, stdout=file
        )
    try:
        wait_for("compiling")
        child.send_signal(first)
        wait_for(WAITS)
        child.send_signal(second)
        assert child.wait(timeout=300) == 130, said.read_text()
    finally:
        child.kill()
        child.wait()
    lines = said.read_text().splitlines()
    assert lines[:2] == ["compiling, then training ...", WAITS] and len(lines) == 3
    assert "kept;" not in lines[2] and not (tmp_path / "run" / "checkpoint").exists()
    with pytest.raises(SystemExit) as done:  # the lock has died with the process
        main(["resume", str(tmp_path / "run"), "--keep", "0"])
    assert done.value.code == 2 and "keep is 0" in capsys.readouterr().err
