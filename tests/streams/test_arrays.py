from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax import streams
from cljax.errors import UserError
from cljax.streams import plan
from cljax.types import Model, Output, Variables

SIZES = (20, 10, 5)


def arrays(classes_apart: bool = False, shape=(4, 3), dtype=np.uint8, sizes=SIZES):
    rng = np.random.default_rng(sum(sizes))
    task = rng.permutation(np.repeat(np.arange(3), sizes))
    y = rng.integers(0, 2, len(task))
    for t in range(3):  # both labels in every task
        y[np.flatnonzero(task == t)[:2]] = [0, 1]
    x = rng.integers(0, 256, (len(task), *shape)).astype(dtype)
    return x, y + 2 * task if classes_apart else y, task


def make(train=None, test=None, **options):
    return streams.from_arrays(train or arrays(), test=test or arrays(sizes=(6, 6, 6)), **options)


def test_a_few_lines_make_a_stream():
    x, y, site = arrays()
    stream = make((x, y, site), name="clinic", licence="private")
    assert (stream.name, stream.licence, stream.published) == ("clinic", "private", False)
    assert stream.scenario == "domain" and stream.class_mask.all()
    assert stream.num_tasks == 3 and stream.num_classes == 2 and stream.example.shape == (4, 3)
    for seed in (0, 1):
        for task in range(3):
            rows, held = stream.subsets(seed)[task], stream.valid(seed)[task]
            assert len(held) == round(0.1 * SIZES[task])
            both = np.sort(np.concatenate([rows, held]))
            assert np.array_equal(both, np.flatnonzero(site == task))
    assert len(plan(stream, 0, 5).current) == 4 + 2 + 1
    seen = stream.transform.apply((), jnp.asarray(x[:2]), jnp.zeros(2, jnp.int32))
    assert np.array_equal(seen, x[:2].astype(np.float32) / np.float32(255))


def test_order_within_a_task():
    shuffled = make(val=0.0)
    kept = streams.in_order(shuffled)
    assert not np.array_equal(shuffled.subsets(0)[0], shuffled.subsets(1)[0])
    assert (np.diff(kept.subsets(0)[0]) > 0).all()
    assert np.array_equal(kept.subsets(0)[0], kept.subsets(1)[0])
    some = make(val=0.3)
    assert np.array_equal(streams.in_order(some).subsets(2)[0], np.sort(some.subsets(2)[0]))
    assert kept.checksum != shuffled.checksum
    with pytest.raises(UserError, match="a plan of its own"):
        streams.in_order(streams.task_free(shuffled))


@pytest.mark.parametrize("scenario", [None, "class", "task"])
def test_classes_of_their_own(scenario):
    test = arrays(classes_apart=True, sizes=(6, 6, 6))
    stream = make(arrays(classes_apart=True), test, scenario=scenario)
    assert stream.scenario == (scenario or "class")
    assert stream.multi_head == (scenario == "task")
    assert np.array_equal(stream.class_mask, np.arange(6) // 2 == np.arange(3)[:, None])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_values_of_other_types(dtype):
    stream = make(arrays(dtype=dtype), arrays(dtype=dtype, sizes=(6, 6, 6)), dtype=dtype)
    assert stream.train_x.dtype == dtype
    seen = stream.transform.apply((), jnp.asarray(stream.train_x[:2]), jnp.zeros(2, jnp.int32))
    assert seen.dtype == stream.example.dtype == ("int32" if dtype == "int32" else "float32")
    assert np.array_equal(seen, stream.train_x[:2].astype(seen.dtype))


def test_the_checksum_follows_arrays_and_split():
    x, y, task = arrays()
    sums = {
        make().checksum,
        make(val=0.2).checksum,
        make((255 - x, y, task)).checksum,
        make((x, y, (task + 1) % 3)).checksum,
    }
    assert len(sums) == 4 and make().checksum in sums


def test_even_a_task_of_one_example_is_learned():
    x, y, task = np.zeros((2, 3), np.uint8), np.zeros(2, int), np.array([0, 1])
    stream = streams.from_arrays((x, y, task), test=(x, y, task), val=0.9)
    assert [len(rows) for rows in stream.subsets(0)] == [1, 1]


X, Y, TASK = arrays()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": (X / 255, Y, TASK)}, "float64 values, but images are uint8.*dtype='float32'"),
        (
            {"train": (X, Y[1:], TASK)},
            r"shape \[35, 4, 3\], their labels \[34\] and their tasks \[35\]",
        ),
        ({"train": (X[:0], Y[:0], TASK[:0])}, "at least one example"),
        ({"train": (X, Y * 1.0, TASK)}, "train labels hold float64"),
        ({"train": (X, Y - 1, TASK)}, "train labels hold -1"),
        ({"train": (X, Y, TASK * 2)}, "tasks 0, 2, 4, but they must be 0 to 4"),
        ({"train": (X[:, :3], Y, TASK)}, r"have shape \[3, 3\], test examples \[4, 3\]"),
        ({"test": (X[:9], Y[:9], TASK[:9] * 0)}, "test examples have the tasks 0, but"),
        ({"num_classes": 1}, "training labels hold 1, but the 1 classes are 0 to 0"),
        ({"test": (X, Y + 1, TASK)}, "test labels hold 2, but the 2 classes"),
        ({"val": 1.0}, "val is 1.0"),
        ({"dtype": "picture"}, "dtype is picture"),
        ({"scenario": "domains"}, "did you mean domain"),
        ({"dtype": "float32", "train": (X * np.nan, Y, TASK)}, "not finite"),
        ({"dtype": "int32", "train": (X * 0.5, Y, TASK)}, "which dtype int32 cannot hold"),
    ],
)
def test_arrays_that_do_not_fit_get_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_a_test_label_outside_its_task_is_named():
    test = arrays(classes_apart=True, sizes=(6, 6, 6))
    wrong = (test[0], (test[1] + 2) % 6, test[2])
    with pytest.raises(UserError, match="Test example 0 has the label"):
        make(arrays(classes_apart=True), wrong)


def visits(sizes=SIZES):
    """Examples of several parts, of which each type is seen in its own way."""
    image, y, task = arrays(sizes=sizes)
    rng = np.random.default_rng(1)
    number = len(y)
    return {
        "image": image,
        "age": rng.normal(size=number),
        "codes": (rng.integers(0, 9, (number, 2)), rng.normal(size=(number, 3)).astype("f4")),
    }, y, task  # fmt: skip


def test_examples_may_be_pytrees():
    train = visits()
    stream = make(train, visits(sizes=(6, 6, 6)), name="visits")
    assert stream.train_x.shape == (35, 12 + 4 + 2 * 4 + 3 * 4) and stream.train_x.dtype == np.uint8
    rows = np.array([3, 30, 0])
    seen = stream.transform.apply((), jnp.asarray(stream.train_x[rows]), jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(seen["image"], train[0]["image"][rows] / np.float32(255))
    np.testing.assert_array_equal(seen["age"], train[0]["age"][rows].astype("f4"))
    np.testing.assert_array_equal(seen["codes"][0], train[0]["codes"][0][rows])
    np.testing.assert_array_equal(seen["codes"][1], train[0]["codes"][1][rows])
    shapes = jax.tree.map(lambda a: (a.shape[1:], a.dtype), seen)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), stream.example) == shapes
    assert seen["codes"][0].dtype == jnp.int32 and seen["age"].shape == (3,)
    other = make((dict(train[0], age=train[0]["age"] + 1), *train[1:]), visits(sizes=(6, 6, 6)))
    assert other.checksum != stream.checksum


def test_doubles_of_a_pytree_stay_doubles_where_there_are_some():
    with jax.enable_x64(True):
        train = visits()
        stream = make(train, visits(sizes=(6, 6, 6)))
        seen = stream.transform.apply((), jnp.asarray(stream.train_x), jnp.zeros(35, jnp.int32))
        np.testing.assert_array_equal(seen["age"], train[0]["age"])


def age_net(num_outputs):
    """A network of one's own, for examples of two parts, in a dozen lines."""

    def init(key, x):
        width = x["image"][0].size + 1
        return Variables({"w": 0.1 * jax.random.normal(key, (width, num_outputs))}, {})

    def apply(variables, x, train):
        image = x["image"].reshape(x["age"].shape[0], -1)
        features = jnp.concatenate([image, x["age"][:, None]], axis=1)
        return Output(features @ variables.params["w"], features), variables.model_state

    return Model(init, apply)


@pytest.mark.parametrize("method", [cljax.LaMAML(capacity=9), cljax.MER(capacity=9, lr=0.3),
                                    cljax.Finetune(lr=0.5)], ids=lambda m: m.name)  # fmt: skip
def test_methods_learn_from_pytrees(method):
    x, y, task = arrays()
    ages = 4.0 * y - 2  # the label shows in one part alone
    train = ({"image": x, "age": ages}, y, task)
    stream = make(train, train)
    done = cljax.run(method, stream, net=age_net, seeds=1, batch_size=5, epochs=4)
    assert done.metric("RA")[0] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ({"a": X}, Y, TASK), "test": ({"b": X}, Y, TASK)}, "they must be the same"),
        ({"train": ({"a": X}, Y, TASK), "test": (X, Y, TASK)}, "they must be the same"),
        ({"train": ({}, Y, TASK), "test": ({}, Y, TASK)}, "at least one array"),
        ({"train": ({"a": X[1:]}, Y, TASK), "test": ({"a": X}, Y, TASK)}, r"train \['a'\] have"),
        ({"train": ({"a": X}, Y, TASK), "test": ({"a": X[:, 1:]}, Y, TASK)}, r"Training \['a'\]"),
        ({"train": ({"a": X * np.nan}, Y, TASK), "test": ({"a": X}, Y, TASK)}, "not finite"),
        ({"train": ({"a": X > 3}, Y, TASK), "test": ({"a": X}, Y, TASK)}, "dtype is bool"),
        ({"train": ({"a": X}, Y, TASK), "test": ({"a": X}, Y, TASK), "dtype": "float32"},
         "keep the type of each array"),
    ],
)  # fmt: skip
def test_pytrees_that_do_not_fit_get_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        make(**change)
