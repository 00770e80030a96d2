"""Class orders and splits as files: written, read, refused where they are damaged or do not fit."""

from __future__ import annotations

import json

import mnist_support
import numpy as np
import pytest
import support

import cljax
from cljax import streams
from cljax.errors import UserError
from cljax.streams import plan

DATA = mnist_support.digits(200, 20)
ORDER = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]


def split(**options):
    return streams.SplitMNIST(**options).build(DATA)


def test_a_class_order_goes_into_a_stream(tmp_path):
    path = streams.save_class_order(tmp_path / "mine.json", ORDER)
    assert streams.load_class_order(path) == ORDER
    stream = streams.IncrementalMNIST(class_order=str(path)).build(DATA)
    assert stream.manifest["class_order"].tolist() == ORDER
    assert set(np.asarray(DATA.train_y)[_original(stream, 1)]) == {1}  # the sixth class
    assert stream.checksum != streams.IncrementalMNIST().build(DATA).checksum
    streams.save_class_order(path, list(range(10)))
    assert streams.IncrementalMNIST(class_order=str(path)).build(DATA).checksum == (
        streams.IncrementalMNIST().build(DATA).checksum
    )


def _original(stream, task):
    """Rows of the whole data set: all ten digits are used, so they are the stream's own."""
    return stream.subsets(0)[task]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: {**stored, "class_order": [*ORDER[1:], ORDER[0]]}, "is recorded; copy it"),
        (lambda stored: {**stored, "class_order": [*ORDER[1:], 9]}, "each of 0 to 9 once"),
        (lambda stored: {"class_order": ORDER}, "cannot be read"),
        (lambda stored: ORDER, "cannot be read"),
        (lambda stored: {**stored, "class_order": []}, "must hold each"),
    ],
)
def test_a_class_order_that_is_damaged_is_refused(change, message, tmp_path):
    path = streams.save_class_order(tmp_path / "mine.json", ORDER)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        streams.IncrementalMNIST(class_order=str(path)).build(DATA)


def test_class_orders_that_cannot_be_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="each of 0 to 1 once"):
        streams.save_class_order(tmp_path / "mine.json", [1, 2])
    with pytest.raises(UserError, match="must end in .json"):
        streams.save_class_order(tmp_path / "mine.txt", ORDER)
    with pytest.raises(UserError, match="FileNotFoundError"):
        streams.IncrementalMNIST(class_order=str(tmp_path / "none.json")).build(DATA)
    three = streams.save_class_order(tmp_path / "three.json", [2, 0, 1])
    with pytest.raises(UserError, match="holds 3 classes, but there are 10"):
        streams.IncrementalMNIST(class_order=str(three)).build(DATA)
    with pytest.raises(UserError, match="did you mean seeded"):
        streams.IncrementalMNIST(class_order="seedd").build(DATA)


def test_a_split_gives_the_same_plan_again(tmp_path):
    stream = split(samples_per_task=20)
    path = streams.save_split(tmp_path / "split.npz", stream, [0, 7])
    again = streams.with_split(split(), path)  # which by itself would have 36 a task
    for seed in (0, 7):
        for a, b in zip(plan(stream, seed, 6, 2), plan(again, seed, 6, 2), strict=True):
            assert np.array_equal(a, b)
        for a, b in zip(stream.valid(seed), again.valid(seed), strict=True):
            assert np.array_equal(a, b)
    by_flag = split(stream_manifest=str(path))
    assert np.array_equal(by_flag.subsets(7)[2], stream.subsets(7)[2])
    assert by_flag.checksum == again.checksum != split().checksum
    with pytest.raises(UserError, match="records the seeds 0, 7, but not 1"):
        plan(again, 1, 6)


def test_the_manifest_of_a_run_is_a_split(tmp_path):
    stream, options = split(samples_per_task=20), {"seeds": [3], "net": "mlp:5"}
    first = cljax.run(cljax.Finetune(), stream, out=tmp_path / "run", **options)
    again = split(stream_manifest=str(tmp_path / "run" / "manifest" / "stream.npz"))
    second = cljax.run(cljax.Finetune(), again, **options)
    assert first.results["accuracy_matrix"] == second.results["accuracy_matrix"]
    assert first.config["config_hash"] != second.config["config_hash"]


def rewritten(path, **changes):
    """The split with other arrays and a checksum that fits them."""
    with np.load(path) as stored:
        arrays = {**stored, **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    arrays["manifest_sha256"] = np.array(streams.base.manifest_checksum(arrays))
    np.savez(path, **arrays)


FAR, TASK = np.array([9999], np.int32), np.array([0], np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed0_train_rows": None}, "holds no rows of seeds"),
        ({"seed0_valid_rows": None}, "lacks valid rows"),
        ({"seed0_train_rows": FAR, "seed0_train_tasks": TASK}, "rows up to 9999"),
        ({"seed0_valid_rows": FAR[:0], "seed0_valid_tasks": TASK[:0],
          "seed0_train_rows": FAR[:0], "seed0_train_tasks": TASK[:0]}, "has no training examples"),
        ({"labels_sha256": np.array("0")}, "for other examples or another class order"),
    ],
)  # fmt: skip
def test_a_split_that_does_not_fit_is_refused(changes, message, tmp_path):
    path = streams.save_split(tmp_path / "split.npz", split(), [0])
    rewritten(path, **changes)
    with pytest.raises(UserError, match=message):
        streams.with_split(split(), path)


def test_a_split_of_wrong_classes_or_shared_rows_is_refused(tmp_path):
    path = streams.save_split(tmp_path / "split.npz", split(), [0])
    with np.load(path) as stored:
        rows, tasks = stored["seed0_train_rows"], stored["seed0_train_tasks"]
    rewritten(path, seed0_train_tasks=(tasks + 1) % 5)
    with pytest.raises(UserError, match="without its class"):
        streams.with_split(split(), path)
    rewritten(path, seed0_train_tasks=tasks, seed0_valid_rows=rows, seed0_valid_tasks=tasks)
    with pytest.raises(UserError, match="validates on some of them"):
        streams.with_split(split(), path)


def test_a_split_that_was_changed_or_is_none_is_refused(tmp_path):
    path = streams.save_split(tmp_path / "split.npz", split(), [0])
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "seed0_train_rows": arrays["seed0_train_rows"][::-1]})
    with pytest.raises(UserError, match="is recorded; copy it again"):
        split(stream_manifest=str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a readable .npz file"):
        split(stream_manifest=str(path))
    with pytest.raises(UserError, match="no stream manifest"):
        split(stream_manifest=str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="must end in .npz"):
        streams.save_split(tmp_path / "split.json", split(), [0])


def test_a_split_of_a_stream_without_tasks_is_made_from_its_tasks(tmp_path):
    path = streams.save_split(tmp_path / "split.npz", support.stream(), [0])
    with pytest.raises(UserError, match="a plan of its own"):
        streams.with_split(streams.task_free(support.stream()), path)
    free = streams.task_free(streams.with_split(support.stream(), path))
    assert np.array_equal(
        plan(free, 0, 4).index, plan(streams.task_free(support.stream()), 0, 4)[0]
    )
