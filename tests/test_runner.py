"""``cljax.run`` and its artefacts: the contract, identity, and what is never lost."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import shutil
import time
from pathlib import Path

import incremental_support
import jax
import numpy as np
import pytest
import support

import cljax
from cljax.errors import Diverged, Interrupted, UserError
from cljax.runner import artefacts
from cljax.runner.config import canonical, config_hash
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare

METHOD = cljax.LaMAML(capacity=6, replay_size=3, glances=2, algebra="low-rank")


def run(**options):
    options = {"seeds": 2, "batch_size": 4, "net": "mlp:5", **options}
    return cljax.run(
        options.pop("method", METHOD), options.pop("stream", support.stream()), **options
    )


@pytest.fixture(name="finished", scope="module")
def _finished(tmp_path_factory):
    return run(out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(name="copied")
def _copied(finished, tmp_path):
    return Path(shutil.copytree(finished.path, tmp_path / "run"))


def test_the_folder_holds_the_contract(tmp_path):
    done = run(out=tmp_path / "run", eval_every=2, online=True)
    names = {path.name for path in done.path.iterdir()}
    files = {"config.json", "results.json", "metrics.jsonl", "kept.npz", "files.json"}
    assert names == files | {"manifest", "plots", "state"}
    config = json.loads((done.path / "config.json").read_text())
    results = json.loads((done.path / "results.json").read_text())
    assert config["command"] and results["commit"] == config["commit"]
    cell = results["metrics"]["RA"]
    assert set(cell) == {"mean", "std", "ci95", "values"} and len(cell["values"]) == 2
    assert cell["mean"] == pytest.approx(np.mean(cell["values"]))
    assert cell["std"] == pytest.approx(np.std(cell["values"], ddof=1))
    entry = results["evaluations"]["logits"]
    assert np.shape(entry["accuracy_matrix"]) == (2, 4, 3) and entry["test_counts"] == [9, 10, 11]
    assert (
        entry["accuracy_matrix"][0][1][2] is None and entry["accuracy_matrix"][0][0][2] is not None
    )
    assert np.shape(results["accuracy_matrix"]) == (2, 3, 3)
    assert set(results["time"]) == {"data_s", "compile_s", "train_s", "eval_s", "total_s"}
    assert results["cost"]["gradient_evaluations"] == 9 * 2 * 2 * 4
    assert results["cost"]["examples"] == 36 and results["cost"]["state_bytes"]["memory"] > 0
    assert {"prequential_accuracy", "average_anytime_accuracy", "LA", "BTI"} <= set(
        results["metrics"]
    )
    assert "FWT" in results["absent"]
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"segment", "eval"}
    with np.load(done.path / "manifest" / "stream.npz", allow_pickle=False) as manifest:
        expected = np.concatenate(support.stream().subsets(1))
        np.testing.assert_array_equal(manifest["seed1_train_rows"], expected)
    assert (done.path / "plots" / "accuracy_matrix.png").read_bytes()[:4] == b"\x89PNG"


def test_the_confusion_matrix_counts_every_test_and_its_diagonal_the_right_ones(finished):
    stream, counts = support.stream(), finished.confusion_matrix()
    tested = np.concatenate([stream.test_y[rows] for rows in stream.tests(0)])
    for own, matrix in zip(counts, finished.accuracy_matrix(), strict=True):
        np.testing.assert_array_equal(own.sum(axis=1), np.bincount(tested, minlength=4))
        right = matrix[-1] @ [len(rows) for rows in stream.tests(0)]
        assert np.trace(own) == pytest.approx(right)
    with np.load(finished.path / "kept.npz") as kept:  # after each task, those seen so far
        np.testing.assert_array_equal(kept["confusion/1/3"], counts[1])
        assert [kept[f"confusion/0/{row}"].sum() for row in (1, 2, 3)] == [9, 19, 30]
    batched = run(lanes="vmap")
    np.testing.assert_array_equal(batched.confusion_matrix(), counts)


def test_where_confusion_is_not_counted_it_is_said():
    readout = cljax.Evaluation("r", "features", "task", readout=cljax.types.Readout(steps=1))
    for done in (
        run(evaluations=[readout], seeds=1, stream=incremental_support.stream()),
        run(method=cljax.Finetune(lr=1e30), seeds=[0, 1]),
    ):
        with pytest.raises(UserError, match="has no confusion matrix"):
            done.confusion_matrix()


def test_the_first_evaluation_is_the_headline_when_a_run_is_read_back(tmp_path):
    """Files sort names."""
    asked = [cljax.Evaluation("z", scenario="task"), cljax.Evaluation("a")]
    stream = cljax.streams.SplitMNIST(sample=True, samples_per_task=20).build()
    options = {"stream": stream, "method": cljax.Finetune(lr=0.1), "seeds": 1}
    done = run(out=tmp_path / "run", evaluations=asked, **options)
    first = done.accuracy_matrix("z")
    assert not np.array_equal(first, done.accuracy_matrix("a"), equal_nan=True)
    for found in (done, cljax.load(tmp_path / "run")):
        np.testing.assert_array_equal(found.accuracy_matrix(), first)


def test_metrics_agree_with_the_matrix(finished):
    done = finished
    matrix = done.accuracy_matrix()
    np.testing.assert_allclose(done.metric("RA"), matrix[:, -1].mean(axis=1))
    diagonal = matrix[:, [1, 2, 3], [0, 1, 2]].mean(axis=1)
    np.testing.assert_allclose(done.metric("BTI"), done.metric("RA") - diagonal)
    with pytest.raises(UserError, match="FWT is absent"):
        done.metric("FWT")
    with pytest.raises(UserError, match="metric 'AR'"):
        done.metric("AR")


def test_two_runs_of_one_configuration_give_the_same_bytes(finished, tmp_path):
    texts = []
    for path in (finished.path, run(out=tmp_path / "run").path):
        results = json.loads((path / "results.json").read_text())
        results.pop("time")
        texts.append(canonical(results))
    assert texts[0] == texts[1]


def test_a_finished_run_is_read_back_and_never_overwritten(finished, copied):
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    again = run(out=copied)
    assert again.resumed and not finished.resumed
    assert again.results == json.loads(json.dumps(finished.results))
    with pytest.raises(UserError, match=r"holds another run: .*seeds differ"):
        run(out=copied, seeds=3)
    assert before == {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    loaded = cljax.load(copied)
    np.testing.assert_array_equal(loaded.accuracy_matrix(), finished.accuracy_matrix())


def test_an_unfinished_run_begins_anew(finished, copied):
    (copied / "results.json").unlink()
    (copied / "checkpoint").mkdir()
    lines = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text(lines + '{"half": ')
    again = run(out=copied)
    assert not again.resumed and again.results["metrics"] == finished.results["metrics"]
    for line in (copied / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_what_a_kill_leaves_behind_is_no_obstacle(tmp_path):
    """A first file that was cut, and a checkpoint beside finished results."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.abc123").write_text('{"half": ')
    with pytest.raises(UserError, match="holds no run to resume"):
        cljax.resume(tmp_path / "run")
    first = run(out=tmp_path / "run")
    (first.path / "checkpoint" / "00000001").mkdir(parents=True)
    assert run(out=tmp_path / "run").resumed and not (first.path / "checkpoint").exists()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    with artefacts.claim(tmp_path):
        (tmp_path / ".lock").unlink()
        with artefacts.claim(tmp_path), pytest.raises(UserError, match="in use"):
            with artefacts.claim(tmp_path):
                pass


def test_foreign_folders_files_and_busy_folders_are_refused(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis.tex but no run"):
        run(out=tmp_path / "foreign")
    with pytest.raises(UserError, match="is a file"):
        run(out=tmp_path / "foreign" / "thesis.tex")
    with artefacts.claim(tmp_path / "busy"):
        with pytest.raises(UserError, match="in use by another process"):
            run(out=tmp_path / "busy")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        run(out=tmp_path / "run")
    with pytest.raises(UserError, match="not a finished run"):
        cljax.load(tmp_path / "nowhere")


def config_of(**options):
    """The config of a run that is not run."""
    options = {"method": METHOD, "stream": support.stream(), "batch_size": 4, "net": "mlp:5",
               **options}  # fmt: skip
    method, stream = options.pop("method"), options.pop("stream")
    return prepare(method, stream, RunOptions(**options)).config


def test_the_hash_names_what_decides_the_results_and_nothing_else():
    base = config_of(seeds=1)
    assert config_of(seeds=1, origins={"capacity": "me"})["config_hash"] == base["config_hash"]
    for change in ({"seeds": [1]}, {"batch_size": 6}, {"net": "mlp:4"}, {"entries": "full"},
                   {"lanes": "sequential"}, {"stream": support.stream(2)},
                   {"method": cljax.LaMAML(capacity=7, replay_size=3, glances=2)}):  # fmt: skip
        assert config_of(**{"seeds": 1, **change})["config_hash"] != base["config_hash"], change
    assert config_hash({**base, "commit": "other", "versions": {}}) == base["config_hash"]


def test_a_seed_that_diverges_is_null_and_said_so():
    bad = cljax.LaMAML(alpha_init=1e30, capacity=6, replay_size=3, glances=2, clip_norm=None)
    done = run(method=bad)
    assert None not in done.results["diverged"] and "diverged" in done.table()
    assert "RA" in done.results["absent"]
    json.dumps(done.results, allow_nan=False)


def test_a_single_run_that_diverges_stops_with_task_update_and_leaf(tmp_path):
    bad = cljax.LaMAML(alpha_init=1e30, capacity=6, replay_size=3, glances=2, clip_norm=None)
    running = cljax.Running(checkpoint_every="1")
    sentence = (
        r"lamaml diverged in task 0 at update \d: params/\S+ is not.*no checkpoint was due yet"
    )
    with pytest.raises(Diverged, match=sentence):
        run(method=bad, seeds=1, out=tmp_path / "bad", running=running)
    assert not (tmp_path / "bad" / "results.json").exists()


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch, late):
    """Training is sound until the second task, whose images are not finite.

    Also where the checkpoint still waits for an evaluation that ends after the second task did.
    """
    driver = importlib.import_module("cljax.engine.driver")

    def advance(*args):
        place, (events, evaluation) = advanced(*args)

        def later():
            time.sleep(late)
            return evaluation()

        return place, (events, later if evaluation else None)

    advanced = driver.advance
    monkeypatch.setattr(driver, "advance", advance)
    stream = support.stream()
    transform = stream.transform

    def apply(tables, x, task):
        seen = transform.apply(tables[0], x, task)
        poison = jax.numpy.where(task == 1, tables[1], 1.0).astype(seen.dtype)
        return seen * poison[:, None]

    poisoned = dataclasses.replace(
        stream, transform=transform._replace(tables=(transform.tables, np.inf), apply=apply)
    )
    running = cljax.Running(checkpoint_every="1")
    with pytest.raises(Diverged, match="in task 1 .*the last good checkpoint is ") as error:
        run(method=cljax.Finetune(lr=0.1), stream=poisoned, seeds=1, out=tmp_path, running=running)
    place = str(error.value).split("checkpoint is ")[1].rstrip(".")
    header = json.loads((Path(place) / "position.json").read_text())
    assert 0 < header["position"]["lanes"]["0"]["at"] <= 3


def test_an_interrupted_run_goes_on_from_its_folder(tmp_path, monkeypatch):
    """``resume`` rebuilds the run from its config; other data or versions are refused by name."""
    runs, prepare = map(importlib.import_module, ("cljax.runner.run", "cljax.runner.prepare"))
    options = {"num_tasks": 2, "samples_per_task": 40, "sample": True}
    recipe = cljax.recipe("cmaml", "mnist-rotations", "lamaml", "reference")
    recipe = recipe.replace(net="mlp:5", **options)
    whole = cljax.run(recipe, seeds=2, out=tmp_path / "whole")
    asked = iter(range(100))
    answers = contextlib.nullcontext(lambda: next(asked) > 2)
    monkeypatch.setattr(runs, "signals", lambda: answers)
    with pytest.raises(Interrupted, match=r"interrupted and kept; `cljax resume .*cut` goes on"):
        cljax.run(recipe, seeds=2, out=tmp_path / "cut")
    monkeypatch.undo()
    path = tmp_path / "cut" / "config.json"
    config = json.loads(path.read_text())
    place = sorted((tmp_path / "cut" / "checkpoint").iterdir())[-1]
    versions = {**cljax.runner.config.environment()["versions"], "jax": "0.0.1"}
    environment = {**cljax.runner.config.environment(), "versions": versions}
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "environment", lambda: environment)
        with pytest.raises(UserError, match=rf"{place.name}.*version of jax was .* and is 0.0.1"):
            cljax.resume(tmp_path / "cut")
    other = {**config, "begun_as": {**config["begun_as"], "stream_options": {
        **config["begun_as"]["stream_options"], "samples_per_task": 30}}}  # fmt: skip
    path.write_text(json.dumps(other))
    artefacts.seal(path.parent, config["config_hash"])  # as if it had been begun so
    with pytest.raises(UserError, match="holds another run: stream.checksum differ"):
        cljax.resume(tmp_path / "cut")
    path.write_text(json.dumps(config))
    artefacts.seal(path.parent, config["config_hash"])
    done = cljax.resume(tmp_path / "cut")
    assert done.results["evaluations"] == whole.results["evaluations"]
    assert not (tmp_path / "cut" / "checkpoint").exists()
    assert cljax.resume(tmp_path / "cut").resumed
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert "checkpoint" in {json.loads(line)["kind"] for line in lines}


def test_a_run_of_objects_is_read_back_anywhere_and_resumed_in_python_only(finished, copied):
    assert cljax.resume(copied).results == json.loads(json.dumps(finished.results))
    (copied / "results.json").unlink()
    (copied / "checkpoint").mkdir()
    with pytest.raises(UserError, match="objects that no names give again, so only Python can"):
        cljax.resume(copied)


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "-5", "2.5", "5m"])
def test_a_bad_interval_is_refused(text, tmp_path):
    with pytest.raises(UserError, match="checkpoint_every is"):
        run(out=tmp_path / "run", running=cljax.Running(checkpoint_every=text))


def test_names_recipes_and_objects_resolve_to_the_same_run():
    options = {"num_tasks": 2, "samples_per_task": 20, "sample": True}
    recipe = cljax.recipe("cmaml", "mnist-rotations", "lamaml", "reference").replace(**options)
    by_recipe = prepare(recipe, None, RunOptions(seeds=1)).config["config_hash"]
    stream = cljax.streams.MNISTRotations(**options).build()
    method = cljax.CMAML(**recipe.method_options)
    same = RunOptions(seeds=1, net=cljax.nets.mlp(100, 100), entries="lower")
    assert by_recipe == prepare(method, stream, same).config["config_hash"]
    table = cljax.run(recipe.replace(net="mlp:5"), seeds=1).table()
    assert "mnist-rotations[sample]" in table
    assert "published" not in table.lower()


def test_a_task_free_stream_runs_without_boundaries():
    stream = cljax.streams.MNISTRotations(num_tasks=2, samples_per_task=30, sample=True).build()
    for free in (cljax.streams.task_free(stream), cljax.streams.blurry(stream, 0.3)):
        done = cljax.run(METHOD, free, seeds=1, net="mlp:5", online=True)
        assert not done.config["stream_facts"]["boundaries"]
        assert done.accuracy_matrix().shape == (1, 3, 2)
        assert 0 <= done.metric("prequential_accuracy")[0] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_every": -1}, "eval_every is -1"),
        ({"net": "mlp:big"}, "whole numbers"),
        ({"net": "mpl"}, "network 'mpl' is not known"),
        ({"precision": "float64"}, "must agree"),
        ({"precision": "half"}, "precision 'half'"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        run(**options)
    assert "\n" not in str(error.value)


def test_float64_runs_where_it_is_switched_on():
    with jax.enable_x64(True):
        done = run(seeds=1, precision="float64")
    assert jax.tree.leaves(done.states[0].params)[0].dtype == np.float64
    assert done.config["precision"] == "float64"
