"""Command lines and calls that a seeded generator draws: no traceback, no defect, no hang."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_calls import call, drawn, public
from fuzz_support import command_line, folders_of, run_line, wrong_with

LINES, CALLS, SEED = 300, 150, 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with nothing of the user's around it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    return tmp_path


def _faults_of_lines(num, rng, folder, **how):
    faults, codes = [], []
    for _ in range(num):
        outcome = run_line(command_line(rng, folder, **how))
        wrong = wrong_with(outcome)
        codes.append(outcome.code)
        if wrong is not None:
            faults.append(f"cljax {outcome.what}: {wrong}: {outcome.said[-400:]}")
    return faults, codes


def test_thirty_command_lines_are_answered(folder):
    faults, codes = _faults_of_lines(30, np.random.default_rng(SEED), folder, trains=False)
    assert not faults, "\n".join(faults)
    assert codes.count(2) > 20


@pytest.mark.slow
def test_three_hundred_command_lines_are_answered(folder):
    folders_of(folder)
    faults, codes = _faults_of_lines(LINES, np.random.default_rng(SEED), folder)
    assert not faults, "\n".join(faults)
    assert codes.count(0) > 20 and codes.count(2) > 200  # right ones, and wrong ones


@pytest.mark.slow
def test_a_hundred_and_fifty_calls_are_answered(folder):
    folders_of(folder)
    calls, rng = public(folder), np.random.default_rng(SEED)
    faults = [fault for _ in range(CALLS) if (fault := call(*drawn(rng, calls))) is not None]
    assert not faults, "\n".join(faults)
