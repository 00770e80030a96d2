"""A folder from somebody else: it runs nothing, leads nowhere, and never ends in a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from folders_support import (
    call,
    contents,
    one_sentence,
    rewrite,
    small_plan,
    small_run,
    unfinished,
)  # fmt: skip

import cljax
from cljax import sweep
from cljax.cli import sweep as cli_sweep
from cljax.errors import UserError
from cljax.recipes import Recipe
from cljax.references import tables
from cljax.runner import artefacts, snapshots
from cljax.storage import checkpoint, files

RECIPE = {
    "method": "online", "stream": "mnist-rotations", "source": "default", "net": "mlp:4",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy it to change it."""
    return small_run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep; copy it to change it."""
    return sweep.run(small_plan(), tmp_path_factory.mktemp("sweeps") / "sweep").path


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module of the folder's maker, in the current folder; a file tells that it ran."""
    (tmp_path / "theirs.py").write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        Path({str(tmp_path / "ran")!r}).write_text("1")
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path / "ran"
    sys.modules.pop("theirs", None)


def begun_as(**names):
    return {
        **dict(Recipe("online", "mnist-rotations").__dict__),
        "net": "mlp:4",
        **names,
    }


@pytest.mark.parametrize(
    "names",
    [
        {"method": "theirs:method"}, {"stream": "theirs:stream"}, {"net": "theirs:net"},
        {"method": "theirs:method", "stream": "theirs:stream", "net": "theirs:net"},
        {"method": "er", "method_options": {"memory": "theirs:Memory"}},
    ],
    ids=str,
)  # fmt: skip
def test_code_that_a_run_names_is_imported_only_with_trust(names, code, finished, capsys):
    folder = unfinished(finished, code.parent / "run", begun_as=begun_as(**names))
    before, held = list(sys.path), contents(folder)
    with pytest.raises(UserError, match="add --trust") as raised:
        cljax.resume(folder)
    named = [v for v in (*names.values(), *names.get("method_options", {}).values()) if ":" in v]
    assert all(name in str(raised.value) for name in named)
    assert one_sentence(*(said := call(capsys, "resume", folder))), said
    for arguments in (["report", folder, "--out", code.parent / "a.html"], ["cite", folder]):
        assert call(capsys, *arguments)[0] == 0
    assert not code.exists() and "theirs" not in sys.modules and sys.path == before
    assert contents(folder) == held
    said = call(capsys, "resume", folder, "--trust")  # it is imported, and has no such factory
    assert one_sentence(*said) and "which the module theirs does not have" in said[2]
    assert code.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["theirs:method", "mnist-rotations"], ["online", "theirs:stream"],
        ["online", "mnist-rotations", "--net", "theirs:net"],
        ["online", "mnist-rotations", "--net=theirs:net"],
        ["online", "mnist-rotations", "--over", "net=mlp:5;theirs:net"],
        ["er", "mnist-rotations", "--memory", "theirs:Memory"],
        ["er", "mnist-rotations", "--over", "memory=ring,theirs:Memory"],
        ["online", "mnist-rotations", "--score", "theirs:score"],
        ["online", "mnist-rotations", "--loss", "theirs:loss"],
    ],
    ids=lambda arguments: " ".join(arguments[2:]) or ":".join(arguments),
)  # fmt: skip
def test_code_that_a_sweep_names_is_imported_only_with_trust(
    arguments, code, swept, capsys, monkeypatch
):
    folder = shutil.copytree(swept, code.parent / "sweep")
    rewrite(folder, "sweep.json", lambda s: s | {"begun_as": {"arguments": arguments}})
    said = call(capsys, "resume", folder)
    assert one_sentence(*said) and "theirs:" in said[2] and "--trust" in said[2]
    assert call(capsys, "sweep", "status", folder)[0] == 0
    assert not code.exists() and "theirs" not in sys.modules
    asked = []
    monkeypatch.setattr(cli_sweep, "_run", lambda arguments, _: asked.append(arguments) or 0)
    assert call(capsys, "resume", folder, "--trust")[0] == 0
    assert asked == [[*arguments, "--out", str(folder)]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out=a", "--shard=0/1", "theirs:method", "mnist-rotations"],
        ["--over", "lr=0.1", "online", "theirs:stream"],
        ["online", "mnist-rotations", "--net", "--out", "x", "theirs:net"],
        ["online", "mnist-rotations", "--over", "--out", "x", "net=theirs:net;mlp:4"],
        ["online", "mnist-rotations", "--over=net=theirs:net"],
    ],
    ids=" ".join,
)
def test_code_that_stands_behind_what_is_left_out_needs_trust(arguments, code, swept, capsys):
    folder = shutil.copytree(swept, code.parent / "sweep")
    rewrite(folder, "sweep.json", lambda s: s | {"begun_as": {"arguments": arguments}})
    before = list(sys.path)
    said = call(capsys, "resume", folder)
    assert one_sentence(*said) and "theirs:" in said[2] and "--trust" in said[2]
    assert not code.exists() and "theirs" not in sys.modules and sys.path == before


def test_a_sweep_does_not_say_where_to_write_or_which_machines_to_join(swept, tmp_path, capsys,
                                                                       monkeypatch):  # fmt: skip
    folder = shutil.copytree(swept, tmp_path / "sweep")
    evil = ["--out", "/etc", "--out=/etc", "--distributed", "far:1,0/2", "--devices=9", "--shard",
            "0/9"]  # fmt: skip
    own = ["online", "mnist-rotations", "--seeds", "1"]
    rewrite(folder, "sweep.json", lambda s: s | {"begun_as": {"arguments": [*own, *evil]}})
    asked = []
    monkeypatch.setattr(cli_sweep, "_run", lambda arguments, _: asked.append(arguments) or 0)
    assert call(capsys, "resume", folder)[0] == 0
    assert asked == [[*own, "--out", str(folder)]]


def test_a_recipe_of_a_sweep_that_names_code_needs_trust(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "sweep")
    rewrite(folder, "sweep.json", lambda s: s | {"base": begun_as(stream="theirs:stream")})
    with pytest.raises(UserError, match="theirs:stream"):
        sweep.load(folder).recipe()
    rewrite(folder, "sweep.json", lambda s: s | {"base": begun_as(
        method="er", method_options={"memory": "theirs:Memory"})})  # fmt: skip
    with pytest.raises(UserError, match="theirs:Memory"):
        sweep.load(folder).recipe()
    rewrite(folder, "sweep.json", lambda s: s | {"base": begun_as(stream="theirs:stream")})
    with pytest.raises(UserError, match="theirs, which cannot be imported"):
        sweep.load(folder).recipe(trust=True)


def test_a_data_set_that_names_code_is_not_read(tmp_path):
    from cljax.data import SOURCES, prepared

    inner = {"image": {"pythonClassName": "theirs.Image"}}
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": inner}}))
    with pytest.raises(UserError, match=r"names the code theirs\.Image"):
        prepared.decode(tmp_path, SOURCES["mnist"])


def target(tmp_path):
    """A file that matters, elsewhere."""
    path = tmp_path / "thesis.tex"
    path.write_text("years of work")
    return path


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_that_is_no_file_is_neither_followed_nor_emptied(kind, tmp_path):
    thesis, folder = target(tmp_path), tmp_path / "run"
    folder.mkdir()
    lock = folder / ".lock"
    {
        "link": lambda: lock.symlink_to(thesis),
        "dangling": lambda: lock.symlink_to(tmp_path / "new"),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }[kind]()
    with pytest.raises(UserError, match=r"\.lock is"), artefacts.claim(folder):
        pass
    assert not artefacts.busy(lock)
    assert thesis.read_text() == "years of work" and not (tmp_path / "new").exists()
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "plots", "manifest", "checkpoint", "rule/seed0"])
def test_nothing_is_written_through_a_link_in_a_folder(name, finished, tmp_path):
    thesis, folder = target(tmp_path), shutil.copytree(finished, tmp_path / "run")
    (folder / "checkpoint").mkdir()
    (folder / "results.json").unlink()  # so that it goes on
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(thesis if name == "metrics.jsonl" else tmp_path)
    with pytest.raises(UserError, match=rf"{name} is a link, so nothing is written"):
        small_run(folder)
    assert thesis.read_text() == "years of work"
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "run"}


def test_reading_commands_write_nothing(finished, swept, tmp_path, capsys):
    run, grid = (shutil.copytree(f, tmp_path / f.name) for f in (finished, swept))
    half = unfinished(finished, tmp_path / "half")
    (grid / ".lock-0-of-1").symlink_to(target(tmp_path))
    (grid / ".lock-1-of-2").write_text("")
    held = [contents(folder) for folder in (run, grid, half)]
    for arguments, code in (
        (["sweep", "status", grid], 0), (["resume", run], 0), (["cite", run, grid, half], 0),
        (["report", run, grid, half, "--out", tmp_path / "page.html", "--no-figures"], 0),
    ):  # fmt: skip
        done, out, err = call(capsys, *arguments)
        assert done == code and "at work" not in out, err
    assert cljax.load(run).table() and cljax.load(grid).table()
    assert [contents(folder) for folder in (run, grid, half)] == held
    assert target(tmp_path).read_text() == "years of work"


def shapes(value):
    """The value with other JSON in the place of it, or of one of its fields."""
    yield from ([], None, "text", 3, True, [[]])
    for name, held in value.items():
        for other in (None, [None], {"a": []}, "text", -1.5):
            yield value | {name: other}
        if isinstance(held, dict) and held:
            yield value | {name: held | {next(iter(held)): [1, {}]}}
        yield {key: part for key, part in value.items() if key != name}


@pytest.mark.parametrize("name", ["config.json", "results.json", "files.json"])
def test_json_of_another_shape_in_a_run_is_a_sentence(name, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    whole = json.loads((folder / name).read_text())
    sealed = json.loads((folder / "files.json").read_text())["config_hash"]
    refused = 0
    for value in shapes(whole):
        (folder / name).write_text(json.dumps(value))
        if name != "files.json":
            artefacts.seal(folder, sealed)  # so that only the shape is wrong
        try:
            run = cljax.load(folder)
            assert run.table() and run.table("csv") and run.cite() is not None and run.protocol()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and name.partition(".")[0] in str(error)
    assert refused > len(whole) * (2 if name == "files.json" else 1)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": [1]}, {"packages": 5}, {"settings": {"xla_flags": [1, 2]}},
        {"settings": {"xla_flags": {"a": [1]}}}, {"versions": {"jax": [1]}},
        {"device": {"backend": "cpu", "kind": 3}}, {"identity": {"mark": 3}}, {"begun_as": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_of_another_shape_is_no_defect_of_ours(change, finished, tmp_path, capsys):
    from cljax.runner.config import config_hash

    folder = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text()) | change
    config["config_hash"] = config_hash(config)
    (folder / "config.json").write_text(json.dumps(config))
    results = json.loads((folder / "results.json").read_text())
    results["config_hash"] = config["config_hash"]
    (folder / "results.json").write_text(json.dumps(results))
    artefacts.seal(folder, config["config_hash"])
    for arguments in (["resume", folder], ["report", folder, "--no-figures"], ["cite", folder]):
        code, _, err = call(capsys, *arguments)
        assert code in (0, 2) and "defect" not in err and err.count("\n") <= 1, err


def test_json_of_another_shape_in_a_run_to_resume_is_a_sentence(finished, tmp_path):
    whole = begun_as(stream_options={"sample": True})
    for i, value in enumerate([*shapes(whole)][::7]):
        folder = tmp_path / str(i)
        unfinished(finished, folder, begun_as=value)
        with pytest.raises(UserError) as raised:  # at the latest since it is another run
            cljax.resume(folder)
        assert "\n" not in str(raised.value)


def test_json_of_another_shape_in_a_sweep_is_a_sentence(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "sweep")
    sealed = json.loads((folder / "files.json").read_text())["config_hash"]
    for name in ("sweep.json", "results.json"):
        text = (folder / name).read_text()
        for value in shapes(json.loads(text)):
            (folder / name).write_text(json.dumps(value))
            artefacts.seal(folder, sealed)
            for read in (lambda f: sweep.load(f).table(), sweep.status):
                try:
                    assert read(folder)
                except UserError as error:
                    assert "\n" not in str(error)
        (folder / name).write_text(text)
        artefacts.seal(folder, sealed)
    assert sweep.load(folder).results is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", "[" * 10**5, '{"a": NaN}', '{"a": 1e9', "\ud800", "[" + "9" * 5000 + "]"],
    ids=["empty", "open", "words", "deep", "nan", "cut", "no-unicode", "digits"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "results.json", "files.json"])
def test_what_is_no_json_is_a_sentence(name, text, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=name) as raised:
        cljax.load(folder)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_longer_than_any_of_ours_is_not_read(tmp_path):
    with open(tmp_path / "long.json", "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(ValueError, match="longer than"):
        files.read_json(tmp_path / "long.json", most=1000)


def npy(header):
    """A ``.npy`` file that is all header."""
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def npz(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, content in enumerate(members):
            archive.writestr(f"a{i}.npy", content)


def objects():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 70, 1 << 70)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
        npy("__import__('os').system('true')"),
        objects(),
        b"no array",
        b"",
    ],
    ids=["1e14", "overflow", "negative", "object", "code", "pickle", "bytes", "empty"],
)
def test_arrays_that_claim_too_much_or_are_none_are_refused(content, tmp_path):
    npz(tmp_path / snapshots.NAME, content)
    with pytest.raises(UserError, match="damaged"):
        snapshots.read(tmp_path)
    (tmp_path / "a.npy").write_bytes(content)
    with open(tmp_path / "a.npy", "rb") as file, pytest.raises((ValueError, SyntaxError)):
        files.read_array(file, len(content))


def test_an_archive_that_unpacks_to_more_than_it_may_is_refused(tmp_path):
    npz(tmp_path / "bomb.npz", *[bytes(1 << 20)] * 8)
    with pytest.raises(ValueError, match="claims to hold"):
        files.read_arrays(tmp_path / "bomb.npz", most=1 << 22)
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.eye(3)), "c": np.ones(0)}
    files.write_arrays(tmp_path / "good.npz", arrays)
    found = files.read_arrays(tmp_path / "good.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_only_folders_with_numbers_of_ours_are_checkpoints(tmp_path):
    for name in ("²²²²²²²²", "٣٣٣٣٣٣٣٣", "12", "0000001x", "9" * 200, "-0000001"):
        (tmp_path / name).mkdir()
    assert checkpoint.newest_place(tmp_path) is None and checkpoint.next_number(tmp_path) == 1
    for number in (3, 99999999, 100000000):
        (tmp_path / f"{number:08d}").mkdir()
    assert checkpoint.next_number(tmp_path) == 100000001


def test_a_checkpoint_whose_header_claims_too_much_is_skipped(tmp_path):
    identity = {"config_hash": "a"}
    made = checkpoint.Snapshot({"x": np.arange(4.0)}, {})
    place = checkpoint.save(tmp_path, made, identity, number=1)
    for shape in ([10**14], [10**9, 10**9], [5]):
        rewritten = json.loads((place / "position.json").read_text())
        rewritten["arrays"][0]["shape"] = shape
        (place / "position.json").write_text(json.dumps(rewritten))
        hashes = json.loads((place / "sha256.json").read_text())
        hashes["position.json"] = files.digest(place / "position.json")
        (place / "sha256.json").write_text(json.dumps(hashes))
        found, (said,) = checkpoint.newest(tmp_path, identity)
        assert found is None and "another size" in said


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_modes_are_what_the_umask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        files.write_bytes(tmp_path / "a" / "file", b"1")
        place = checkpoint.save(tmp_path / "c", checkpoint.Snapshot({}, {}), {}, number=1)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o777 & ~mask
    assert place.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(cell):
    line = tables.as_csv("a,b,c", [[cell, -1.5, "-3.25"]]).split("\n", 1)[1]
    assert line.lstrip('"').startswith("'") and line.endswith(",-1.5,-3.25\n")


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    hexes = "0123456789abcdef" * 2
    for name in (f"plots/.heat_map.png.{hexes}.tmp", f".results.json.{hexes}.tmp",
                 "checkpoint/.writing-ab12/arrays/x"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    for name in (".mine.tmp", "plots/a.png", f"x.{hexes}.tmp", f".a.{hexes}"):
        (tmp_path / name).write_bytes(b"whole")
    artefacts.clean(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {".mine.tmp", "plots/a.png", f"x.{hexes}.tmp", f".a.{hexes}"}
    assert not list((tmp_path / "checkpoint").iterdir())
