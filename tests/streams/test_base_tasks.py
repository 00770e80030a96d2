"""A first task of many classes, then tasks of a few: class-incremental streams and their order."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import mnist_support
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cljax
from cljax import streams
from cljax.cli import flags as parsed
from cljax.data import ImageData, digest
from cljax.errors import UserError
from cljax.resolve import options_of
from cljax.streams import STREAMS, folders, make, on_validation, plan
from cljax.streams.cifar import CIFAR100_MNEMONICS
from cljax.streams.classes import class_groups, name_of, order_1993

# As the specification of the protocol states them.
FIRST_100 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]
FIRST_1000 = [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]


@functools.cache
def pictures(classes: int = 100, each: int = 20, tests: int = 3, size: int = 32) -> ImageData:
    rng = np.random.default_rng(classes + size)
    arrays = (
        rng.integers(0, 256, (classes * each, size, size, 3), dtype=np.uint8),
        rng.permutation(np.repeat(np.arange(classes), each)).astype(np.int32),
        rng.integers(0, 256, (classes * tests, size, size, 3), dtype=np.uint8),
        rng.permutation(np.repeat(np.arange(classes), tests)).astype(np.int32),
    )
    return ImageData(*arrays, "made up", "none", digest(*arrays))


def lengths(rows) -> list[int]:
    return [len(own) for own in rows]


def test_the_recorded_orders_are_those_of_the_published_code():
    assert order_1993(100)[:20].tolist() == FIRST_100 and order_1993(100)[-2:].tolist() == [57, 33]
    assert order_1993(1000)[:10].tolist() == FIRST_1000
    for count in (10, 100, 1000):
        drawn = np.arange(count)
        np.random.RandomState(1993).shuffle(drawn)  # frozen since NumPy 1.17 (NEP 19)
        assert np.array_equal(order_1993(count), drawn)
    subset = np.random.RandomState(1993).choice(1000, 100, replace=False)
    assert np.array_equal(order_1993(1000)[:100], subset)  # ImageNet-Subset's draw
    with pytest.raises(UserError, match="recorded for 10, 100 and 1000 classes, but there are 37"):
        class_groups(37, 5, order="1993")


@given(st.integers(2, 100), st.sampled_from(["natural", "seeded", "1993"]), st.data())
def test_groups_are_the_order_cut_after_the_first_task(classes, order, data):
    base = data.draw(st.integers(1, classes - 1))
    each = data.draw(st.integers(1, classes - base))
    groups = class_groups(100, each, base=base, classes=classes, order=order, seed=3)
    assert sum(groups, []) == sum(class_groups(100, 1, classes=classes, order=order, seed=3), [])
    sizes = lengths(groups)
    assert sizes[0] == base and set(sizes[1:-1]) <= {each} and 1 <= sizes[-1] <= each
    assert name_of("x", groups, each, base) == f"x-b{base}-{len(groups) - 1}"


def test_groups_by_hand():
    assert class_groups(10, 2, base=5) == [[0, 1, 2, 3, 4], [5, 6], [7, 8], [9]]
    assert class_groups(10, 1, base=1, classes=3, order="1993") == [[4], [2], [7]]
    assert class_groups(10, 3, order="1993") == [[4, 2, 7], [6, 0, 3], [5, 8, 9], [1]]
    assert name_of("x", [[0, 1], [2]], 2, None) == "x-2x2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 0}, "base is 0"),
        ({"base": -3}, "base is -3"),
        ({"base": 20}, "base is 20, but of 20 classes the first task can have at most 19"),
        ({"base": 50}, "base is 50, but of 20 classes"),
        ({"base": 15, "classes_per_task": 6}, "only 5 classes after the 15 of the first task"),
        ({"class_order": "1994"}, "class order '1994' is not known; did you mean 1993"),
        ({"pixels": "lucir"}, "pixels 'lucir' is not known"),
        ({"augment": "crop"}, "augment 'crop' is not known; did you mean crop-flip"),
        ({"samples_per_class": 0}, "samples_per_class is 0"),
        ({"samples_per_class": 19, "val": 0.1}, "samples_per_class is 19, but a class of .* 18 tr"),
        ({"samples_per_class": 5, "samples_per_task": 6}, "only one of them can be given"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    options = {"classes": 20, "base": 10, "classes_per_task": 2, **options}
    with pytest.raises(UserError, match=message):
        make("cifar100-b50-5", **options).build(pictures())


@pytest.mark.parametrize("tasks", [5, 10, 25])
def test_cifar100_by_name(tasks):
    name, each = f"cifar100-b50-{tasks}", 50 // tasks
    stream = STREAMS[name].build(pictures())
    assert (stream.name, stream.num_tasks, stream.num_classes) == (name, tasks + 1, 100)
    assert (stream.scenario, stream.multi_head, stream.published) == ("class", False, False)
    owner = np.maximum(np.arange(100) - 50, -1) // each + 1
    assert np.array_equal(stream.class_mask, owner == np.arange(tasks + 1)[:, None])
    assert np.array_equal(stream.manifest["class_order"], order_1993(100))
    assert lengths(stream.subsets(0)) == [1000] + [20 * each] * tasks  # none validates
    assert lengths(stream.test_index) == [150] + [3 * each] * tasks
    for t, (own, tests) in enumerate(zip(stream.subsets(0), stream.test_index, strict=True)):
        assert (owner[stream.train_y[own]] == t).all() and (owner[stream.test_y[tests]] == t).all()
    # Each image keeps its class: its label is the place of the class in the order.
    assert np.array_equal(order_1993(100)[stream.train_y], pictures().train_y)
    assert STREAMS[name].summary == (
        f"CIFAR-100 in a task of 50 classes, then {tasks} of {each} new ones."
    )


def test_images_reach_the_network_as_in_mnemonics_training():
    stream = STREAMS["cifar100-b50-5"].build(pictures())
    assert stream.transform.augment is not None and stream.transform.augment.name == "crop4-flip"
    assert stream.example.shape == (32, 32, 3) and stream.example.dtype == jnp.float32
    x, task = jnp.asarray(stream.train_x[:4]), jnp.zeros(4, jnp.int32)
    mean, std = (np.asarray(v, np.float32) for v in CIFAR100_MNEMONICS)
    assert mean.tolist() == np.float32([0.5071, 0.4866, 0.4409]).tolist()
    assert std.tolist() == np.float32([0.2009, 0.1984, 0.2023]).tolist()
    plain = stream.spec(4).show(x, task)
    wanted = (stream.train_x[:4].astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(plain, wanted)
    # A window of the image with a black margin of 4, turned left to right or not: nothing else.
    shown = np.asarray(stream.spec(4).show(x, task, jax.random.key(1)))
    black = (0 - mean) / std
    padded = np.full((4, 40, 40, 3), black, np.float32)
    padded[:, 4:36, 4:36] = wanted
    for image, margin in zip(shown, padded, strict=True):
        corners = [(i, j) for i in range(9) for j in range(9)]
        windows = [margin[i : i + 32, j : j + 32] for i, j in corners]
        assert any(np.array_equal(image, w) or np.array_equal(image[:, ::-1], w) for w in windows)
    assert not np.array_equal(shown, plain)


def test_the_stream_shrinks():
    def of(**more):
        options = {"classes": 20, "base": 10, "classes_per_task": 2, "val": 0.1, **more}
        return make("cifar100-b50-5", **options).build(pictures())

    stream = of(samples_per_class=4)
    assert (stream.name, stream.num_tasks, stream.num_classes) == ("cifar100-b10-5", 6, 20)
    assert stream.manifest["class_order"].tolist() == FIRST_100
    assert lengths(stream.subsets(0)) == [40] + [8] * 5 and lengths(stream.test_index)[:2] == [
        30,
        6,
    ]
    for seed in (0, 1):
        rows = np.concatenate(stream.subsets(seed))
        assert (np.bincount(stream.train_y[rows]) == 4).all() and len(np.unique(rows)) == 80
        assert not np.intersect1d(rows, np.concatenate(stream.valid(seed))).size
        fewer = np.concatenate(of(samples_per_class=3).subsets(seed))
        assert np.isin(fewer, rows).all()  # and does not change which images validate
    assert not np.array_equal(np.sort(stream.subsets(0)[0]), np.sort(stream.subsets(1)[0]))
    assert lengths(on_validation(stream, 0).test_index) == [20] + [4] * 5
    sums = [of(**o).checksum for o in ({}, {"samples_per_class": 4}, {"samples_per_class": 3},
                                       {"samples_per_task": 4}, {"pixels": "itaml"},
                                       {"augment": "standard"}, {"base": 8})]  # fmt: skip
    assert len(set(sums)) == 7 and sums[1] == stream.checksum
    steps = plan(stream, 0, 8, 2)
    assert np.bincount(steps.current).tolist() == [10] + [2] * 5 and steps.mask.all()


def test_flags_have_the_defaults_of_the_paper_and_parse():
    options = {option.name: option for option in options_of(STREAMS["cifar100-b50-10"])}
    assert {name: option.default for name, option in options.items()} == {
        "classes_per_task": 5, "base": 50, "classes": 100, "class_order": "1993", "class_seed": 0,
        "samples_per_task": None, "samples_per_class": None, "val": 0.0, "multi_head": False,
        "augment": "crop-flip", "pixels": "mnemonics", "data_dir": None, "sample": False,
        "stream_manifest": None,
    }  # fmt: skip
    others = {option.name: option.default for option in options_of(STREAMS["cifar100-10x10"])}
    assert (others["base"], others["augment"], others["pixels"]) == (None, "standard", "itaml")
    fields = {o.name: (o.type, o.default, o.help) for o in options.values()}
    line = "--classes 20 --base 10 --classes-per-task 2 --class-order 1993 --samples-per-class 40"
    flags = parsed.parse("cljax run", fields, line.split())
    assert (flags["base"], flags["class_order"], flags["samples_per_class"]) == (10, "1993", 40)


@pytest.mark.parametrize("order", ["natural", "1993"])
def test_five_digits_then_one_at_a_time(order):
    data = mnist_support.digits()
    stream = make("mnist-b5-5", class_order=order, samples_per_class=20).build(data)
    assert (stream.name, stream.num_tasks, stream.scenario) == ("mnist-b5-5", 6, "class")
    digits = np.arange(10) if order == "natural" else order_1993(10)
    assert np.array_equal(stream.manifest["class_order"], digits)
    assert np.array_equal(digits[stream.train_y], data.train_y)
    assert lengths(stream.subsets(0)) == [100] + [20] * 5
    assert lengths(stream.valid(0)) == [30] + [6] * 5  # one in ten of 60
    assert lengths(stream.test_index) == [30] + [6] * 5
    seen = [np.flatnonzero(row).tolist() for row in stream.class_mask]
    assert seen == [[0, 1, 2, 3, 4], [5], [6], [7], [8], [9]]
    assert stream.example.shape == (28, 28, 1) and not stream.published
    two = streams.IncrementalMNIST(base=3, classes_per_task=4, pixels="normalised").build(data)
    assert two.name == "mnist-b3-2" and two.class_mask.sum(axis=1).tolist() == [3, 4, 3]


def test_digits_of_the_sample():
    stream = streams.IncrementalMNIST(sample=True).build()
    assert stream.name == "mnist-b5-5[sample]" and sum(lengths(stream.test_index)) == 2000
    with pytest.raises(UserError, match="base is 10, but of 10 classes"):
        streams.IncrementalMNIST(sample=True, base=10).build()
    with pytest.raises(UserError, match="pixels 'raw' is not known"):
        streams.IncrementalMNIST(sample=True, pixels="raw").build()  # pyright: ignore[reportArgumentType]


def test_the_real_mnist():
    stream = streams.IncrementalMNIST(
        data_dir=mnist_support.real_data_dir(), class_order="1993"
    ).build()
    assert stream.name == "mnist-b5-5" and sum(lengths(stream.test_index)) == 10_000


def test_a_run_reports_incremental_accuracy_and_forgetting():
    stream = streams.IncrementalMNIST(sample=True, classes_per_task=3, samples_per_class=30).build()
    done = cljax.run(cljax.Finetune(lr=0.1), stream, seeds=2, net=cljax.nets.mlp(16), epochs=2)
    matrix, counts = done.accuracy_matrix(), np.array(lengths(stream.test_index))
    assert counts[0] > 2 * counts[2]  # tasks of unequal size
    seen = [
        (matrix[:, i + 1, : i + 1] * counts[: i + 1]).sum(axis=1) / counts[: i + 1].sum()
        for i in range(3)
    ]
    np.testing.assert_allclose(done.metric("AIA"), np.mean(seen, axis=0), rtol=1e-12)
    rate = matrix[:, 1, 0] - matrix[:, -1, 0]
    np.testing.assert_allclose(done.metric("F"), rate, rtol=1e-12)
    assert (rate > 0.3).all()  # fine-tuning forgets its first digits


def test_imagenet_subset(monkeypatch):
    names, read = [f"n{c:04d}" for c in range(1000)], {}

    def images_of(path, *, classes, **options):
        read.update(options, classes=classes)
        return pictures(len(classes), 4, 2, options["size"])

    monkeypatch.setattr(folders, "class_names", lambda path: names)
    monkeypatch.setattr(folders, "images_of", images_of)
    stream = make("imagenet100-b50-25", data_dir="anywhere", image_size=14).build()
    assert (stream.name, stream.num_tasks) == ("imagenet100-b50-25", 26)
    assert stream.scenario == "class" and not stream.published
    drawn = sorted(order_1993(1000)[:100].tolist())
    wanted = [names[drawn[c]] for c in order_1993(100)]
    assert stream.manifest["class_names"].tolist() == wanted
    assert (read["size"], read["test_resize"], read["test_size"]) == (16, 16, 14)
    assert stream.transform.augment is not None
    assert stream.transform.augment.name == "resized-crop14-flip"
    # Images of the c-th class by name have the label of its place in the order.
    by_name = np.argsort(np.argsort(wanted))
    assert np.array_equal(by_name[stream.train_y], pictures(100, 4, 2, 16).train_y)
    assert lengths(stream.subsets(0)) == [200] + [8] * 25
    few = make("imagenet100-b50-5",
        data_dir="anywhere", image_size=14, classes=20, base=10, classes_per_task=2,
        samples_per_class=3,
    ).build()  # fmt: skip
    assert few.name == "imagenet20-b10-5" and few.manifest["class_names"].tolist() == wanted[:20]
    assert lengths(few.subsets(0)) == [30] + [6] * 5
    # The folder may hold the hundred classes alone; a thousand have an order of their own.
    names = [names[c] for c in drawn]
    again = make("imagenet100-b50-5", data_dir="anywhere", image_size=14).build()
    assert again.manifest["class_names"].tolist() == wanted
    names = [f"n{c:04d}" for c in range(1000)]
    whole = streams.ImageNet(
        classes=1000, base=500, classes_per_task=100, class_order="1993", image_size=14,
        data_dir="anywhere",
    ).build()  # fmt: skip
    assert whole.name == "imagenet1k-b500-5"
    assert whole.manifest["class_names"][:10].tolist() == [names[c] for c in FIRST_1000]
    defaults = {o.name: o.default for o in options_of(STREAMS["imagenet100-b50-10"])}
    assert (defaults["image_size"], defaults["val"], defaults["classes_per_task"]) == (224, 0.0, 5)


def test_the_real_cifar100():
    folder = os.environ.get("CLJAX_DATA_DIR") or str(mnist_support.SHARED / "tfds")
    if not any(Path(folder).glob("cifar100/*/dataset_info.json")):
        pytest.skip(f"no CIFAR-100 in {folder}; set CLJAX_DATA_DIR")
    stream = make("cifar100-b50-10", data_dir=folder).build()
    assert stream.published and lengths(stream.subsets(0)) == [25_000] + [2500] * 10
    assert lengths(stream.test_index) == [5000] + [500] * 10
    for options in ({"val": 0.1}, {"samples_per_class": 400}, {"class_order": "natural"},
                    {"pixels": "itaml"}, {"base": 10, "classes": 20}, {"base": 40}):  # fmt: skip
        assert not make("cifar100-b50-10", data_dir=folder, **options).build().published
    # The deviation is the mean of each image's own.
    scaled = stream.train_x[::50].astype(np.float32) / 255
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), CIFAR100_MNEMONICS[0], atol=0.01)
    np.testing.assert_allclose(scaled.std((1, 2)).mean(0), CIFAR100_MNEMONICS[1], atol=0.01)
