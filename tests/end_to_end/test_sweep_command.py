"""The command ``cljax sweep``, as a user types it, in a temporary folder."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from cljax import sweep
from cljax.cli import command as cli
from cljax.cli import job as jobs

DATA = ["mnist-rotations", "--sample", "--num-tasks", "2", "--samples-per-task", "60"]
GRID = ["--over", "alpha_init=0.05,0.1", "--over", "batch_size=10,20", "--seeds", "2"]
SWEEP = ["sweep", "lamaml", *DATA, "--net", "mlp:8", *GRID]
SETTINGS = {f"alpha_init={a},batch_size={b}" for a in ("0.05", "0.1") for b in ("10", "20")}
PATIENCE = 280  # seconds for a process


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return done.value.code, captured.out, captured.err


def written(folder):
    """When each file of a lane was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("lanes/*/*/*")}


def rows(out):
    """The settings of a printed table, in its order."""
    return re.findall(r"^  (\S+=\S+) +\d", out, re.MULTILINE)


@pytest.fixture(name="unbroken", scope="module")
def _unbroken(tmp_path_factory):
    """A sweep in a folder, and what it said; copy the folder."""
    folder = tmp_path_factory.mktemp("unbroken") / "sweep"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as done:
            cli.main([*SWEEP, "--out", str(folder)])
    assert done.value.code == 0, err.getvalue()
    return folder, types.SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(name="copied")
def _copied(unbroken, tmp_path):
    return shutil.copytree(unbroken[0], tmp_path / "copy")


def test_a_sweep_prints_every_setting_and_the_run_it_suggests(unbroken):
    folder, done = unbroken
    assert "lamaml on mnist-rotations[sample]: RA on validation images" in done.stdout
    assert len(rows(done.stdout)) == 4 and set(rows(done.stdout)) == SETTINGS
    assert f"\n  {folder}\n" in done.stdout
    assert done.stderr.startswith("8 lanes (4 settings, 2 seeds), 2 compiled programs, ")
    best = sweep.load(folder).best()
    assert sweep.label(best.setting) == rows(done.stdout)[0]
    (line,) = re.findall(r"cljax run .*", done.stdout)
    arguments = shlex.split(line)[2:]
    job = jobs.job_of("run", arguments, jobs.run_flags())
    assert job.recipe.method == "lamaml" and job.recipe.stream == "mnist-rotations"
    assert job.recipe.method_options["alpha_init"] == best.setting["alpha_init"]
    assert job.recipe.batch_size == best.setting["batch_size"]
    assert job.recipe.stream_options["samples_per_task"] == 60
    assert job.recipe.stream_options["sample"] and job.flags["seeds"] == 5
    assert jobs.options_of_run(job).tuning == sweep.load(folder).tuning()


@pytest.fixture(name="small", scope="module")
def _small(tmp_path_factory):
    """A small sweep, the words of its suggested run, and its folder."""
    folder = tmp_path_factory.mktemp("small") / "a sweep"
    data = ["--sample", "--num-tasks", "2", "--samples-per-task", "20"]
    words = ["finetune", "mnist-rotations", *data, "--net", "mlp:4"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as done:
        cli.main(["sweep", *words, "--over", "lr=0.1,0.01", "--seeds", "1", "--out", str(folder)])
    assert done.value.code == 0
    (line,) = re.findall(r"cljax run .*", out.getvalue())
    return [*shlex.split(line)[2:], "--seed", "0"], folder


def run_small(capsys, words, out, *more):
    words = [word for i, word in enumerate(words) if "--seeds" not in words[max(0, i - 1) : i + 1]]
    return call(capsys, "run", *words, "--out", str(out), *more)


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_run_that_a_sweep_suggests_is_on_record_as_tuned(small, capsys, tmp_path):
    words, folder = small
    code, out, _ = run_small(capsys, words, tmp_path / "a")
    assert code == 0 and "tuned by RA on validation images" in out
    config = config_in(tmp_path / "a")
    assert config["tuning"] == sweep.load(folder).tuning()
    assert config["origins"]["lr"] == "tuned" and config["recipe"]["name"] == "tuned"
    assert "untuned" not in json.dumps(config["recipe"])
    assert "untuned" not in call(capsys, "protocol", *words[:-4], *words[-2:])[1]


def test_a_run_that_is_stored_with_other_tuning_says_so(small, capsys, tmp_path):
    words, _ = small
    untuned = [
        word for i, word in enumerate(words) if "--tuned-by" not in words[max(0, i - 1) : i + 1]
    ]
    for name, first, then, there in (
        ("a", untuned, words, "values were not tuned; by this call they are tuned by RA"),
        ("b", words, untuned, "values were tuned by RA"),
    ):
        assert "On record" not in run_small(capsys, first, tmp_path / name)[1]
        stored = (tmp_path / name / "config.json").read_bytes()
        code, out, _ = run_small(capsys, then, tmp_path / name)
        assert code == 0 and "Finished before" in out and there in " ".join(out.split())
        assert "On record" not in run_small(capsys, first, tmp_path / name)[1]
        assert (tmp_path / name / "config.json").read_bytes() == stored


def test_values_that_a_sweep_did_not_choose_are_not_tuned_by_it(small, capsys, tmp_path):
    words, folder = small
    chosen = sweep.load(folder).best().setting["lr"]
    other = words[words.index("--lr") + 1 : words.index("--lr") + 2]
    changed = [("0.5" if word in other else word) for word in words]
    for given, said in (
        (changed, f"chose lr={chosen}, but this run has lr=0.5"),
        (["er", *words[1:]], "tuned finetune, but this run is of er"),
        ([*words, "--tuned-by", str(tmp_path)], "sweep.json|holds no sweep|is missing"),
    ):
        code, _, err = run_small(capsys, given, tmp_path / "x")
        assert code == 2 and re.search(said, err) and err.count("\n") == 1, err
        assert not (tmp_path / "x").exists()


def test_the_same_sweep_again_only_reads(copied, unbroken, capsys):
    before = written(copied)
    code, out, err = call(capsys, *SWEEP, "--out", str(copied))
    assert (
        code == 0
        and "compiling" not in err.replace("beside compiling", "")
        and written(copied) == before
    )
    assert out == unbroken[1].stdout.replace(str(unbroken[0]), str(copied))
    code, resumed, err = call(capsys, "resume", str(copied))
    assert (
        code == 0
        and "compiling" not in err.replace("beside compiling", "")
        and written(copied) == before
    )
    assert resumed == out


def test_status_and_merge_of_a_finished_sweep(copied, unbroken, capsys):
    code, out, err = call(capsys, "sweep", "status", str(copied))
    assert code == 0 and err == "" and out.count("\n") == 1
    assert out.startswith("8 of 8 lanes are finished; the last one ended ")
    (copied / "table.txt").unlink()
    (copied / "results.json").unlink()
    code, out, err = call(capsys, "sweep", "merge", str(copied))
    assert code == 0 and err == "" and rows(out) == rows(unbroken[1].stdout)
    for name in ("results.json", "table.txt"):
        assert (copied / name).read_bytes() == (unbroken[0] / name).read_bytes()


def test_a_plan_is_printed_and_nothing_is_done(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *SWEEP, "--plan")
    said = out + err
    assert code == 0 and said.count("\n") == 1
    assert said.startswith("8 lanes (4 settings, 2 seeds), 2 compiled programs, ")
    assert "MB of state a lane" in said and "estimated" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values",
    ["with_replacement=True,False", "clip_norm=None,2.0", "algebra=general,low-rank",
     "net=mlp:5,5;mlp:6", "alpha-init=0.1,0.2"],
)  # fmt: skip
def test_values_of_every_type_can_be_swept_over(values, capsys):
    code, out, err = call(capsys, "sweep", "lamaml", *DATA, "--over", values, "--plan")
    assert code == 0 and (out + err).startswith("10 lanes (2 settings, 5 seeds), ")


def test_shards_are_merged_by_the_last_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "online", *DATA, "--over", "lr=0.05,0.1", "--seeds", "1", "--on", "test"]
    code, out, _ = call(capsys, *command, "--shard", "1/2")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sweep-online-mnist-rotations-sample-")
    assert code == 0 and out.startswith("1 of 2 lanes are finished; ")
    assert out.endswith(f"\n  {folder.relative_to(tmp_path)}\n")
    code, out, err = call(capsys, "sweep", "merge", str(folder))
    assert code == 2 and out == "" and "cannot be merged: 1 of 2 lanes are finished" in err
    code, out, _ = call(capsys, *command, "--shard", "0/2")
    assert code == 0 and set(rows(out)) == {"lr=0.05", "lr=0.1"}
    assert "RA on test images" in out and "cljax run" not in out  # tests choose nothing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--over", "alpha_int=0.1"], "did you mean alpha_init"),
        (["--over", "num_tasks=1,2"], "'num_tasks' is not known"),
        (["--over", "alpha_init"], "--over needs NAME=V1,V2"),
        (["--over"], "--over needs NAME=V1,V2"),
        (["--over", "capacity=many"], "--capacity"),
        (["--over", "capacity=1.5"], "--capacity"),
        (["--over", "alpha_init=0.1,"], "--alpha-init"),
        (["--over", "algebra=fast"], "--algebra"),
        (["--over", "alpha_init=nan"], "alpha_init is nan"),
        (["--over", "alpha_init=None"], "alpha"),
        (["--over", "batch_size=0"], "batch_size is 0"),
        (["--over", "net=mlp:5;mlp:x"], "whole numbers"),
        (["--net", "os:system"], "os:system failed with TypeError"),
        (["--out="], "out is ''"),
        (["--over", "alpha_init=0.1,0.1"], "is there twice"),
        (["--shard", "2/2"], "shard is 2/2"),
        (["--shard", "x"], "--shard is x"),
        (["--shard", "1"], "--shard is 1"),
        (["--on", "nothing"], "--on"),
        (["--seeds", "0"], "seeds is 0"),
        (["--sharp", "0/2"], "did you mean --shard"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "sweep", "lamaml", *DATA, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("cljax: ") and said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "empty"], "empty"),
        (["status", "nowhere"], "nowhere"),
        (["merge", "empty"], "empty"),
        (["status"], "needs the folder of a sweep"),
        (["merge", "empty", "nowhere"], "needs the folder of a sweep"),
        ([], "needs METHOD STREAM"),
        (["lamaml"], "needs METHOD STREAM"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_folder_without_a_sweep_gets_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = call(capsys, "sweep", *arguments)
    assert code == 2 and out == "" and said in err
    assert err.startswith("cljax: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_a_folder_of_another_sweep_is_refused(copied, capsys):
    results = (copied / "results.json").read_bytes()
    code, out, err = call(capsys, *SWEEP[:-2], "--seeds", "1", "--out", str(copied))
    assert code == 2 and out == "" and "holds another sweep" in err.splitlines()[-1]
    assert (copied / "results.json").read_bytes() == results


def test_help_shows_the_flags_of_a_sweep(capsys):
    code, out, _ = call(capsys, "sweep", "lamaml", "mnist-rotations", "--help")
    assert code == 0
    flags = "--over --on --metric --shard --plan --seeds --lanes-at-a-time --alpha-init"
    for flag in flags.split():
        assert flag in out
    code, out, _ = call(capsys, "sweep", "--help")
    assert code == 0 and "METHOD STREAM" in out


def test_an_interrupted_sweep_is_kept_and_resumed(unbroken, capsys, tmp_path):
    """By SIGTERM once the first of eight lanes is finished."""
    out, said = tmp_path / "sweep", tmp_path / "said"
    flags = ["--lanes-at-a-time", "1", "--segment-seconds", "0.05", "--checkpoint-every", "0.05s"]
    end = time.monotonic() + PATIENCE
    with open(said, "w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "cljax", *SWEEP, *flags, "--out", str(out)], stderr=file,
            stdout=file, cwd=tmp_path,
        )  # fmt: skip
    try:
        while child.poll() is None and not list(out.glob("lanes/*/*/results.json")):
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.002)
        child.send_signal(signal.SIGTERM)
        code = child.wait(timeout=PATIENCE)
    finally:
        child.kill()  # nothing, if it has ended
        child.wait()
    assert code == 75, said.read_text()
    assert said.read_text().splitlines()[1:] == [
        "compiling, then training ...",
        "cljax: stopping once this segment or compilation has ended; again stops at once ...",
        f"cljax: interrupted and kept; `cljax resume {out}` goes on.",
    ]
    before = written(out)
    assert before and not (out / "results.json").exists()
    code, told, _ = call(capsys, "sweep", "status", str(out))
    done = len(list(out.glob("lanes/*/*/results.json")))
    assert code == 0 and told.startswith(f"{done} of 8 lanes are finished; ") and done < 8
    code, _, err = call(capsys, "sweep", "merge", str(out))
    assert code == 2 and "cannot be merged" in err and err.count("\n") == 1
    code, told, err = call(capsys, "resume", str(out))
    assert code == 0, err
    assert set(rows(told)) == SETTINGS and before.items() <= written(out).items()
    folder = unbroken[0]
    for name in ("results.json", "table.txt"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    for path in folder.glob("lanes/*/*/results.json"):
        found, expected = (
            json.loads((place / path.relative_to(folder)).read_text()) for place in (out, folder)
        )
        assert found.pop("time") and expected.pop("time") and found == expected
    assert not (out / "checkpoint").exists()
