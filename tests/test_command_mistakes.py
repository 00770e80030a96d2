"""Mistakes on the command line, its exit codes, and what it prints where nobody can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_support import run_line

import cljax
from cljax import sweep
from cljax.cli import command as cli
from cljax.errors import UserError
from cljax.methods import METHODS
from cljax.streams import STREAMS

TINY = ("mnist-rotations", "--sample", "--num-tasks", "2", "--samples-per-task", "20",
        "--net", "mlp:3", "--batch-size", "10")  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["run", "er", *TINY, "--lr", "-1"], "lr is -1.0, but it must be a finite number of"),
        (["run", "lamaml", *TINY, "--alpha-init", "-0.1"], "alpha_init is -0.1"),
        (["run", "lamaml", *TINY, "--clip-norm", "0"], "clip_norm is 0.0"),
        (["run", "lwf", *TINY, "--temperature", "0"], "temperature is 0.0"),
        (["run", "bic", *TINY, "--correction-lr", "0"], "correction_lr is 0.0"),
        (["run", "rwalk", *TINY, "--rate", "1.5"], "rate is 1.5, but it must be a share"),
        (["run", "er", *TINY, "--capacity", "0"], "capacity is 0"),
        (["run", "er", *TINY, "--epochs", "9" * 20], "at most 2147483647"),
        (["run", "er", *TINY, "--num-tasks", "9" * 20], "num_tasks is 9"),
        (["run", "er", *TINY, "--capacity", "9" * 20], "capacity is 9"),
        (["run", "er", *TINY, "--capacity", "2147483647"], "state of a run would take"),
        (["run", "er", *TINY, "--seeds", "2", "--seed", "3"], "--seeds is 2 and --seed is 3"),
        (["sweep", "er", *TINY, "--seeds", "2", "--seed=3"], "only one of them"),
        (["run", "er", *TINY, "--segment-seconds", "0"], "segment_seconds is 0.0"),
        (["run", "er", *TINY, "--segment-seconds", "nan"], "segment_seconds is nan"),
        (["run", "er", *TINY, "--segment-seconds", "-inf"], "segment_seconds is -inf"),
        (["run", "", ""], "method '' is not known"),
        (["run", "er", ""], "stream '' is not known"),
        (["run", "er", "mnist-rotation"], "did you mean mnist-rotations"),
        (["run", "er", *TINY, "--replay-sise", "3"], "did you mean --replay-size"),
        (["run", "er", *TINY, "--epochs", "x"], "--epochs is 'x', but it must be a whole number"),
        (["run", "er", *TINY, "--lr"], "--lr needs a value, a number"),
        (["run", "er", *TINY, "--loop", "scam"], "--loop is 'scam', but it must be one of auto"),
        (["run", "er", *TINY, "extra"], "extra is neither a flag nor the value of one"),
        (["run", "lamaml:paper", *TINY], "--recipe SOURCE:VARIANT"),
        (["data", ""], "'' is no name of a data set, such as mnist"),
        (["data", "/etc"], "'/etc' is no name"),
        (["data", "../mnist"], "'../mnist' is no name"),
        (["data"], "such as mnist, cifar100"),
        (["run", "er", *TINY, "--net", "json:loads"], "The factory json:loads failed"),
        (["run", "json:loads", "mnist-rotations"], "json:loads"),
        (["list", "nests"], "did you mean nets"),
        (["list", "nets", "mlp", "x"], "got 'x' as well"),
        (["docs", __file__], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(line, words):
    outcome = run_line(line)
    assert outcome.code == 2 and words in outcome.said
    (sentence,) = outcome.said.splitlines()
    assert sentence.startswith("cljax: ") and "<class" not in sentence
    assert not any(Path().glob("runs/*/*"))  # nothing is left behind


def test_where_every_seed_diverged_the_exit_code_is_3(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["run", "finetune", *TINY, "--seeds", "2", "--lr", "1e30", "--out", "a"])
    assert done.value.code == 3
    assert "All seeds diverged, so there are no numbers" in capsys.readouterr().out
    assert (
        run_line(["run", "finetune", *TINY, "--seeds", "2", "--lr", "1e30", "--out", "a"]).code == 3
    )
    made = cljax.report.report("a", figures=False)
    page = made.page.read_text("utf-8")
    assert "All seeds diverged, so this run has no numbers" in page and not made.problems


def test_a_single_seed_that_diverged_ends_with_exit_code_3_and_its_place():
    outcome = run_line(["run", "finetune", *TINY, "--seed", "0", "--lr", "1e30"])
    assert outcome.code == 3 and "diverged in task 0 at update" in outcome.said


def test_a_sweep_all_of_whose_lanes_diverged_says_so_and_ends_with_exit_code_3(capsys):
    line = ["sweep", "finetune", *TINY, "--seeds", "1", "--over", "lr=1e30,1e31", "--out", "s"]
    with pytest.raises(SystemExit) as done:
        cli.main(line)
    out = capsys.readouterr().out
    assert done.value.code == 3 and "All lanes diverged, so there are no numbers" in out
    assert "cljax run" not in out  # no best setting to run
    assert sweep.load("s").diverged
    assert run_line(["sweep", "merge", "s"]).code == 3
    with pytest.raises(UserError, match="Every setting .* diverged; try others"):
        sweep.load("s").best()


def test_lists_have_columns_kinds_and_a_filter(capsys):
    with pytest.raises(SystemExit):
        cli.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    for name in (*METHODS, *STREAMS):
        assert any(line.startswith(f"  {name}  ") for line in lines), name
    with pytest.raises(SystemExit):
        cli.main(["list", "streams", "permutations-"])
    found = capsys.readouterr().out.splitlines()
    rows = [line for line in found if line.startswith("  mnist")]
    assert found[0] == "streams" and len(rows) == 3
    with pytest.raises(SystemExit) as done:
        cli.main(["list", "--help"])
    assert done.value.code == 0 and "methods|streams|nets|data|recipes" in capsys.readouterr().out


def test_help_shows_what_a_flag_is_without_it_and_where_that_comes_from(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "lamaml", "mnist-rotations", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 10, from lamaml-table1:reference)" in text  # batch_size
    assert "(default: 0.3, from lamaml-table1:reference)" in text  # alpha_lr, of the recipe
    assert "(default: 5)" in text  # seeds, of no recipe
    with pytest.raises(SystemExit):
        cli.main(["run", "er", "split-mnist", "--help"])
    assert "from default, untuned" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_an_option_that_method_and_stream_share_has_a_flag_for_each(capsys):
    line = ["protocol", "lamaml", "mnist-rotations-task-free", "--sample", "--num-tasks", "2"]
    with pytest.raises(SystemExit) as done:
        cli.main([*line, "--order", "second", "--stream-order", "shuffled", "--inner-steps", "1"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0 and "order=second" in text and "task-free-shuffled" in text


def test_a_plan_says_what_its_estimate_leaves_out(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "er", *TINY, "--seeds", "1", "--over", "lr=0.1,0.2", "--plan"])
    assert "of training, beside compiling and testing" in capsys.readouterr().err


def _process(command, **options):
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        command, shell=isinstance(command, str), capture_output=True, text=True, env=environment,
        executable="/bin/bash" if isinstance(command, str) else None,
        errors="replace", **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_terminal_that_lacks_letters_is_no_defect(tmp_path, encoding):
    line = [sys.executable, "-m", "cljax", "run", "finetune", *TINY, "--seeds", "1",
            "--out", str(tmp_path / "rüns→")]  # fmt: skip
    done = _process(line, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and "defect" not in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "rüns→" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_reads_or_that_is_full_is_no_traceback():
    cljax_ = f"{sys.executable} -m cljax"
    for command, code in (
        (f"{cljax_} list | head -1; exit ${{PIPESTATUS[0]}}", 0),
        (f"{cljax_} run er mnist-rotations --help | head -1; exit ${{PIPESTATUS[0]}}", 0),
        (f"{cljax_} list >&-", 0),
        (f"{cljax_} list > /dev/full", 2),
        (f"{cljax_} run er mnist-rotations --help > /dev/full", 2),
        (f"{cljax_} nothing 2> /dev/full", 2),
    ):
        done = _process(command)
        assert done.returncode == code, (command, done.stderr)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr
        if "> /dev/full" in command and code == 2 and "nothing" not in command:
            assert done.stderr == "cljax: the output cannot be written: No space left on device.\n"
