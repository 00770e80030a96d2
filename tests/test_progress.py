"""What a run shows: the bar, the journal, TensorBoard files."""

from __future__ import annotations

import io
import json
import sys

import pytest

from cljax.engine.lanes import Event
from cljax.errors import UserError
from cljax.runner import progress

EVENTS = [
    Event("compile"),
    Event("segment", 0, 3, 10, 40, 0, 2.5),
    Event("eval", 0, 3, 10, 40, 0, 0.5),
    Event("segment", 1, 4, 20, 40, 1, 1.5),
    Event("note", note="The checkpoint x is skipped: y is damaged."),
    Event("diverged", 1, 4, 17, 40, 1, None, "params/Dense_0/bias"),
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream, names=()):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(2, names) as show:
        for event in EVENTS:
            show(event)
    return stream.getvalue()


def test_without_a_terminal_only_sentences_are_printed(monkeypatch):
    lines = drawn(monkeypatch, io.StringIO()).splitlines()
    assert lines == [
        "compiling, then training ...",
        "The checkpoint x is skipped: y is damaged.",
        "Seed 4 diverged in task 1 at update 17: params/Dense_0/bias is not finite.",
    ]


def test_a_lane_is_called_by_its_name(monkeypatch):
    text = drawn(monkeypatch, io.StringIO(), ["a", "b=2/seed-4"])
    assert "b=2/seed-4 diverged in task 1" in text


def test_on_a_terminal_the_bar_has_task_update_loss_and_accuracy(monkeypatch):
    text = drawn(monkeypatch, Terminal())
    for part in ("task 2, update 30", "38 %", "loss 1.500", "accuracy 50.0 %", "is damaged"):
        assert part in text, part


def test_the_journal_is_appended_to_and_loses_only_a_cut_line(tmp_path):
    path, seen = tmp_path / "metrics.jsonl", []
    with progress.journal(path, seen.append, goes_on=True) as record:
        for event in EVENTS:
            record(event)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["segment", "eval", "segment", "diverged"]
    assert seen == EVENTS
    with open(path, "a") as file:
        file.write('{"kind": "segm')
    with progress.journal(path, None, goes_on=True) as record:
        record(EVENTS[1])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*lines, lines[0]]
    with progress.journal(path, None, goes_on=False) as record:
        record(EVENTS[2])
    assert len(path.read_text().splitlines()) == 1


def test_the_journal_can_be_read_while_it_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with progress.journal(path, None, goes_on=False) as record:
        for n, event in enumerate(EVENTS[1:4], 1):
            record(event)
            assert len([json.loads(line) for line in path.read_text().splitlines()]) == n


def test_tensorboard_files_hold_a_curve_a_seed(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    with progress.tensorboard(tmp_path, None) as show:
        for event in EVENTS:
            show(event)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert b"loss/seed_3" in content and b"accuracy/seed_3" in content and b"loss/seed_4" in content


def test_without_the_extra_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'cljax\[tensorboard\]'"):
        with progress.tensorboard(tmp_path, None):
            pass
