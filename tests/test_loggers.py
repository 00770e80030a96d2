"""Runs log to what has the calls of wandb and trackio."""

from __future__ import annotations

import types

import pytest
import support

import cljax
from cljax.engine.lanes import Event
from cljax.errors import UserError


class Recorder:
    def __init__(self):
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, numbers):
        self.calls.append(("log", numbers))

    def finish(self):
        self.calls.append(("finish", None))


def trained(log):
    return cljax.run(
        cljax.Finetune(), support.stream(), net="mlp:3", seeds=2, progress=log, lanes="sequential"
    )


def test_losses_and_accuracies_of_each_seed_are_logged_between_init_and_finish():
    recorder = Recorder()
    with cljax.loggers.log_to(recorder, project="mine") as log:
        run = trained(log)
    first, *logged, last = recorder.calls
    assert first == ("init", {"project": "mine"}) and last == ("finish", None)
    numbers = [numbers for kind, numbers in logged if kind == "log"]
    names = {name for some in numbers for name in some}
    assert names == {f"{n}/seed_{s}" for n in ("loss", "accuracy", "update") for s in (0, 1)}
    accuracies = [some["accuracy/seed_1"] for some in numbers if "accuracy/seed_1" in some]
    assert accuracies[-1] == pytest.approx(run.metric("RA")[1])


def test_lanes_of_a_sweep_are_curves_of_their_own(tmp_path):
    recorder = Recorder()
    settings = cljax.sweep.grid(lr=[0.1, 0.2])
    plan = cljax.sweep.plan(cljax.Finetune(), support.stream(), settings, seeds=[4], net="mlp:3")
    with cljax.loggers.log_to(recorder) as log:
        cljax.sweep.run(plan, tmp_path, progress=[True, log])
    names = {name for kind, numbers in recorder.calls[1:-1] for name in numbers}
    assert names == {
        f"{n}/lr={rate}/seed-4" for n in ("loss", "accuracy", "update") for rate in (0.1, 0.2)
    }


def test_it_is_finished_after_an_error_and_says_what_diverged():
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        with cljax.loggers.log_to(recorder) as log:
            log(Event("diverged", 0, 3, 17, 40, 1, None, "params"))
            raise ZeroDivisionError
    assert recorder.calls[1:] == [
        ("log", {"diverged/seed_3": 1.0, "update/seed_3": 17}),
        ("finish", None),
    ]


def test_a_package_that_is_absent_or_no_logger_is_one_sentence():
    with pytest.raises(UserError, match="^no_such_logger is not installed: pip install no_such"):
        with cljax.loggers.log_to("no_such_logger"):
            pass
    lacking = types.SimpleNamespace(init=print, log=print)
    with pytest.raises(UserError, match="it lacks finish"):
        with cljax.loggers.log_to(lacking):  # type: ignore[arg-type]
            pass


def test_wandb_takes_it_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with cljax.loggers.log_to("wandb", project="t", mode="offline", dir=str(tmp_path)) as log:
        trained(log)
        assert wandb.run.summary["loss/seed_1"] > 0
    assert wandb.run is None and list(tmp_path.rglob("*.wandb"))


def test_trackio_takes_it_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    with cljax.loggers.log_to("trackio", project="t") as log:
        trained(log)
    assert any(path.is_file() and path.stat().st_size for path in tmp_path.rglob("*"))
