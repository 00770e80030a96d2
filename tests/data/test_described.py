"""Data sets that cljax has no entry of: what their prepared folders say, images of many sizes."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from cljax import data, streams
from cljax.data import prepared
from cljax.errors import UserError
from cljax.streams import make, plan

IMAGE = {"pythonClassName": "Image", "image": {"shape": {"dimensions": ["-1", "-1", "3"]}}}
LABEL = {"pythonClassName": "ClassLabel", "classLabel": {"numClasses": "4"}}


class Split(list):
    """Examples as tensorflow-datasets gives them."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def examples(count: int, sides=(9, 12), channels: int = 3):
    rng = np.random.default_rng(count)
    return Split(
        {"picture": rng.integers(0, 256, (sides[i % 2], 10, channels), dtype=np.uint8),
         "kind": i % 4, "note": "x"}
        for i in range(count)
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A prepared data set "leaves" whose reader is made up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    describe(tmp_path)
    serve(monkeypatch, {"train": examples(60), "validation": examples(20)})
    return tmp_path


def describe(folder, features=None, **info):
    version = folder / "leaves" / "1.0.0"
    version.mkdir(parents=True, exist_ok=True)
    features = {"kind": LABEL, "note": {}, "picture": IMAGE} if features is None else features
    (version / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    stated = {"splits": [{"name": "train"}, {"name": "validation"}], "citation": "A.\n  Leaf, 2020",
              "redistributionInfo": {"license": "CC BY 4.0"}, **info}  # fmt: skip
    (version / "dataset_info.json").write_text(json.dumps(stated))


def serve(monkeypatch, splits):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = SimpleNamespace(as_data_source=lambda split: splits[split])
    monkeypatch.setattr(tfds, "builder_from_directory", lambda folder: builder)


def test_a_prepared_folder_says_what_its_data_set_is(folder):
    source = data.source_of("leaves", folder)
    assert (source.image, source.label, source.test) == ("picture", "kind", "validation")
    assert (source.num_classes, source.licence) == (4, "CC BY 4.0")
    assert source.citation == "A. Leaf, 2020"
    report = data.source_of("mnist")
    assert report is data.SOURCES["mnist"]


def test_images_of_many_sizes_are_resized_and_kept_by_size(folder):
    small, large = (data.images("leaves", folder, size=size) for size in (6, 8))
    assert small.train_x.shape == (60, 6, 6, 3) and large.test_x.shape == (20, 8, 8, 3)
    assert np.array_equal(small.train_y, np.arange(60) % 4) and small.licence == "CC BY 4.0"
    assert small.source == "tfds:leaves/1.0.0" and small.checksum != large.checksum
    kept = sorted(path.name.split("-")[2] for path in folder.rglob("cljax-leaves-*.npy"))
    assert kept == ["6", "8"]
    with pytest.raises(UserError, match=r"shapes \[9, 10, 3\] and \[12, 10, 3\].*--image-size"):
        data.images("leaves", folder)


def test_grey_images_keep_their_one_channel(folder, monkeypatch):
    serve(monkeypatch, {part: examples(20, (8, 8), 1) for part in ("train", "validation")})
    assert data.images("leaves", folder).train_x.shape == (20, 8, 10, 1)
    assert data.images("leaves", folder, size=4).train_x.shape == (20, 4, 4, 1)


def test_a_stream_of_any_data_set(folder):
    stream = make(
        "dataset-classes",
        dataset="leaves",
        num_tasks=2,
        image_size=8,
        class_order="seeded",
        data_dir=str(folder),
    ).build()
    assert stream.name == "leaves-2" and stream.class_mask.sum(axis=1).tolist() == [2, 2]
    assert stream.example.shape == (8, 8, 3) and not stream.published
    assert stream.licence == "CC BY 4.0" and stream.source == "tfds:leaves/1.0.0"
    steps = plan(stream, 0, 5)
    first = stream.train_y[steps.index[steps.current == 0]]
    assert set(first.reshape(-1)) == {0, 1}
    path = streams.save_split(folder / "split.npz", stream, [4])
    again = make("dataset-classes",
        dataset="leaves", num_tasks=2, image_size=8, class_order="seeded", data_dir=str(folder),
        stream_manifest=str(path),
    ).build()  # fmt: skip
    assert np.array_equal(again.subsets(4)[1], stream.subsets(4)[1])


class SplitLeaves(streams.DatasetClasses, name="split-leaves"):
    """Leaves in order, two kinds to a task."""

    dataset: ClassVar[str] = "leaves"
    num_tasks: int = 2
    image_size: int | None = 8


def test_a_named_data_set_is_a_stream_by_that_name(folder):
    source = SplitLeaves(data_dir=str(folder))
    named, general = source.build(), make("dataset-classes", **source.options, dataset="leaves")
    assert named.name == "split-leaves" and "dataset" not in source.options
    assert source.summary == "Leaves in order, two kinds to a task."
    for field in ("class_mask", "train_x", "train_y", "test_x", "test_y"):
        assert np.array_equal(getattr(named, field), getattr(general.build(), field))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"note": {}}}, "has the features note, but an image and a class"),
        ({"features": {}}, "has the features none"),
        ({"splits": [{"name": "train"}]}, "has the splits train, but"),
        ({"splits": [{"name": "test"}]}, "has the splits test, but train"),
    ],
)
def test_data_sets_that_are_not_of_images_and_classes_get_a_sentence(folder, changes, message):
    describe(folder, **changes)
    with pytest.raises(UserError, match=message):
        data.images("leaves", folder)


def test_what_is_not_there_gets_a_sentence(folder):
    with pytest.raises(UserError, match="No data set food101 in .*cljax data food101 --prepare"):
        data.images("food101", folder)
    with pytest.raises(UserError, match="did you mean mnist"):
        data.images("mnits", folder)
    (folder / "leaves" / "1.0.0" / "features.json").write_text("no json")
    with pytest.raises(UserError, match="features.json could not be read"):
        data.images("leaves", folder)
    with pytest.raises(UserError, match="size is 0"):
        data.images("leaves", folder, size=0)
    with pytest.raises(UserError, match="give --dataset"):
        make("dataset-classes").build()
    describe(folder)
    with pytest.raises(UserError, match="num_tasks is 5, but there are only 4"):
        make("dataset-classes", dataset="leaves", image_size=4, data_dir=str(folder)).build()


def test_licences_are_printed_of_any_of_them(folder, capsys):
    from cljax.cli.command import main

    with pytest.raises(SystemExit) as done:
        main(["data", "leaves", "mnist", "--licences", "--data-dir", str(folder)])
    said = capsys.readouterr().out
    assert done.value.code == 0
    assert "leaves: CC BY 4.0\n  A. Leaf, 2020" in said and "mnist: CC BY-SA 3.0" in said


def test_preparing_an_unknown_name_gets_a_sentence(tmp_path, monkeypatch):
    import sys

    pytest.importorskip("tensorflow_datasets")
    stub = SimpleNamespace(__spec__=ModuleSpec("tensorflow", None))
    monkeypatch.setitem(sys.modules, "tensorflow", stub)
    with pytest.raises(UserError, match="has no data set no_such_leaves"):
        prepared.prepare("no_such_leaves", tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("features.json", "[]"),
        ("features.json", '{"featuresDict": {"features": [1, 2]}}'),
        ("features.json", '{"featuresDict": {"features": {"a": {"image": 0}, "b": '
         '{"classLabel": {}}}}}'),
        ("dataset_info.json", '{"splits": ["train", "test"]}'),
        ("dataset_info.json", '"text"'),
        ("dataset_info.json", '{"splits": 3}'),
        ("features.json", '{"featuresDict"'),
    ],
)  # fmt: skip
def test_descriptions_of_another_shape_are_one_sentence(folder, file, text):
    (folder / "leaves" / "1.0.0" / file).write_text(text)
    with pytest.raises(UserError, match="copy the data set again.$"):
        data.images("leaves", folder, size=8)
