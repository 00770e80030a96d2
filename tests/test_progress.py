"""What a run shows: the bar, the journal, TensorBoard files."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import support

import cljax
from cljax.engine.lanes import Event
from cljax.errors import UserError
from cljax.runner import progress

EVENTS = [
    Event("compile"),
    Event("segment", 0, 3, 10, 40, 0, 2.5, num_tasks=4, share=0.25),
    Event("eval", 0, 3, 10, 40, 0, 0.5),
    Event("segment", 1, 4, 20, 40, 1, 1.5, num_tasks=4, share=0.5),
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


def test_a_terminal_shows_seeds_task_share_loss_and_accuracy_in_one_place(monkeypatch):
    text = drawn(monkeypatch, Terminal())
    *lines, last = text.split("\r")[1::2]
    assert [line.rstrip() for line in lines] == [
        "compiling",
        "seed 1 of 2, task 1 of 4, 12 %, loss 2.500",
        "seed 1 of 2, task 1 of 4, 12 %, loss 2.500, accuracy 50.0 %",
        "seeds 1-2 of 2, task 1 of 4, 38 %, loss 1.500, accuracy 50.0 %",
        "",  # makes room for each sentence
        "",
    ]
    assert not last.strip() and text.count("\n") == 2
    assert all(len(line) == 199 for line in lines)


def test_the_time_left_follows_the_pace_of_this_process(monkeypatch):
    now = iter([0.0, 100.0, 110.0])  # compiling for 100 s counts for nothing
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(5) as show:
        show(Event("segment", 1, 1, 500, 1000, 9, 2.5, num_tasks=20, share=0.5))  # resumed
        show(Event("segment", 1, 1, 600, 1000, 10, 2.5, num_tasks=20, share=0.6))  # a tenth in 10 s
    text = sys.stderr.getvalue()
    assert "seed 2 of 5, task 11 of 20, 12 %, about 7 min left" in text
    assert text.count("left") == 1


def test_a_run_that_diverged_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(2) as show:
        show(Event("segment", 0, 3, 10, 40, 0, 2.5, num_tasks=4, share=0.25))
        show(Event("diverged", 0, 3, 10, 40, 0, None, "params/Dense_0/bias"))
        show(Event("segment", 1, 4, 20, 40, 1, 1.5, num_tasks=4, share=0.5))
        show(Event("segment", 0, 3, 20, 40, 1, 1.5, num_tasks=4, share=0.5))  # in a batch of both
    lines = sys.stderr.getvalue().split("\r")[1::2]
    assert sum("seed 2 of 2, task 2 of 4, 75 %" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "5 s"), (41, "40 s"), (89, "90 s"), (91, "2 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_durations_are_as_precise_as_estimates(seconds, text):
    assert progress._duration(seconds) == text


def test_where_nothing_is_drawn_in_place_a_line_comes_every_30_seconds(monkeypatch):
    now = iter([0.0, 10.0, 29.0, 31.0, 60.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(1) as show:
        for step in range(1, 6):
            show(Event("segment", 0, 0, step, 10, 0, 1.0, share=step / 10))
    lines = sys.stderr.getvalue().splitlines()
    assert [line[:26] for line in lines] == [
        "seed 1 of 1, task 1, 30 %,",
        "seed 1 of 1, task 1, 50 %,",
    ]


def test_a_run_in_python_shows_its_progress_unless_told_not_to(monkeypatch):
    for asked, drawn in ((None, True), (True, True), (False, False), (lambda event: None, False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        cljax.run(cljax.Finetune(), support.stream(), net="mlp:3", seeds=1, progress=asked)
        assert ("seed 1 of 1, task" in sys.stderr.getvalue()) == drawn
    for asked, match in ((3, "progress is 3, but it must be a function"),
                         ([True, 3], "progress holds 3, but it must be a function")):  # fmt: skip
        with pytest.raises(UserError, match=match):
            cljax.run(cljax.Finetune(), support.stream(), net="mlp:3", seeds=1, progress=asked)


@pytest.mark.parametrize("line", [True, False])
def test_functions_get_each_event_beside_the_line(monkeypatch, line):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    one, other = [], []
    asked = [line, one.append, other.append]
    run = cljax.run(cljax.Finetune(), support.stream(), net="mlp:3", seeds=1, progress=asked)
    assert ("seed 1 of 1, task" in sys.stderr.getvalue()) == line
    assert one == other and {event.kind for event in one} >= {"compile", "segment", "eval"}
    assert [event.value for event in one if event.kind == "eval"][-1] == run.metric("RA")[0]


@pytest.mark.parametrize("method", [cljax.BiC(), cljax.Finetune()])
def test_events_count_updates_of_tasks_and_the_share_of_all_with_phases(method):
    events = []
    task = np.repeat(np.arange(3, dtype=np.int32), 12)
    y = 2 * task + np.arange(36, dtype=np.int32) % 2
    part = np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32), y, task
    stream = cljax.streams.from_arrays(part, test=part, val=0.0, dtype="float32")
    cljax.run(method, stream, net="mlp:3", seeds=2, epochs=2, progress=events.append)
    numbers = [event for event in events if event.kind in ("segment", "eval")]
    assert len({event.num_steps for event in numbers}) == 1
    for run in range(2):
        segments = [event for event in numbers if event.run == run and event.kind == "segment"]
        shares, steps = [e.share for e in segments], [e.step for e in segments]
        assert shares == sorted(set(shares)) and 0 < shares[0] and shares[-1] == 1
        assert steps == sorted(steps) and steps[-1] == segments[0].num_steps
        evals = [event.step for event in numbers if event.run == run and event.kind == "eval"]
        assert evals == sorted(evals) and evals[-1] == segments[0].num_steps


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
