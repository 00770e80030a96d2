"""``cljax predict``: labels of pictures and arrays from a run's folder, in a table."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys

import numpy as np
import pytest
from folders_support import call, one_sentence, rewrite
from PIL import Image

import cljax
from cljax.storage.integrity import NAME

CLASSES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module", autouse=True)
def _apart(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CLJAX_DATA_DIR", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(name="pictures", scope="module")
def _pictures(tmp_path_factory):
    """A folder of pictures of four colours, those of a class alike."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, num in (("train", 8), ("val", 5)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            colour = np.array([[40, 40, 40], [220, 40, 40], [40, 220, 40], [40, 40, 220]][number])
            for i in range(num):
                pixels = np.clip(rng.normal(colour, 60, (14, 12 + i % 3, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(name="animals", scope="module")
def _animals(pictures, tmp_path_factory):
    """A finished run on them; tests are resized, then cut."""
    source = cljax.streams.make("class-folders", path=str(pictures), num_tasks=2, image_size=8,
                                augment="crop-flip")  # fmt: skip
    return cljax.run("online", source, seeds=[2, 6], net="mlp:6", batch_size=4, epochs=3,
                     out=tmp_path_factory.mktemp("animals") / "run")  # fmt: skip


@pytest.fixture(name="digits", scope="module")
def _digits(tmp_path_factory):
    recipe = cljax.recipes.Recipe("online", "mnist-rotations", net="mlp:4",
                          stream_options={"num_tasks": 2, "samples_per_task": 10})  # fmt: skip
    return cljax.run(recipe, seeds=1, out=tmp_path_factory.mktemp("digits") / "run")


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_pictures_get_the_labels_that_the_run_gave_its_own_tests(
    animals, pictures, tmp_path, capsys
):
    out = tmp_path / "new" / "labels.csv"
    code, said, _ = call(capsys, "predict", animals.path, pictures / "val", "--out", out, "--seed",
                         6)  # fmt: skip
    assert code == 0 and said.strip() == str(out)
    rows = rows_of(out.read_text())
    assert [row["image"] for row in rows] == [f"{c}/{i}.png" for c in CLASSES for i in range(5)]
    assert all(CLASSES[int(row["label"])] == row["class"] for row in rows)
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)
    right = [row["class"] == row["image"].partition("/")[0] for row in rows]
    assert np.mean(right) == pytest.approx(animals.accuracy_matrix()[1, -1].mean())


def test_a_single_picture_is_printed(animals, pictures, capsys):
    code, out, err = call(capsys, "predict", animals.path, pictures / "val" / "bee" / "1.png")
    whole = call(capsys, "predict", animals.path, pictures / "val")[1]
    assert code == 0 and err == "" and rows_of(out)[0]["image"] == "1.png"
    (same,) = [row for row in rows_of(whole) if row["image"] == "bee/1.png"]
    assert rows_of(out)[0]["label"] == same["label"]


def test_files_that_are_no_pictures_are_counted(animals, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures / "val" / "cow", tmp_path / "cow")
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_text("x")
    code, out, err = call(capsys, "predict", animals.path, folder)
    assert code == 0 and len(rows_of(out)) == 5
    assert "1 files of" in err and "such as notes.txt" in err


def test_an_array_of_images_with_its_task(digits, tmp_path, capsys):
    x = digits.made.stream.test_x[:7]
    np.save(tmp_path / "x.npy", x)
    code, out, _ = call(capsys, "predict", digits.path, tmp_path / "x.npy", "--task", 1)
    expected = digits.predict(x, task=1)
    assert code == 0
    assert [int(row["label"]) for row in rows_of(out)] == expected.labels.tolist()
    shares = np.exp(expected.scores - expected.scores.max(axis=1, keepdims=True))
    shares = 1 / shares.sum(axis=1)
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows_of(out)], shares, atol=1e-6
    )


def test_a_grey_picture_of_a_flat_stream_is_read_by_its_grey_levels(digits, tmp_path, capsys):
    x = digits.made.stream.test_x[3]
    Image.fromarray(x.reshape(28, 28)).save(tmp_path / "three.png")
    code, out, _ = call(capsys, "predict", digits.path, tmp_path / "three.png", "--task", 0)
    assert code == 0 and int(rows_of(out)[0]["label"]) == digits.predict(x[None], task=0).labels[0]


@pytest.mark.parametrize("num", [None, 2])
def test_where_targets_are_no_classes_the_table_has_the_outputs(num, tmp_path, capsys, monkeypatch):
    (tmp_path / "own_slopes.py").write_text(
        "import cljax, numpy as np\n"
        "def stream():\n"
        "    x = np.arange(24, dtype=np.float32).reshape(12, 2) / 24\n"
        f"    y = x{'[:, 0]' if num is None else ''} * 2\n"
        "    data = x, y, np.arange(12) // 6\n"
        "    return cljax.streams.from_arrays(\n"
        "        data, test=data, name='slopes', dtype='float32', loss='squared-error')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_slopes", raising=False)
    run = cljax.run("er", "own_slopes:stream", seeds=1, net="mlp:3", out=tmp_path / "run",
                    progress=False)  # fmt: skip
    x = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
    np.save(tmp_path / "x.npy", x)
    asked = ("predict", run.path, tmp_path / "x.npy", "--out", tmp_path / "labels.csv")
    code, _, err = call(capsys, *asked)
    assert code == 2 and "names the code own_slopes:stream" in err and "--trust" in err
    code, _, err = call(capsys, *asked, "--trust")
    assert (code, err) == (0, "")
    rows = rows_of((tmp_path / "labels.csv").read_text())
    names = [f"output_{k}" for k in range(num or 1)]
    assert list(rows[0]) == ["image", *names] and [row["image"] for row in rows] == list("01234")
    written = np.array([[row[name] for name in names] for row in rows], np.float32)
    np.testing.assert_array_equal(written, run.predict(x).scores)


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ("none.png", (), "There are no images"),
        ("empty", (), "holds no picture"),
        ("broken.png", (), "The picture .*broken.png cannot be used"),
        ("small.png", (), "has 5 x 4 pixels, but the run learned from 28 x 28"),
        ("whole.png", (), "The task must be given, because mnist-rotations"),
        ("whole.png", ("--task", "2"), "2 tasks, so it must be a number from 0 to 1"),
        ("whole.png", ("--task", "0", "--seed", "4"), "no final state of seed 4"),
        ("whole.png", ("--task", "first"), "--task is 'first', but it must be"),
        ("whole.png", ("--tusk", "0"), "flag"),
        ("whole.png", ("--task", "0", "--out", "."), "cannot be written"),
        ("broken.npy", (), "cannot be read as an array"),
        ("single.npy", (), "holds a single number"),
        ("wide.npy", ("--task", "0"), "The examples have the shape"),
    ],
)
def test_mistakes_are_one_sentence(digits, tmp_path, capsys, images, more, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "single.npy", np.float32(1))
    np.save(tmp_path / "wide.npy", np.zeros((2, 29), np.uint8))
    Image.new("L", (5, 4)).save(tmp_path / "small.png")
    Image.new("L", (28, 28)).save(tmp_path / "whole.png")
    found = call(capsys, "predict", digits.path, tmp_path / images, *more)
    assert one_sentence(*found)
    assert re.search(message, found[2]), found[2]


def test_a_folder_that_is_no_run_or_names_code_is_refused(digits, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.new("L", (28, 28)).save(picture)
    assert one_sentence(*call(capsys, "predict", digits.path))
    assert one_sentence(*call(capsys, "predict", tmp_path / "none", picture))
    copy = shutil.copytree(digits.path, tmp_path / "theirs")
    begun = {**digits.config["begun_as"], "stream": "theirs:stream"}
    rewrite(copy, "config.json", lambda config: {**config, "begun_as": begun})
    found = call(capsys, "predict", copy, picture, "--task", 0)
    assert one_sentence(*found) and "names the code theirs:stream" in found[2]
    found = call(capsys, "predict", copy, picture, "--task", 0, "--trust")
    assert one_sentence(*found) and "module theirs" in found[2]
    (copy / NAME).unlink()
    assert one_sentence(*call(capsys, "predict", copy, picture))


def test_scores_that_are_no_logits_have_no_probability():
    from cljax.cli.predict import _probabilities

    scores = np.array([[0.5, 0.25], [-np.inf, 1.0]])
    assert _probabilities(scores, "nearest-mean") == ["", ""]
    assert _probabilities(scores, "logits") == [f"{1 / (1 + np.exp(-0.25)):.6f}", "1.000000"]


def test_help_says_what_is_needed(capsys):
    code, out, _ = call(capsys, "predict", "--help")
    assert code == 0 and "--task" in out and "IMAGES" in out
