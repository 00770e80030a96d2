"""Checkpoints: what is whole is read back to the bit, and nothing else is ever trusted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from cljax.cli.command import main
from cljax.errors import UserError
from cljax.runner import artefacts
from cljax.runner.config import canonical
from cljax.storage import formats
from cljax.storage.checkpoint import Snapshot, newest, next_number, save

IDENTITY = {"config_hash": "one"}
RUN = ["run", "online", "mnist-rotations", "--sample", "--num-tasks", "2",
       "--samples-per-task", "40", "--seeds", "1"]  # fmt: skip
DTYPES = ("float32", "float64", "int32", "uint8", "bool", "bfloat16")


def made(number):
    """What checkpoint ``number`` of these tests holds."""
    rng = np.random.default_rng(number)
    arrays = {
        "0/place/w": rng.normal(size=(3, 4)).astype(np.float32),
        "0/place/half": rng.normal(size=5).astype(jnp.bfloat16),
        "0/place/at": np.array(number, np.int32),
        "0/matrix": rng.normal(size=(2, 2)),
        "none": np.zeros((0, 3), np.float32),
    }
    return Snapshot(arrays, {"item": number, "label": "ä"})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two checkpoints; copy it."""
    folder = tmp_path_factory.mktemp("two")
    for number in (1, 2):
        save(folder, made(number), IDENTITY, number=number)
    return folder


def assert_same(found, expected):
    assert found.position == expected.position
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        own = found.arrays[name]
        assert (own.dtype, own.shape) == (array.dtype, array.shape), name
        assert own.tobytes() == array.tobytes(), name


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in files(folder)}


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_skipped(sentences, *places):
    """One sentence for each place, in order, that names it."""
    assert len(sentences) == len(places)
    for sentence, place in zip(sentences, places, strict=True):
        assert str(place) in sentence and "skipped" in sentence
        assert sentence.endswith(".") and "\n" not in sentence


def cut(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def shorten(path, rng):
    os.truncate(path, path.stat().st_size - 1)


def empty(path, rng):
    os.truncate(path, 0)


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path, rng):
    path.unlink()


def add(path, rng):
    (path.parent / "added").write_bytes(rng.randbytes(7))


@pytest.mark.parametrize("damage", [cut, shorten, empty, flip, remove, add])
def test_a_checkpoint_with_any_file_damaged_is_skipped_for_the_one_before(damage, two, tmp_path):
    rng = random.Random(0)
    names = [path.relative_to(two / "00000002") for path in files(two / "00000002")]
    assert {"position.json", "sha256.json"} < {str(name) for name in names} and len(names) > 8
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(two, folder)
        damage(folder / "00000002" / name, rng)
        found, skipped = newest(folder, IDENTITY)
        assert_same(found, made(1))
        assert_skipped(skipped, folder / "00000002")
        assert next_number(folder) == 3


def write_npz(folder, arrays):
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)


def read_npz(folder, names):
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in names}


NPZ = formats.Format(write_npz, lambda folder, name: read_npz(folder, [name])[name].size, read_npz)


def test_another_format_is_a_row_and_is_checked_as_well(two, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "npz": NPZ})
    shutil.copytree(two, tmp_path / "run")
    save(tmp_path / "run", made(3), IDENTITY, number=3, form="npz")
    names = {path.name for path in files(tmp_path / "run" / "00000003")}
    assert names == {"arrays.npz", "position.json", "sha256.json"}
    found, skipped = newest(tmp_path / "run", IDENTITY)
    assert_same(found, made(3))
    assert skipped == []
    flip(tmp_path / "run" / "00000003" / "arrays.npz", random.Random(0))
    found, skipped = newest(tmp_path / "run", IDENTITY)
    assert_same(found, made(2))
    assert_skipped(skipped, tmp_path / "run" / "00000003")


def test_a_checkpoint_in_a_format_that_is_not_known_is_skipped(two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(formats, "FORMATS", {"npz": NPZ})
        save(tmp_path / "run", made(3), IDENTITY, number=3, form="npz")
    found, skipped = newest(tmp_path / "run", IDENTITY)
    assert_same(found, made(2))
    assert_skipped(skipped, tmp_path / "run" / "00000003")


def test_no_checkpoint_is_written_in_a_format_that_none_can_read(tmp_path):
    with pytest.raises(UserError, match="format 'numpy' is not known"):
        save(tmp_path / "c", Snapshot({}, {}), {}, number=1, form="numpy")
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_earlier_versions_says_no_format_and_is_read(tmp_path):
    place = save(tmp_path, made(1), IDENTITY, number=1)
    path, hashes = place / "position.json", place / "sha256.json"
    header = json.loads(path.read_text())
    assert header.pop("form") == "orbax"
    path.write_text(json.dumps(header))
    known = json.loads(hashes.read_text())
    known["position.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    hashes.write_text(json.dumps(known))
    found, skipped = newest(tmp_path, IDENTITY)
    assert_same(found, made(1))
    assert skipped == []


def test_a_copy_of_whole_checkpoints_is_whole(two, tmp_path):
    shutil.copytree(two, tmp_path / "copy")
    found, skipped = newest(tmp_path / "copy", IDENTITY)
    assert_same(found, made(2))
    assert skipped == []


def test_a_flipped_bit_in_the_file_of_hashes_is_found(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    path = folder / "00000002" / "sha256.json"
    content = path.read_bytes()
    rng = random.Random(1)
    for bit in rng.sample(range(8 * len(content)), 150):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found, skipped = newest(folder, IDENTITY)
        assert_skipped(skipped, folder / "00000002")
        assert found.position == made(1).position


@pytest.mark.parametrize("name", ["sha256.json", "position.json"])
@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", '"text"', '{"arrays": 3}', "", "\xff"])
def test_other_json_in_its_place_is_skipped_too(name, text, two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "00000002" / name).write_bytes(text.encode("latin1"))
    found, skipped = newest(tmp_path / "run", IDENTITY)
    assert_same(found, made(1))
    assert_skipped(skipped, tmp_path / "run" / "00000002")


def test_with_all_damaged_there_is_none_and_a_sentence_for_each(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    for place in ("00000001", "00000002"):
        (folder / place / "position.json").unlink()
    found, skipped = newest(folder, IDENTITY)
    assert found is None
    assert_skipped(skipped, folder / "00000002", folder / "00000001")


def test_what_is_no_checkpoint_is_not_taken_for_one(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    (folder / "00000003").write_text("a file")
    (folder / "00000004").mkdir()
    (folder / "notes").mkdir()
    found, skipped = newest(folder, IDENTITY)
    assert_same(found, made(2))
    assert_skipped(skipped, folder / "00000004", folder / "00000003")
    assert newest(tmp_path / "nowhere", IDENTITY) == (None, [])


def test_what_a_killed_save_left_is_ignored_and_removed_by_the_next(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    shutil.copytree(folder / "00000002", folder / ".writing-abc")
    (folder / ".writing-def").mkdir()
    found, skipped = newest(folder, IDENTITY)
    assert_same(found, made(2))
    assert skipped == []
    save(folder, made(3), IDENTITY, number=3)
    names = sorted(entry.name for entry in folder.iterdir())
    assert names == ["00000001", "00000002", "00000003"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_are_kept(keep, tmp_path):
    for number in range(1, 6):
        place = save(tmp_path, made(number), IDENTITY, number=number, keep=keep)
        assert place == tmp_path / f"{number:08d}"
    kept = sorted(entry.name for entry in tmp_path.iterdir())
    assert kept == [f"{number:08d}" for number in range(6 - keep, 6)]
    assert_same(newest(tmp_path, IDENTITY)[0], made(5))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        ValueError("RESOURCE_EXHAUSTED: no room\nand a second line"),
        TimeoutError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_write_is_one_sentence_and_leaves_the_earlier_ones(
    error, two, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    write = ocp.Checkpointer.save

    def fail(self, *arguments, **options):
        write(self, *arguments, **options)  # what it left is not a checkpoint
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "save", fail)
        with pytest.raises(UserError) as raised:
            save(folder, made(3), IDENTITY, number=3)
    sentence = str(raised.value)
    assert str(folder) in sentence and "cannot be written" in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert contents(folder) == contents(two)
    assert sorted(entry.name for entry in folder.iterdir()) == ["00000001", "00000002"]
    save(folder, made(3), IDENTITY, number=3)
    assert_same(newest(folder, IDENTITY)[0], made(3))


def test_a_number_that_is_taken_is_not_written_over(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    with pytest.raises(UserError, match="cannot be written"):
        save(folder, made(3), IDENTITY, number=2)
    assert contents(folder) == contents(two)


def test_a_place_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "file" / "checkpoint", made(1), IDENTITY, number=1)


@st.composite
def arrays(draw):
    """An array of any of the types, with any bits, scalars and empty ones among them."""
    name = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if name == "bool":
        return draw(hnp.arrays(bool, shape))
    dtype = jnp.dtype(name)
    return draw(hnp.arrays(f"u{dtype.itemsize}", shape)).view(dtype)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=8), arrays(), max_size=5))
def test_any_arrays_are_read_back_to_the_bit(held):
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Snapshot(held, {"lanes": {}})
        save(Path(folder), snapshot, IDENTITY, number=1)
        found, skipped = newest(Path(folder), IDENTITY)
    assert skipped == []
    assert_same(found, snapshot)


@contextlib.contextmanager
def small_disk(place, size):
    """A file system of its own, which takes a privileged user."""
    place.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    try:
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.parametrize("size", ["256k", "3m"])
def test_a_disk_that_is_full_keeps_the_earlier_checkpoints(size, tmp_path):
    """At 256k the room that is left after the failure is small, at 3m it is not."""
    rng = np.random.default_rng(0)
    rows = 20 if size == "256k" else 200
    large = {str(i): rng.normal(size=(rows, 100)) for i in range(40)}
    with small_disk(tmp_path / "disk", size) as disk:
        folder = disk / "checkpoint"
        save(folder, made(1), IDENTITY, number=1)
        before = contents(folder)
        for number in (2, 3):
            with pytest.raises(UserError) as raised:
                save(folder, Snapshot(large, {}), IDENTITY, number=number)
            sentence = str(raised.value)
            assert str(folder) in sentence and "the disk is full" in sentence
            assert sentence.endswith(".") and "\n" not in sentence
            assert [entry.name for entry in folder.iterdir()] == ["00000001"]
            assert contents(folder) == before
        found, skipped = newest(folder, IDENTITY)
        assert_same(found, made(1))
        assert skipped == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as done:
        main([*RUN, "--out", str(folder)])
    assert done.value.code == 0
    return folder


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "cljax", *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stderr


def results(folder):
    """All but the times, as canonical text."""
    found = json.loads((folder / "results.json").read_text())
    found.pop("time")
    return canonical(found)


def test_a_disk_that_fills_while_a_run_trains_is_one_sentence(finished, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "512k") as disk:
        earlier, folder = disk / "earlier", disk / "run"
        shutil.copytree(finished, earlier)
        code, err = command(*RUN, "--out", str(folder), "--checkpoint-every", "1")
        assert code == 2 and "Traceback" not in err, err
        compiling, sentence = err.splitlines()
        assert compiling == "compiling, then training ..."
        assert sentence.startswith("cljax: ") and sentence.endswith(".")
        assert str(folder) in sentence and "cannot be written" in sentence
        assert contents(earlier) == contents(finished)
        assert not (folder / "results.json").exists()
        mount("-o", "remount,size=64m", disk)
        code, _, err = call(capsys, *RUN, "--out", str(folder))
        assert code == 0, err
        assert results(folder) == results(finished)


def test_a_read_only_disk_is_one_sentence_and_finished_runs_are_read(finished, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "1m") as disk:
        shutil.copytree(finished, disk / "earlier")
        (disk / "begun").mkdir()
        artefacts.begin(disk / "begun", json.loads((finished / "config.json").read_text()))
        mount("-o", "remount,ro", disk)
        for arguments in (
            [*RUN, "--out", str(disk / "run")],
            [*RUN, "--out", str(disk / "begun")],
            ["resume", str(disk / "begun")],
        ):
            code, out, err = call(capsys, *arguments)
            assert code == 2 and out == "" and err.count("\n") == 1, err
            assert "cannot be written" in err and "Read-only" in err
        code, out, _ = call(capsys, *RUN, "--out", str(disk / "earlier"))
        assert code == 0 and "Finished before" in out
        assert contents(disk / "earlier") == contents(finished)


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    return done.value.code, captured.out, captured.err
