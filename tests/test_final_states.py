"""Final states: kept in a run's folder, read back bit for bit, refused where they are damaged."""

from __future__ import annotations

import dataclasses
import importlib
import shutil

import jax
import numpy as np
import pytest
import support
from folders_support import METHOD, SMALL, call, one_sentence, rewrite, small_run

import cljax
from cljax.errors import UserError
from cljax.runner import artefacts
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare

load = importlib.import_module("cljax.runner.run").load
NAMED = cljax.recipes.Recipe("online", "mnist-rotations", net="mlp:4",
                     stream_options={"num_tasks": 2, "samples_per_task": 10})  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _sample():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CLJAX_DATA_DIR", raising=False)
        yield


@pytest.fixture(name="named", scope="module")
def _named(tmp_path_factory):
    """A finished run that its folder alone tells."""
    return cljax.run(NAMED, seeds=[3, 5], out=tmp_path_factory.mktemp("named") / "run")


@pytest.fixture(name="objects", scope="module")
def _objects(tmp_path_factory):
    """A finished run of Python objects."""
    return small_run(tmp_path_factory.mktemp("objects") / "run")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_gives_the_final_states_bit_for_bit(named):
    found = cljax.load(named.path).state
    assert found.seeds == (3, 5) and len(found.states) == 2
    same(found.states, named.state.states)
    assert jax.tree.structure(found.states) == jax.tree.structure(named.state.states)


def test_other_questions_to_a_folders_states_are_answered_as_before(named):
    found = cljax.load(named.path).state
    asked = [cljax.evaluate(own, found.learned, scenario="domain") for own in (found, named.state)]
    np.testing.assert_array_equal(asked[0].accuracy, asked[1].accuracy)
    np.testing.assert_array_equal(asked[0].accuracy.mean(axis=1), named.metric("RA"))


def test_a_run_of_python_objects_gives_its_states_when_it_is_run_again(objects):
    again = small_run(objects.path)
    assert again.resumed
    same(again.state.states, objects.state.states)
    with pytest.raises(UserError, match="begun with Python objects.* call cljax.run as before"):
        _ = cljax.load(objects.path).state


def test_a_run_of_the_librarys_objects_gives_its_states_from_the_folder_alone(tmp_path):
    stream = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=20)
    objects = dict(net=cljax.nets.mlp(5), seeds=1)
    memory = cljax.memory.Ring(per="task")
    for i, method in enumerate(
        [cljax.LaMAML(alpha_lr=0.05, clip_norm=None), cljax.ER(capacity=30, memory=memory),
         cljax.Finetune(optimizer="adam", lr=0.01)]
    ):  # fmt: skip
        run = cljax.run(method, stream, out=tmp_path / str(i), **objects)
        again = cljax.load(run.path)
        same(again.state.states, run.state.states)
        images = stream.build().test_x[:3]
        np.testing.assert_array_equal(
            again.predict(images, task=1).labels, run.predict(images, task=1).labels
        )
    own = lambda num_outputs: cljax.nets.mlp(5)(num_outputs)
    config = prepare(method, stream, RunOptions(seeds=1, net=own, id="own")).config
    assert "begun_as" not in config


def test_a_run_without_states_says_so_and_is_the_same_run(objects, tmp_path, capsys):
    bare = small_run(tmp_path / "bare", running=cljax.Running(keep_state=False))
    assert not (bare.path / "state").exists()
    assert bare.config["config_hash"] == objects.config["config_hash"]
    same(bare.state.states, objects.state.states)  # while they are in memory
    again = small_run(bare.path)
    with pytest.raises(UserError, match=r"not stored in .*bare: .*--no-state"):
        _ = again.state
    flags = "--num-tasks 2 --samples-per-task 10 --seed 0 --net mlp:4 --no-state"
    out = tmp_path / "command"
    code, *_ = call(capsys, "run", "online", "mnist-rotations", *flags.split(), "--out", out)
    assert code == 0 and not (out / "state").exists()


def test_a_folder_of_before_still_loads(named, tmp_path):
    old = shutil.copytree(named.path, tmp_path / "old")
    shutil.rmtree(old / "state")
    artefacts.seal(old, named.config["config_hash"])
    with pytest.raises(UserError, match="final states are not stored in .*an earlier version"):
        _ = cljax.load(old).state


def test_a_damaged_state_is_one_sentence(named, tmp_path):
    copy = shutil.copytree(named.path, tmp_path / "copy")
    opened = cljax.load(copy)
    file = next(
        p
        for p in sorted((copy / "state/seed5").rglob("*"))
        if p.is_file() and p.stat().st_size > 1000
    )
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="final state of seed 5 in .* is damaged; restore"):
        _ = opened.state
    with pytest.raises(UserError, match="its SHA-256 is another one"):
        cljax.load(copy)


def test_a_state_of_another_run_does_not_fit(named, tmp_path):
    other = cljax.run(dataclasses.replace(NAMED, net="mlp:5"), seeds=[3, 5], out=tmp_path / "other")
    shutil.rmtree(other.path / "state")
    shutil.copytree(named.path / "state", other.path / "state")
    artefacts.seal(other.path, other.config["config_hash"])
    with pytest.raises(UserError, match="seed 3 in .* cannot be read: .*of another run"):
        _ = cljax.load(other.path).state


def test_code_that_a_folder_names_is_not_imported_for_its_state(named, tmp_path):
    copy = shutil.copytree(named.path, tmp_path / "theirs")
    begun = {**named.config["begun_as"], "method": "theirs:method"}
    rewrite(copy, "config.json", lambda config: {**config, "begun_as": begun})
    with pytest.raises(UserError, match="names the code theirs:method.*trust=True"):
        _ = cljax.load(copy).state
    with pytest.raises(UserError, match="names the module theirs"):  # then it is looked for
        _ = cljax.load(copy, trust=True).state


def test_states_of_a_run_whose_parts_are_other_now_are_refused(named, tmp_path):
    copy = shutil.copytree(named.path, tmp_path / "other")
    begun = {**named.config["begun_as"], "net": "mlp:6"}
    rewrite(copy, "config.json", lambda config: {**config, "begun_as": begun})
    with pytest.raises(UserError, match="holds another run: net differ"):
        _ = cljax.load(copy).state


def test_a_killed_end_is_written_again(objects, tmp_path, monkeypatch):
    """The states are there already when the run ends for the second time."""
    finish = artefacts.finish

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(artefacts, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run")
    monkeypatch.setattr(artefacts, "finish", finish)
    done = small_run(tmp_path / "run")
    same(small_run(done.path).state.states, objects.state.states)


def test_states_of_diverged_seeds_are_kept_but_are_no_answer(tmp_path):
    lost = cljax.run(METHOD.replace(lr=1e30), support.stream(), seeds=2, out=tmp_path / "run",
                     **SMALL)  # fmt: skip
    assert (lost.path / "state/seed1").exists()
    with pytest.raises(UserError, match="All seeds of this run diverged"):
        _ = lost.state


def test_the_flag_is_listed(capsys):
    code, out, _ = call(capsys, "run", "online", "mnist-rotations", "--help")
    assert code == 0 and "--no-state" in out
    assert one_sentence(*call(capsys, "sweep", "online", "mnist-rotations", "--no-state"))
