"""Every file of a finished folder is checked: a damaged one is a sentence, never a number."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import random
import shutil

import pytest
from folders_support import (
    METHOD,
    SMALL,
    call,
    contents,
    files_of,
    one_sentence,
    rewrite,
    small_plan,
    small_run,
)  # fmt: skip
from support import stream

import cljax
from cljax import sweep
from cljax.errors import Interrupted, UserError
from cljax.runner import artefacts
from cljax.storage import files

NUM_FLIPS, NUM_CUTS = 250, 60


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy it to change it for good."""
    return small_run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep; copy it to change it for good."""
    return sweep.run(small_plan(), tmp_path_factory.mktemp("sweeps") / "sweep").path


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def refused(read, folder):
    """The one sentence with which a folder is refused."""
    with pytest.raises(UserError) as raised:
        read(folder)
    sentence = str(raised.value)
    assert "\n" not in sentence and sentence.endswith(".") and str(folder) in sentence
    return sentence


def flips(folder, seed, num_flips=NUM_FLIPS, num_cuts=NUM_CUTS):
    """(path, how it was, how it is): files with one bit of them changed, and cut ones."""
    rng, paths = random.Random(seed), files_of(folder)
    for i in range(num_flips + num_cuts):
        path = paths[i % len(paths)]
        whole = path.read_bytes()
        if i < num_flips:
            at = rng.randrange(len(whole))
            changed = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        else:
            changed = whole[: rng.randrange(len(whole))]
        yield path, whole, changed


def test_no_flipped_bit_and_no_cut_of_a_run_is_read(finished):
    for path, whole, changed in flips(finished, 0):
        path.write_bytes(changed)
        sentence = refused(cljax.load, finished)
        assert path.name in sentence or "files.json" in sentence or path.name == "files.json"
        path.write_bytes(whole)
    assert cljax.load(finished).resumed


def test_no_flipped_bit_and_no_cut_of_a_sweep_is_read(swept):
    for path, whole, changed in flips(swept, 1, 130, 30):
        path.write_bytes(changed)
        refused(sweep.load, swept)
        lane = path.relative_to(swept).parts[0] == "lanes"
        if lane:
            assert "2 of 3 lanes are finished, 1 damaged" in sweep.status(swept)
        elif path.name in ("sweep.json", "files.json"):
            with contextlib.suppress(UserError):  # of files.json, only what it says of sweep.json
                sweep.status(swept)
        else:
            assert sweep.status(swept).startswith("3 of 3 lanes are finished; ")
        if lane or path.name == "sweep.json":
            refused(sweep.merge, swept)
        path.write_bytes(whole)
    assert sweep.load(swept).results is not None


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "manifest/stream.npz", "plots/over_time.png"]
)
def test_a_missing_file_is_named(name, copied):
    (copied / name).unlink()
    assert f"{copied / name} is missing" in refused(cljax.load, copied)


@pytest.mark.parametrize("name", ["rule/seed0", "plots/mine.png", "manifest/a/b", "outer.npz"])
def test_a_file_that_no_run_wrote_is_named(name, copied):
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_bytes(b"1")
    assert f"{copied / name} was not written" in refused(cljax.load, copied)


@pytest.mark.parametrize(
    "name",
    ["report.html", "mine.csv", "report_figures/a.png", "notes.md", "tensorboard/x", ".DS_Store",
     "plots/.DS_Store", "checkpoint/00000001/arrays", ".lock"],
)  # fmt: skip
def test_reports_notes_and_what_a_kill_leaves_are_not_of_the_run(name, copied):
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_bytes(b"1")
    assert cljax.load(copied).resumed


def test_a_link_in_the_place_of_a_folder_is_named(copied, tmp_path):
    shutil.move(copied / "plots", tmp_path / "elsewhere")
    (copied / "plots").symlink_to(tmp_path / "elsewhere")
    assert "plots" in refused(cljax.load, copied)


def test_results_of_another_run_are_refused_even_with_their_hash(copied, tmp_path):
    other = cljax.run(METHOD, stream(), seeds=1, **SMALL).results
    (copied / "results.json").write_text(json.dumps(other))
    assert "results.json is not what was written" in refused(cljax.load, copied)
    artefacts.seal(copied, json.loads((copied / "config.json").read_text())["config_hash"])
    assert "results.json is of another run" in refused(cljax.load, copied)


@pytest.mark.parametrize(
    "change",
    [{"seeds": [0, 7]}, {"batch_size": 5}, {"config_hash": "0" * 64}],
    ids=str,
)
def test_a_config_that_is_not_its_hash_is_refused_even_when_it_is_sealed(change, copied):
    rewrite(copied, "config.json", lambda config: config | change)
    assert "config.json" in refused(cljax.load, copied)


def test_a_folder_of_an_earlier_version_is_told_as_one(copied, swept, tmp_path):
    (copied / "files.json").unlink()
    assert "an earlier version made it" in refused(cljax.load, copied)
    other = shutil.copytree(swept, tmp_path / "sweep")
    (other / "files.json").unlink()
    for read in (sweep.load, sweep.status, sweep.merge):
        assert "an earlier version made it" in refused(read, other)


def test_every_command_refuses_a_damaged_run_in_a_sentence(copied, tmp_path, capsys):
    text = (copied / "results.json").read_text()
    edited = text.replace('"mean": 0.', '"mean": 0.99', 1)
    assert edited != text
    (copied / "results.json").write_text(edited)
    for arguments in (
        ["report", copied, "--out", tmp_path / "a.html"], ["resume", copied], ["cite", copied],
    ):  # fmt: skip
        assert one_sentence(*(said := call(capsys, *arguments))), said
        assert str(copied / "results.json") in said[2]
    assert "results.json" in refused(lambda folder: small_run(folder), copied)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("name", ["table.txt", "plots/heat_map.png", "lanes/*/*/results.json"])
def test_a_damaged_file_of_a_sweep_is_refused_by_whatever_reads_it(name, swept, tmp_path, capsys):
    folder = shutil.copytree(swept, tmp_path / "sweep")
    path = sorted(folder.glob(name))[0]
    path.write_bytes(path.read_bytes()[:-2])
    assert path.name in refused(sweep.load, folder)
    for arguments in (["report", folder, "--out", tmp_path / "a.html"], ["cite", folder]):
        assert one_sentence(*(said := call(capsys, *arguments))) and path.name in said[2]


def test_removed_results_are_told_from_a_kill_before_they_were_written(copied, tmp_path, capsys):
    (copied / "results.json").unlink()
    for arguments in (
        ["report", copied, "--out", tmp_path / "a.html"], ["resume", copied], ["cite", copied],
    ):  # fmt: skip
        assert one_sentence(*(said := call(capsys, *arguments))), said
        assert f"{copied / 'results.json'} is missing" in said[2]
    for read in (cljax.load, small_run):
        assert f"{copied / 'results.json'} is missing" in refused(read, copied)
    (copied / "checkpoint").mkdir()  # as a kill leaves it
    assert not small_run(copied).resumed and not (copied / "checkpoint").exists()


def test_a_damaged_lane_runs_again_alone_and_gives_the_same_sweep(swept, tmp_path, capsys):
    folder, plan = shutil.copytree(swept, tmp_path / "sweep"), small_plan()
    place = folder / "lanes" / plan.lanes[1].name
    damaged = bytearray((place / "results.json").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (place / "results.json").write_bytes(damaged)
    code, out, _ = call(capsys, "sweep", "status", folder)
    assert code == 0 and f"1 damaged ({plan.lanes[1].name}), to be run again" in out
    for arguments in (["sweep", "merge", folder], ["report", folder]):
        said = call(capsys, *arguments)
        assert one_sentence(*said) and plan.lanes[1].name in said[2]
    events = []
    done = sweep.run(plan, folder, progress=events.append)
    assert {event.run for event in events if event.run >= 0} == {1}
    (note,) = [event.note for event in events if event.kind == "note"]
    assert plan.lanes[1].name in note and "results.json" in note
    assert done.results is not None and sweep.load(folder).results == sweep.load(swept).results


@pytest.mark.parametrize("name", ["results.json", "table.txt", "plots/heat_map.png"])
def test_a_damaged_summary_of_whole_lanes_is_made_again(name, swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "sweep")
    (folder / name).write_bytes((folder / name).read_bytes()[:-7])
    events = []
    assert sweep.run(small_plan(), folder, progress=events.append).results is not None
    assert not [event for event in events if event.run >= 0]
    assert (folder / name).read_bytes() == (swept / name).read_bytes()


class Killed(BaseException):
    """What a kill is to the code that it ends."""


def test_a_kill_between_any_two_writes_leaves_a_run_that_goes_on(finished, tmp_path, monkeypatch):
    """Each rename in turn is the last thing that a process does."""
    config, results = (
        json.loads((finished / name).read_text()) for name in ("config.json", "results.json")
    )

    def write(folder):
        artefacts.begin(folder, config)
        files.write_bytes(folder / "metrics.jsonl", b"{}\n")
        artefacts.finish(folder, results)

    replace = os.replace
    for fatal in range(5):
        folder, count = tmp_path / str(fatal), itertools.count()

        def until(a, b, count=count, fatal=fatal):
            if next(count) == fatal:
                raise Killed
            replace(a, b)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", until)
            patched.setattr(files.Path, "unlink", lambda self, **options: None)
            with pytest.raises(Killed):
                write(folder)
        assert not artefacts.finished(folder, config)
        assert [path for path in files_of(folder) if path.suffix == ".tmp"]
        artefacts.clean(folder)
        write(folder)
        assert artefacts.finished(folder, config) and artefacts.load(folder)[1] == results
        assert {path.name for path in files_of(folder)} == {
            "config.json", "files.json", "metrics.jsonl", "results.json",
        }  # fmt: skip


def test_a_changed_config_of_an_unfinished_run_is_refused(finished, tmp_path):
    config = json.loads((finished / "config.json").read_text())
    for i, change in enumerate(({"commit": "0"}, {"begun_as": {}}, {"versions": {}})):
        folder = tmp_path / str(i)
        artefacts.begin(folder, config)
        (folder / "config.json").write_text(json.dumps(config | change))
        assert "config.json is not what was written" in refused(cljax.resume, folder)


def test_times_add_up_over_attempts(tmp_path, monkeypatch):
    runs = importlib.import_module("cljax.runner.run")
    asked = iter(range(10**6))
    answers = contextlib.nullcontext(lambda: next(asked) > 2)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "signals", lambda: answers)
        with pytest.raises(Interrupted) as stopped:
            small_run(tmp_path / "run")
    assert stopped.value.kept and stopped.value.code == 75
    newest = sorted((tmp_path / "run" / "checkpoint").iterdir())[-1] / "position.json"
    content = json.loads(newest.read_text())
    before = content["position"]["time"]
    assert set(before) == {"data_s", "compile_s", "train_s", "eval_s", "total_s"}
    assert before["total_s"] >= before["data_s"] + before["compile_s"] > 0
    content["position"]["time"] = {name: 1000.0 + i for i, name in enumerate(sorted(before))}
    newest.write_text(json.dumps(content))  # as if the first attempt had taken so long
    hashes = newest.with_name("sha256.json")
    stored = json.loads(hashes.read_text())
    hashes.write_text(json.dumps(stored | {"position.json": files.digest(newest)}))
    after = small_run(tmp_path / "run").results["time"]
    for name, earlier in content["position"]["time"].items():
        assert earlier < after[name] < earlier + 500, name
    assert contents(tmp_path / "run")
