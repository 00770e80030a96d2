"""Sweeps: lanes are single runs, settings are ranked on validation images, and nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import support
from sweep_support import RATES, SMALL, planned, valid

import cljax
from cljax import sweep
from cljax.engine import learn
from cljax.engine.options import Running
from cljax.errors import UserError
from cljax.recipes import Recipe
from cljax.runner import artefacts
from cljax.runner.config import canonical
from cljax.streams import on_validation

ELSEWHERE = ("time", "device", "versions")  # of results: not what was found


def lanes_of(folder):
    """What every lane found, by its folder, as canonical text."""
    found = {}
    for path in sorted(folder.glob("lanes/*/*/results.json")):
        results = json.loads(path.read_text())
        name = str(path.parent.relative_to(folder))
        found[name] = canonical({k: v for k, v in results.items() if k not in ELSEWHERE})
    return found


def summaries(folder):
    """The files that a merge writes for people and programs to read."""
    return [(folder / name).read_bytes() for name in ("results.json", "table.txt")]


def written(folder):
    """When each file of a lane was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("lanes/*/*/*")}


def stops(monkeypatch, after):
    """Lets sweeps be interrupted after some units of work; never with None."""

    @contextlib.contextmanager
    def signals():
        asked = itertools.count()
        yield lambda: after is not None and next(asked) >= after

    monkeypatch.setattr("cljax.sweep.execute.signals", signals)


@pytest.fixture(name="kept", scope="module")
def _kept(tmp_path_factory):
    """A finished sweep over two options, its plan and its folder; copy it."""
    plan = planned(sweep.grid(lr=[0.1, 0.3], batch_size=[4, 6]), batch_size=None)
    folder = tmp_path_factory.mktemp("kept") / "sweep"
    return plan, sweep.run(plan, folder), folder


@pytest.fixture(name="rates", scope="module")
def _rates(tmp_path_factory):
    """A finished sweep over one option that is a leaf: one program; its plan, its folder."""
    plan, folder = planned(RATES), tmp_path_factory.mktemp("rates") / "sweep"
    return plan, sweep.run(plan, folder), folder


@pytest.fixture(name="copied")
def _copied(kept, tmp_path):
    plan, _, folder = kept
    return plan, Path(shutil.copytree(folder, tmp_path / "copy"))


SMALL_MEMORY = {"capacity": 6, "replay_size": 3, "glances": 2}
LAMAML = cljax.LaMAML(**SMALL_MEMORY)


@pytest.mark.parametrize(
    ("method", "settings", "lanes"),
    [
        (
            LAMAML,
            [{"alpha_init": 0.3, "alpha_lr": 0.05}, {"alpha_init": 0.05, "alpha_lr": 0.3}],
            "map",
        ),
        (
            cljax.resolve.method("ewc"),
            sweep.grid(strength=[1.0, 30.0], lr=[0.1]),
            "threads",
        ),
    ],
    ids=["lamaml", "ewc"],
)
def test_a_lane_is_the_single_run_of_its_setting_and_seed(method, settings, lanes, tmp_path):
    plan = planned(settings, method, lanes=lanes)
    assert len(plan.groups) == 1
    assert sweep.run(plan, tmp_path).results is not None
    stored = lanes_of(tmp_path)
    assert len(stored) == 4 and len(set(stored.values())) == 4
    for lane in (plan.lanes[0], plan.lanes[-1]):
        tuning = on_validation(support.stream(valid=valid), lane.seed)
        single = cljax.run(
            method.replace(**lane.setting), tuning, seeds=[lane.seed], entries="diagonal-last",
            lanes=lanes, **SMALL,
        )  # fmt: skip
        found = json.loads(stored[f"lanes/{lane.name}"])
        assert found["diverged"] == [None] and found["config_hash"] == single.config["config_hash"]
        for part in ("metrics", "evaluations", "diverged"):
            assert canonical(found[part]) == canonical(single.results[part])
        rest = {k: v for k, v in single.results.items() if k not in ELSEWHERE}
        assert canonical(found) == canonical(rest)


def test_a_group_is_compiled_once(tmp_path):
    events = []
    plan = planned(sweep.grid(lr=[0.1, 0.2, 0.3]), seeds=1)
    sweep.run(plan, tmp_path, progress=events.append)
    assert [event.kind for event in events].count("compile") == len(plan.groups) == 1
    assert {event.run for event in events if event.kind == "eval"} == set(range(3))


def test_a_batched_program_has_no_more_lanes_than_its_group(tmp_path, monkeypatch):
    sizes, compiled = [], learn.compile_programs

    def noted(*args, **options):
        sizes.append(options["batching"].lanes)
        return compiled(*args, **options)

    monkeypatch.setattr("cljax.engine.learn.compile_programs", noted)
    settings = [{"batch_size": 4}, {"batch_size": 6, "lr": 0.1}, {"batch_size": 6, "lr": 0.3}]
    sweep.run(planned(settings, batch_size=None, lanes="map"), tmp_path)
    assert sizes == [2, 4]


def test_tests_change_nothing_of_a_sweep(rates, tmp_path):
    """With tests that are all wrong, the table is the same."""
    wrong = support.stream(valid=valid)
    wrong = support.stream(valid=valid, test_x=255 - wrong.test_x, test_y=3 - wrong.test_y)
    assert sweep.run(planned(RATES, stream=wrong), tmp_path).table() == rates[1].table()


def test_each_lane_is_tested_on_the_rows_of_its_seed(kept):
    plan, _, folder = kept
    found = {name: json.loads(text) for name, text in lanes_of(folder).items()}
    for lane in plan.lanes:
        (evaluation,) = found[f"lanes/{lane.name}"]["evaluations"].values()
        assert evaluation["test_counts"] == [len(rows) for rows in valid(lane.seed)]


def test_the_best_comes_first(kept):
    _, done, folder = kept
    means = [setting.mean for setting in done.settings]
    assert means == sorted(means, reverse=True) and len(means) == 4
    assert done.best() == done.settings[0] and done.exit_code == 0
    found = {name: json.loads(text) for name, text in lanes_of(folder).items()}
    for setting in done.settings:
        own = [
            found[f"lanes/{sweep.Lane(setting.setting, seed).name}"]["metrics"]["RA"]["mean"]
            for seed in (1000, 1001)
        ]
        assert list(setting.values) == own and setting.mean == pytest.approx(np.mean(own))
        assert setting.ci95[0] <= setting.mean <= setting.ci95[1]
    lines = done.table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        sweep.label(s.setting) for s in done.settings
    ]
    assert "RA on validation images" in lines[0]
    assert (folder / "table.txt").read_text() == done.table() + "\n"


def test_a_measure_that_is_better_low_is_ranked_low_first(tmp_path):
    plan = planned(sweep.grid(lr=[0.01, 0.1, 0.5]), entries="lower", metric="forgetting")
    means = [setting.mean for setting in sweep.run(plan, tmp_path).settings]
    assert len(set(means)) > 1 and means == sorted(means)


def test_a_diverged_setting_is_last_and_counts_in_no_mean(tmp_path):
    plan = planned(
        sweep.grid(alpha_init=[1e30, 0.1]), "lamaml", seeds=3,
        recipe=Recipe("lamaml", "rolled", method_options={**SMALL_MEMORY, "clip_norm": None}),
    )  # fmt: skip
    done = sweep.run(plan, tmp_path)
    good, bad = done.settings
    assert good.setting == {"alpha_init": 0.1} and done.best() == good
    assert good.mean == pytest.approx(np.mean(good.values)) and set(good.diverged) == {None}
    assert bad.mean is bad.std is bad.ci95 is None and set(bad.values) == {None}
    step = min(bad.diverged)
    line = done.table().splitlines()[-1]
    assert line.strip().startswith("alpha_init=1e+30") and "diverged" in line
    assert "3 of 3" in line and f"first at step {step}" in line
    assert sweep.status(tmp_path).startswith("6 of 6 lanes are finished, 3 of them diverged;")


def test_one_diverged_seed_ranks_its_setting_last_but_the_others_count(copied):
    """As if the first seed of the best setting had diverged at update 5."""
    plan, folder = copied
    best = sweep.load(folder).best()
    path = folder / "lanes" / sweep.Lane(best.setting, 1000).name / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "diverged": [5]}))
    artefacts.seal(path.parent, results["config_hash"])
    done = sweep.merge(folder)
    last = done.settings[-1]
    assert last.setting == best.setting and done.best().setting != best.setting
    assert last.mean == best.values[1] and last.ci95 is None
    assert list(last.values) == [None, best.values[1]] and list(last.diverged) == [5, None]
    assert "1 of 2 diverged, first at step 5" in done.table().splitlines()[-1]


def test_there_is_no_best_when_all_diverged(tmp_path):
    done = sweep.run(planned(sweep.grid(lr=[1e30, 1e31]), seeds=1), tmp_path)
    assert all(setting.mean is None for setting in done.settings)
    assert "diverged" in done.table() and (tmp_path / "plots" / "heat_map.png").exists()
    with pytest.raises(UserError, match="Every setting .* diverged"):
        done.best()


def test_tests_choose_no_setting(tmp_path):
    done = sweep.run(planned(RATES, on="test", seeds=1), tmp_path)
    assert len(done.settings) == 2 and "RA on test images" in done.table()
    with pytest.raises(UserError, match="test images, which choose no setting"):
        done.best()


def test_a_heat_map_is_drawn_over_the_options_that_vary(kept):
    _, _, folder = kept
    assert (folder / "plots" / "heat_map.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_settings_of_different_options_are_compared(tmp_path):
    done = sweep.run(planned([{"lr": 0.3}, {"clip_norm": 1.0}, {}], seeds=1), tmp_path)
    names = {sweep.label(setting.setting) for setting in done.settings}
    assert names == {"lr=0.3", "clip_norm=1", "default"}


def test_shards_together_are_the_whole_sweep(rates, tmp_path):
    plan, whole, folder = rates
    assert whole.results is not None
    out = tmp_path / "shards"
    assert sweep.run(plan, out, shard=(0, 2)).results is None
    assert len(lanes_of(out)) == 2 and not (out / "results.json").exists()
    assert sweep.status(out).startswith("2 of 4 lanes are finished; the last one ended ")
    with artefacts.claim(out, ".lock-1-of-2"):
        assert "at work: shard 1-of-2;" in sweep.status(out)
        with pytest.raises(UserError, match="in use by another process"):
            sweep.run(plan, out, shard=(1, 2))
    half = sweep.load(out)
    assert half.results is None
    for refused in (lambda: sweep.merge(out), lambda: half.settings, half.best, half.table):
        with pytest.raises(UserError, match="2 of 4 lanes are finished"):
            refused()
    assert not (out / "results.json").exists() and not (out / "table.txt").exists()
    before = written(out)
    done = sweep.run(plan, out, shard=(1, 2))
    assert done.exit_code == 0 and done.table() == whole.table()
    assert sweep.status(out).startswith("4 of 4 lanes are finished; ")
    assert "at work" not in sweep.status(out)
    assert lanes_of(out) == lanes_of(folder)
    assert summaries(out) == summaries(folder)
    assert before.items() <= written(out).items()
    assert not (out / "checkpoint").exists() and not list(out.glob(".lock*"))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (1, -1)], ids=str)
def test_a_shard_that_is_none_of_them_is_refused(shard, tmp_path):
    with pytest.raises(UserError, match=f"shard is {shard[0]}/{shard[1]}"):
        sweep.run(planned(RATES), tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "after"),
    [({"lanes": "threads"}, 30), ({"lanes": "map", "lanes_at_a_time": 2}, 16)],
    ids=str,
)
def test_an_interrupted_sweep_goes_on_to_the_same_results(options, after, tmp_path, monkeypatch):
    plan = planned(sweep.grid(lr=[0.1, 0.3], seed=range(2)) + [{"lr": 0.2, "seed": 0}], **options)
    assert len(plan.lanes) == 5
    whole = sweep.run(plan, tmp_path / "whole")
    often = Running(checkpoint_every="1", segment_seconds=1e-9)
    out, codes = tmp_path / "broken", []
    stops(monkeypatch, after)
    while not codes or codes[-1] == 75:
        before = written(out)
        done = sweep.run(plan, out, running=often)
        codes.append(done.exit_code)
        assert before.items() <= written(out).items()  # what is finished is let alone
        if done.exit_code:
            assert done.exit_code == 75 and done.results is None
            assert not (out / "results.json").exists() and sweep.load(out).results is None
        assert len(codes) < 30
    assert len(codes) > 1 and codes[-1] == 0
    assert done.table() == whole.table()
    assert lanes_of(out) == lanes_of(tmp_path / "whole")
    assert summaries(out) == summaries(tmp_path / "whole")
    assert not (out / "checkpoint").exists()


def test_an_interruption_without_checkpoints_keeps_what_is_finished(tmp_path, monkeypatch):
    plan = planned(RATES, lanes="sequential", lanes_at_a_time=1)
    never = Running(checkpoint_every="never", segment_seconds=1e-9)
    stops(monkeypatch, 20)
    assert sweep.run(plan, tmp_path, running=never).exit_code == 75
    before = written(tmp_path)
    assert 0 < len(lanes_of(tmp_path)) < 4 and not (tmp_path / "checkpoint").exists()
    stops(monkeypatch, None)
    assert sweep.run(plan, tmp_path, running=never).results is not None
    assert before.items() <= written(tmp_path).items()


def test_an_interrupted_sweep_compiles_nothing_more(tmp_path, monkeypatch):
    """By a signal while the last lane of a group ends."""

    @contextlib.contextmanager
    def signals():
        yield lambda: len(lanes_of(tmp_path)) == 2

    monkeypatch.setattr("cljax.sweep.execute.signals", signals)
    plan, events = planned(sweep.grid(batch_size=[4, 6]), batch_size=None), []
    assert sweep.run(plan, tmp_path, progress=events.append).exit_code == 75
    assert len(lanes_of(tmp_path)) == 2
    assert [event.kind for event in events].count("compile") == 1


def test_what_a_kill_leaves_of_a_finished_group_is_removed(tmp_path, monkeypatch):
    """As if killed after the last lane's files, before its checkpoints are removed."""
    plan, often = planned(RATES, seeds=1), Running(checkpoint_every="1", segment_seconds=1e-9)

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(artefacts, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(plan, tmp_path, running=often)
    assert (tmp_path / "checkpoint").exists() and not (tmp_path / "results.json").exists()
    assert sweep.run(plan, tmp_path, running=often).results is not None
    assert not (tmp_path / "checkpoint").exists()


def test_a_finished_sweep_is_read_back_without_training(copied, kept):
    plan, folder = copied
    before, files, events = written(folder), summaries(folder), []
    again = sweep.run(plan, folder, progress=events.append)
    assert not events and written(folder) == before and summaries(folder) == files
    loaded = sweep.load(folder)
    for done in (again, loaded):
        assert done.exit_code == 0 and done.table() == kept[1].table()
        assert done.best().setting == kept[1].best().setting
        assert canonical(done.results) == canonical(kept[1].results)
    assert loaded.config["lanes"][0] == {"seed": 1000, "setting": {"batch_size": 4, "lr": 0.1}}
    assert sweep.merge(folder).table() == loaded.table()


def test_a_lane_that_is_gone_is_run_again_alone(copied, kept):
    plan, folder = copied
    gone = plan.lanes[3]
    before = written(folder)
    shutil.rmtree(folder / "lanes" / gone.name)
    events = []
    sweep.run(plan, folder, progress=events.append)
    assert {event.run for event in events if event.run >= 0} == {3}
    changed = {path for path, at in written(folder).items() if before[path] != at}
    assert {path.parent for path in changed} == {folder / "lanes" / gone.name}
    assert lanes_of(folder) == lanes_of(kept[2]) and summaries(folder) == summaries(kept[2])


@pytest.mark.parametrize(
    "change",
    [{"seeds": 1}, {"on": "test"}, {"metric": "LA"}, {"epochs": 2}, {"entries": "lower"}],
    ids=str,
)
def test_a_folder_of_another_sweep_is_refused(change, copied):
    _, folder = copied
    files = summaries(folder)
    other = {"batch_size": None, **change}
    with pytest.raises(UserError, match="holds another sweep"):
        sweep.run(planned(sweep.grid(lr=[0.1, 0.3], batch_size=[4, 6]), **other), folder)
    assert summaries(folder) == files


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="thesis.txt"):
            sweep.run(planned(RATES), place)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("read", [sweep.load, sweep.status, sweep.merge])
def test_a_folder_without_a_sweep_is_refused(read, tmp_path):
    with pytest.raises(UserError, match="no sweep.json"):
        read(tmp_path)


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["lanes", "setting", "seed"])
def test_a_file_in_the_place_of_a_lanes_folder_is_named_and_stays(depth, tmp_path):
    plan = planned(sweep.grid(lr=[0.1]), seeds=1)
    done = sweep.run(plan, tmp_path)
    taken = Path(*(tmp_path / "lanes" / plan.lanes[0].name).parts[: len(tmp_path.parts) + depth])
    shutil.rmtree(taken)
    taken.write_text("mine")
    said = f"{re.escape(str(taken))} is a file in the place of a lane's folder"
    for call in (lambda: sweep.run(plan, tmp_path), lambda: sweep.merge(done.path)):
        with pytest.raises(UserError, match=said):
            call()
    assert "1 damaged" in sweep.status(tmp_path) and taken.read_text() == "mine"
    taken.unlink()
    assert sweep.run(plan, tmp_path).best().setting == {"lr": 0.1}
