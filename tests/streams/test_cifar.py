from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnist_support import SHARED
from pictures_support import pictures

from cljax import streams
from cljax.data import from_jpeg
from cljax.errors import UserError
from cljax.resolve import options_of
from cljax.streams import STREAMS, cifar, make, on_validation, plan
from cljax.streams.cifar import CIFAR10_MEAN, CIFAR10_STD, CIFAR100_MEAN, CIFAR100_STD
from cljax.streams.classes import class_groups


@pytest.mark.parametrize("tasks", [10, 5, 20, 2])
def test_tasks_by_name(tasks):
    each = 100 // tasks
    stream = STREAMS[f"cifar100-{tasks}x{each}"].build(pictures())
    assert stream.name == f"cifar100-{tasks}x{each}" and stream.num_tasks == tasks
    assert (stream.scenario, stream.multi_head, stream.published) == ("class", False, False)
    owner = np.arange(100) // each
    assert np.array_equal(stream.class_mask, owner == np.arange(tasks)[:, None])
    assert np.array_equal(stream.manifest["class_order"], np.arange(100))
    assert stream.train_x is pictures().train_x  # one copy
    for t in range(tasks):
        for labels in (stream.train_y[stream.subsets(0)[t]], stream.test_y[stream.test_index[t]]):
            assert (owner[labels] == t).all()
        assert len(stream.subsets(0)[t]) == 18 * each and len(stream.test_index[t]) == 3 * each


def test_the_flags_of_a_name_have_its_defaults():
    for name, each in (("cifar100-20x5", 5), ("cifar100-2x50", 50)):
        flags = {option.name: option for option in options_of(STREAMS[name])}
        assert flags["classes_per_task"].default == each and "margin" in flags["augment"].help
        assert {"class_order", "class_seed", "val", "multi_head", "data_dir"} <= set(flags)
    assert STREAMS["cifar100-20x5"].summary == "CIFAR-100 in 20 tasks of 5 new classes."
    thousand = {o.name: o.default for o in options_of(STREAMS["imagenet1k-10x100"])}
    assert (thousand["classes"], thousand["classes_per_task"]) == (1000, 100)


@settings(max_examples=15, deadline=None)
@given(
    classes=st.integers(1, 100),
    each=st.integers(1, 30),
    order=st.sampled_from(["natural", "seeded"]),
    seed=st.integers(0, 5),
)
def test_outputs_follow_task_after_task_in_any_order(classes, each, order, seed):
    if each > classes:
        each = classes
    stream = streams.CIFAR100(
        classes=classes, classes_per_task=each, class_order=order, class_seed=seed
    ).build(pictures())
    assert stream.num_classes == classes and stream.num_tasks == -(-classes // each)
    owner = np.arange(classes) // each
    assert np.array_equal(stream.class_mask, owner == np.arange(stream.num_tasks)[:, None])
    assert stream.train_y.max() < classes and len(stream.train_y) == 20 * classes
    original = stream.manifest["class_order"]
    assert len(set(original.tolist())) == classes
    if order == "natural":
        assert np.array_equal(original, np.arange(classes))
    # Each image keeps its class: through the order its label is the original one.
    whole = pictures()
    kept = np.isin(whole.train_y, original)
    assert np.array_equal(original[stream.train_y], whole.train_y[kept])
    assert np.array_equal(stream.train_x, whole.train_x[kept])
    kept = np.isin(whole.test_y, original)
    assert np.array_equal(original[stream.test_y], whole.test_y[kept])


def test_seeded_orders():
    orders = [class_groups(100, 10, order="seeded", seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert class_groups(100, 10, classes=30, order="seeded") == orders[0][:3]
    assert class_groups(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("order", ["natural", "seeded"])
def test_held_out_images_are_neither_learned_nor_tested(order):
    stream = streams.CIFAR100(classes=20, classes_per_task=4, class_order=order).build(pictures())
    held = [np.sort(np.concatenate(stream.valid(seed))) for seed in (0, 1)]
    assert not np.array_equal(*held)
    for seed in (0, 1):
        learned = np.concatenate(stream.subsets(seed))
        assert not np.intersect1d(learned, held[seed]).size
        assert np.array_equal(np.sort(np.append(learned, held[seed])), np.arange(400))
        assert (np.bincount(stream.train_y[held[seed]]) == 2).all()
        again = streams.CIFAR100(classes=20, classes_per_task=4, class_order=order).build(
            pictures()
        )
        assert np.array_equal(np.concatenate(again.subsets(seed)), learned)
    tests = np.sort(np.concatenate(stream.test_index))
    assert np.array_equal(tests, np.arange(60)) and len(stream.test_x) == 60
    tuning = on_validation(stream, 0)
    assert len(tuning.test_index[0]) == 8
    none = streams.CIFAR100(val=0.0).build(pictures())
    assert sum(map(len, none.subsets(0))) == 2000 and sum(map(len, none.valid(0))) == 0


def test_training_images_are_augmented_and_tests_are_not():
    stream = streams.CIFAR100().build(pictures())
    assert stream.transform.augment is not None
    assert stream.transform.augment.name == "crop4-flip-rotation10"
    assert stream.example.shape == (32, 32, 3) and stream.example.dtype == jnp.float32
    spec, x = stream.spec(4), jnp.asarray(stream.train_x[:4])
    assert spec.stored.shape == (32, 32, 3) and spec.stored.dtype == jnp.uint8
    task, key = jnp.zeros(4, jnp.int32), jax.random.key(3)
    plain, shown = spec.show(x, task), spec.show(x, task, key)
    mean, std = (np.asarray(v, np.float32) for v in (CIFAR100_MEAN, CIFAR100_STD))
    wanted = (stream.train_x[:4].astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(plain, wanted)
    assert shown.shape == plain.shape and not np.array_equal(shown, plain)
    assert np.array_equal(shown, spec.show(x, task, key))
    bare = streams.CIFAR100(augment="none").build(pictures())
    assert bare.transform.augment is None and bare.checksum != stream.checksum
    assert np.array_equal(bare.spec(4).show(x, task, key), plain)


def test_many_heads_and_fewer_images():
    stream = make("cifar100-20x5", multi_head=True, samples_per_task=30).build(pictures())
    assert stream.scenario == "task" and stream.spec(10).multi_head
    assert [len(rows) for rows in stream.subsets(0)] == [30] * 20
    assert plan(stream, 0, 10).index.shape == (60, 10)


def test_svhn_tests_with_true_counts():
    data = pictures(10, 20, 5, ragged=True)
    stream = STREAMS["split-svhn"].build(data)
    assert stream.name == "split-svhn" and not stream.published and stream.num_classes == 10
    assert np.array_equal(stream.class_mask, np.arange(10) // 2 == np.arange(5)[:, None])
    assert [len(rows) for rows in stream.test_index] == [11, 15, 19, 23, 27]
    for t, rows in enumerate(stream.test_index):
        assert set(stream.test_y[rows]) == {2 * t, 2 * t + 1}
        assert not np.intersect1d(stream.subsets(0)[t], stream.valid(0)[t]).size
    assert len(stream.subsets(0)[4]) == (28 - 2) + (29 - 2)
    seen = stream.transform.apply((), jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.zeros(1, jnp.int32))
    assert np.allclose(seen[0, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert stream.transform.augment is not None  # flips, although these are digits
    assert streams.SplitSVHN(augment="none").build(data).transform.augment is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 101}, "classes is 101, but there are only 100"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": 20, "classes_per_task": 30}, "classes_per_task is 30, but there are only 20"),
        ({"classes_per_task": 0}, "classes_per_task is 0"),
        ({"class_order": "random"}, "class order 'random' is not known"),
        ({"augment": "standrad"}, "augment 'standrad' is not known; did you mean standard"),
        ({"val": 1.0}, "val is 1.0"),
        ({"samples_per_task": 181}, "samples_per_task is 181, but a task of cifar100-10x10 has"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        streams.CIFAR100(**options).build(pictures())


def test_data_of_another_form_gets_a_sentence(tmp_path):
    digits = pictures(10, 20, 5, ragged=True)
    grey = digits._replace(train_x=digits.train_x[..., :1])
    with pytest.raises(UserError, match="label 99"):
        streams.SplitSVHN().build(pictures())
    for kind in (streams.CIFAR100, streams.SplitSVHN):
        with pytest.raises(UserError, match=r"shape \[32, 32, 1\]"):
            kind().build(grey)
        with pytest.raises(UserError, match="ships no sample of"):
            kind(sample=True).build()
        with pytest.raises(UserError, match="No data set"):
            kind(data_dir=str(tmp_path)).build()


def test_the_real_cifar100():
    folder = os.environ.get("CLJAX_DATA_DIR") or str(SHARED / "tfds")
    if not any(Path(folder).glob("cifar100/*/dataset_info.json")):
        pytest.skip(f"no CIFAR-100 in {folder}; set CLJAX_DATA_DIR")
    stream = make("cifar100-10x10", data_dir=folder, val=0.0).build()
    assert stream.published and stream.source.startswith("tfds:cifar100/")
    assert [len(rows) for rows in stream.subsets(0)] == [5000] * 10
    assert [len(rows) for rows in stream.test_index] == [1000] * 10
    for options in ({}, {"val": 0.0, "multi_head": True}, {"val": 0.0, "classes": 50}):
        assert not make("cifar100-10x10", data_dir=folder, **options).build().published
    # The published means and deviations are those of the training images, scaled to [0, 1].
    scaled = stream.train_x[::50].astype(np.float64) / 255
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), CIFAR100_MEAN, atol=0.01)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), CIFAR100_STD, atol=0.01)


def test_cifar10_comes_in_five_tasks_of_two():
    data = pictures(10, 20, 5)
    stream = STREAMS["split-cifar10"].build(data)
    assert (stream.name, stream.num_tasks, stream.num_classes) == ("split-cifar10", 5, 10)
    assert np.array_equal(stream.class_mask, np.arange(10) // 2 == np.arange(5)[:, None])
    assert stream.transform.augment is not None and stream.transform.augment.name == "crop4-flip"
    seen = stream.transform.apply((), jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.zeros(1, jnp.int32))
    wanted = [-mean / std for mean, std in zip(CIFAR10_MEAN, CIFAR10_STD, strict=True)]
    np.testing.assert_allclose(seen[0, 0, 0], wanted, rtol=1e-6)
    exact = data._replace(source="tfds:cifar10/3.0.2")
    published = streams.SplitCIFAR10(val=0.0)
    assert published.build(exact).published and not streams.SplitCIFAR10().build(exact).published
    assert not published.replace(classes_per_task=5).build(exact).published


@pytest.mark.parametrize(
    ("written", "lossy"),
    [
        ('{"description": "From a public copy as JPEG files."}', True),
        ('{"description": "60000 images."}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_prepared_data_say_that_they_were_made_of_jpeg_files(written, lossy, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(written)
    assert from_jpeg("cifar10", tmp_path) == lossy


def test_images_from_jpeg_files_are_marked_and_stand_beside_no_published_number(monkeypatch):
    exact = pictures(10, 20, 5)._replace(source="tfds:cifar10/3.0.2")
    monkeypatch.setattr(streams.SplitCIFAR10, "images", lambda self, name, data=None: exact)
    for lossy, name in ((True, "split-cifar10[jpeg]"), (False, "split-cifar10")):
        monkeypatch.setattr(cifar, "from_jpeg", lambda *where, lossy=lossy: lossy)
        stream = streams.SplitCIFAR10(val=0.0).build()
        assert (stream.name, stream.published) == (name, not lossy)
