"""The command, as a user types it, in a temporary folder."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap

import pytest

from cljax.cli.command import main

SMALL = [
    "--sample",
    "--net",
    "mlp:8",
    "--num-tasks",
    "2",
    "--samples-per-task",
    "40",
    "--seeds",
    "2",
]


def command(*arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "cljax", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    return done.value.code, captured.out, captured.err


def test_run_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("run", "lamaml", "mnist-rotations", *SMALL, folder=tmp_path)
    assert code == 0 and "RA" in out and "mnist-rotations[sample]" in out, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("lamaml-mnist-rotations-sample-")
    config = json.loads((folder / "config.json").read_text())
    assert folder.name.endswith(config["config_hash"][:8])
    assert config["origins"]["num_tasks"] == "command line"
    assert config["origins"]["alpha_init"].startswith("published")
    stored = (folder / "results.json").read_bytes()
    code, out, _ = call(capsys, "run", "lamaml", "mnist-rotations", *SMALL)
    assert code == 0 and "Finished before" in out and "RA" in out
    assert (folder / "results.json").read_bytes() == stored
    other = ["--out", str(folder), "--seeds", "1"]
    code, out, err = call(capsys, "run", "lamaml", "mnist-rotations", *SMALL[:-2], *other)
    assert code == 2 and err.count("\n") == 1 and "another run" in err
    assert (folder / "results.json").read_bytes() == stored


def test_double_precision_and_a_single_seed(tmp_path):
    flags = [*SMALL[:-2], "--seed", "3", "--precision", "float64", "--out", "run", "--online"]
    code, out, err = command("run", "cmaml", "mnist-permutations", *flags, folder=tmp_path)
    assert code == 0 and "1 seed" in out, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["precision"] == "float64" and config["seeds"] == [3]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["RA"]["ci95"] is None and results["metrics"]["RA"]["std"] is None


def test_a_users_method_stream_and_network(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent('''
        import numpy as np
        import cljax

        class Mine(cljax.CMAML):
            """Mine."""

            rate: cljax.options.Rate = 0.1
            """How fast it learns."""
            capacity: cljax.options.Count = 9
            """Small."""

        def stream(*, size: int = 20):
            """Two sites."""
            rng = np.random.default_rng(0)
            y = np.arange(2 * size) % 3
            x = (60 * y[:, None] + rng.integers(0, 30, (2 * size, 8))).astype(np.uint8)
            task = np.repeat([0, 1], size)
            return cljax.streams.from_arrays(
                (x, y, task), test=(x, y, task), val=0.1, name="clinic", licence="private"
            )

        class Sites(cljax.streams.StreamSource):
            """Sites of one's own."""

            size: cljax.options.Count = 20
            """Examples a site."""

            def build(self):
                return stream(size=self.size)

        def net():
            return cljax.nets.mlp(6)
        ''')
    )
    arguments = ["run", "mine:Mine", "mine:stream", "--rate", "0.2", "--size", "30", "--net",
                 "mine:net", "--seeds", "2", "--batch-size", "5", "--out", "run"]  # fmt: skip
    code, out, err = command(*arguments, folder=tmp_path)
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"]["name"] == "mine"
    assert config["method"]["options"].items() >= {"rate": 0.2, "capacity": 9, "lr": 0.1}.items()
    assert config["stream"]["name"] == "clinic" and config["recipe"]["name"] == "default, untuned"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "mine", importlib.import_module("mine"))  # for this test alone
    code, out, _ = call(capsys, "run", "mine:Mine", "mine:stream", "--help")
    assert code == 0 and "--rate" in out and "How fast it learns" in out and "--size" in out
    code, out, _ = call(capsys, "run", "mine:Mine", "mine:Sites", "--help")
    assert code == 0 and "--size" in out and "Examples a site" in out
    again = [argument.replace("mine:stream", "mine:Sites") for argument in arguments]
    code, out, err = call(capsys, *again[:-1], "again")
    assert code == 0, err
    sites = json.loads((tmp_path / "again" / "config.json").read_text())
    assert sites["config_hash"] == config["config_hash"]
    assert sites["stream_options"] == config["stream_options"] == {"size": 30}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "did you mean run"),
        (["run", "lamaml"], "needs METHOD STREAM"),
        (["run", "lamamel", "mnist-rotations"], "did you mean lamaml"),
        (["run", "lamaml", "mnist-rotation"], "did you mean mnist-rotations"),
        (["run", "lamaml", "mnist-rotations", "--alpha-lrr", "1"], "did you mean --alpha-lr"),
        (["run", "lamaml", "mnist-rotations", "--capacity", "many"], "--capacity"),
        (["run", "lamaml", "mnist-rotations", "--capacity", "0"], "capacity is 0"),
        (["run", "lamaml", "mnist-rotations", "--replay-size", "0"], "replay_size is 0"),
        (["run", "lamaml", "mnist-rotations", "--batch-size", "0"], "batch_size is 0"),
        (["run", "lamaml", "mnist-rotations", "--inner-steps", "0"], "inner_steps is 0"),
        (["run", "lamaml", "mnist-rotations", "--seeds", "0"], "seeds is 0"),
        (["run", "lamaml", "mnist-rotations", "--alpha-init", "nan"], "alpha_init is nan"),
        (["run", "lamaml", "mnist-rotations", "--alpha-lr", "inf"], "alpha_lr is inf"),
        (
            ["run", "lamaml", "mnist-rotations", "--algebra", "general", "--inner-steps", "3"],
            "divide",
        ),
        (["run", "lamaml", "mnist-rotations", "--entries", "some"], "--entries"),
        (["run", "lamaml", "mnist-rotations", "--recipe", "lamaml:papre"], "lamaml-table1:paper"),
        (["run", "lamaml", "mnist-rotations", "--net", "mlp:x"], "whole numbers"),
        (["run", "nowhere.at.all:f", "mnist-rotations"], "cannot be imported"),
        (["run", "json:nothing", "mnist-rotations"], "does not have"),
        (["data"], "needs the name"),
        (["data", "mnits"], "did you mean mnist"),
        (["list", "all"], "kind to list 'all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    code, out, err = call(capsys, *arguments)
    assert code == 2 and said in err and out == ""
    assert err.count("\n") == 1 and err.startswith("cljax: ") and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_the_data_says_what_was_looked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "run", "lamaml", "mnist-rotations", "--data-dir", str(tmp_path))
    assert code == 2 and str(tmp_path) in err and "prepare" in err and "--sample" in err


def test_a_read_only_place_is_one_sentence(capsys):
    code, _, err = call(
        capsys, "run", "lamaml", "mnist-rotations", *SMALL, "--out", "/proc/cljax-run"
    )
    assert code == 2 and "cannot be written" in err


def test_help_shows_every_hyper_parameter(capsys):
    code, out, _ = call(capsys, "run", "lamaml", "mnist-rotations", "--help")
    assert code == 0
    flags = (
        "--alpha-init --alpha-lr --capacity --reservoir-rule --algebra --samples-per-task "
        "--data-dir --seeds --out --eval-every"
    )
    for flag in flags.split():
        assert flag in out
    titles = ["lamaml", "mnist-rotations", "training", "running", "results"]
    places = [out.index(f" {title} options ") for title in titles]
    assert places == sorted(places)
    groups = [out.index(f" --{flag}") for flag in ("alpha-init", "num-tasks", "net", "keep", "out")]
    assert all(a < b for a, b in zip(places, groups, strict=True))
    assert all(a < b for a, b in zip(groups, places[1:], strict=False))
    assert "--progress" not in out
    words = " ".join(out.replace("│", " ").split())
    assert "Initial value of every per-parameter learning rate" in words


def test_the_command_alone_says_what_to_do_first(capsys, tmp_path, monkeypatch):
    code, out, _ = call(capsys)
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 12 and max(map(len, lines)) <= 80
    first = next(line for line in lines if "run er" in line) + lines[3]
    words = first.replace("\\", " ").partition("train and test")[0].split()
    monkeypatch.chdir(tmp_path)
    small = ["--samples-per-task", "20", "--num-tasks", "2", "--net", "mlp:4"]
    assert call(capsys, *words[1:], *small)[0] == 0 and (tmp_path / "runs/first").is_dir()
    assert call(capsys, "report", "runs/first")[0] == 0


def test_lists_and_commands_fit_80_columns(capsys):
    for arguments in (["list"], ["--help"], ["list", "recipes"]):
        code, out, _ = call(capsys, *arguments)
        assert code == 0 and max(map(len, out.splitlines())) <= 80
    out = call(capsys, "list", "streams", "svhn")[1]  # a filter finds words that are wrapped
    assert out.splitlines()[0] == "streams" and "split-svhn" in out
    assert call(capsys, "list", "nets", "svhn")[1] == ""


def test_list_protocol_data_and_version(capsys, monkeypatch):
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    code, out, _ = call(capsys, "list")
    assert code == 0 and "lamaml" in out and "mnist-many-permutations" in out
    code, out, _ = call(capsys, "protocol", "lamaml", "mnist-rotations")
    assert code == 0 and "single-head" in out and "200 examples" in " ".join(out.split())
    code, out, _ = call(capsys, "data", "mnist", "--sample")
    assert code == 0 and "10000 training" in out and "CC BY-SA" in out
    code, out, _ = call(capsys, "data", "--licences")
    assert code == 0 and "LeCun" in out
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out.startswith("cljax ")


def test_a_defect_of_ours_is_exit_code_1_without_a_traceback(capsys, monkeypatch):
    import cljax.recipes

    def broken(*_):
        raise RuntimeError("a loose\nscrew")

    monkeypatch.setattr(cljax.recipes, "recipe", broken)
    monkeypatch.delenv("CLJAX_DEBUG", raising=False)
    code, _, err = call(capsys, "run", "lamaml", "mnist-rotations")
    assert code == 1 and "a loose screw" in err and "CLJAX_DEBUG" in err and err.count("\n") == 1
