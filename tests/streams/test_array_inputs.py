"""What a user's arrays may hold: every mistake is one sentence, before anything is changed."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest

from cljax import streams
from cljax.errors import UserError

N = 12
X = np.arange(N * 3).reshape(N, 3).astype(np.float32)
TASK = np.arange(N) // 4
Y = 2 * TASK + np.arange(N) % 2
GOOD = (X, Y, TASK)


def make(train=GOOD, test=GOOD, **options):
    return streams.from_arrays(train, test=test, **{"dtype": "float32", **options})


def of(x, dtype=None):
    return {"train": (x, Y, TASK), "test": (x, Y, TASK), **({"dtype": dtype} if dtype else {})}


def labelled(y, task=TASK):
    return {"train": (X, y, task), "test": (X, y, task)}


def put(array, value, dtype=None):
    changed = np.array(array, dtype)
    changed.flat[5] = value
    return changed


def masked(array, where=5):
    return np.ma.array(array, mask=np.arange(array.size).reshape(array.shape) == where)


RAGGED = [[1.0, 2.0, 3.0]] * (N - 1) + [[1.0, 2.0]]
MISTAKES = {
    "no tests": ({"test": None}, "test must be .examples, labels, tasks., but got NoneType"),
    "examples alone": ({"train": X}, "train must be .* but got ndarray"),
    "no tasks": ({"train": (X, Y)}, "train must be .* but got 2 entries"),
    "ragged examples": (of(RAGGED), "train examples are no array"),
    "ragged tests": ({"test": (RAGGED, Y, TASK)}, "test examples are no array"),
    "ragged labels": (labelled([[0]] * (N - 1) + [[0, 1]]), "train labels are no array"),
    "ragged tasks": (labelled(Y, [[0]] * (N - 1) + [[0, 1]]), "train tasks are no array"),
    "too short in a pytree": (
        {"train": ({"a": X[:1]}, Y, TASK), "test": ({"a": X}, Y, TASK), "dtype": "uint8"},
        r"train \['a'\] have shape \[1, 3\]",
    ),
    "labels of 2^40": (labelled(put(Y, 2**40)), "ask for 1099511627777 classes .* from 0"),
    "labels of 10^7": (labelled(put(Y, 10**7)), "the largest is 10000000"),
    "unsigned labels of 2^63": (labelled(put(Y, 2**63, np.uint64)), "9223372036854775808"),
    "as many classes": ({"num_classes": 2**40}, "num_classes is 1099511627776"),
    "a few fewer": ({"num_classes": 2**30}, "ask for 1073741824 classes"),
    "no classes": ({"num_classes": 0}, "num_classes is 0"),
    "tasks of 2^40": (labelled(Y, put(TASK, 2**40)), "tasks 0, 1, 2, 1099511627776, but"),
    "negative labels": (labelled(put(Y, -1)), "train labels hold -1, but they start at 0"),
    "negative tasks": (labelled(Y, put(TASK, -3)), "train tasks hold -3, but they start at 0"),
    "fractions for labels": (labelled(Y + 0.5), "train labels hold float64 values"),
    "whole floats for labels": (labelled(Y * 1.0), "train labels hold float64 values"),
    "names for labels": (labelled(np.array(["cat"] * N)), "train labels hold <U3 values"),
    "truth values for labels": (labelled(Y > 2), "train labels hold bool values"),
    "labels with a gap in the tasks": (labelled(Y, 2 * TASK), "tasks 0, 2, 4, but they must be"),
    "one-hot labels": (labelled(np.eye(6, dtype=int)[Y]), r"their labels \[12, 6\]"),
    "lengths that differ": ({"train": (X[1:], Y, TASK)}, r"shape \[11, 3\], their labels \[12\]"),
    "no examples": ({"train": (X[:0], Y[:0], TASK[:0])}, "at least one example"),
    "empty examples": (of(X[:, :0]), r"shape \[12, 0\], so they hold no values"),
    "1e300": (of(put(X, 1e300, np.float64)), "hold 1e.300, which float32 cannot hold"),
    "1e300 as float64": (of(put(X, 1e300, np.float64), "float64"), "which float32 cannot hold"),
    "-1e39": (of(put(X, -1e39, np.float64)), "hold -1e.39, which float32 cannot hold"),
    "70000 in half precision": (of(put(X, 70000), "float16"), "which float16 cannot hold"),
    "2^40 among 32-bit integers": (
        of(put(X, 2**40, np.int64), "int32"), "hold 1099511627776, which int32 cannot hold"
    ),
    "2^40 where the network sees 32 bits": (
        of(put(X, 2**40, np.int64), "int64"), "hold 1099511627776, which int32 cannot hold"
    ),
    "300 among bytes": (of(put(X, 300, np.int64), "int8"), "hold 300, which int8 cannot hold"),
    "NaN": (of(put(X, np.nan)), "not finite"),
    "infinity": (of(put(X, -np.inf)), "not finite"),
    "NaN among the tests": ({"test": (put(X, np.nan), Y, TASK)}, "test examples .* not finite"),
    "masked examples": (of(masked(X)), "train examples hold 1 masked values"),
    "masked tests": ({"test": (masked(X), Y, TASK)}, "test examples hold 1 masked values"),
    "masked labels": (labelled(masked(Y)), "train labels hold 1 masked values"),
    "masked in a pytree": (
        {"train": ({"a": masked(X)}, Y, TASK), "test": ({"a": X}, Y, TASK), "dtype": "uint8"},
        r"train \['a'\] hold 1 masked values",
    ),
    "objects": (of(X.astype(object)), "hold object values, but they must be real numbers"),
    "objects for images": (of(X.astype(object), "uint8"), "must be real numbers"),
    "None inside": (of([[None, 1, 2]] * N), "hold object values"),
    "strings": (of(X.astype(str)), "must be real numbers"),
    "complex numbers": (of(X + 1j), "hold complex64 values, but they must be real numbers"),
    "dates": (of(X.astype("datetime64[s]")), "must be real numbers"),
    "uint16 without a word": (
        of(X.astype(np.uint16), "uint8"), "hold uint16 values, .* dtype='float32' .* dtype='uint16'"
    ),
    "truth values without a word": (of(X > 3, "uint8"), "hold bool values, .* dtype='float32'"),
    "a test class that was never trained": (
        {"test": (X, put(Y, 6), TASK), "num_classes": 7}, "test labels hold 6, which no training"
    ),
    "the same where tasks share classes": (
        {"train": (X, Y % 2, TASK), "test": (X, put(Y % 2, 2), TASK), "num_classes": 3,
         "scenario": "domain"}, "test labels hold 2, which no training"
    ),
    "val as text": ({"val": "0.1"}, "val is '0.1'"),
    "val not a number": ({"val": np.nan}, "val is nan"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_sentence(what):
    options, message = MISTAKES[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=message) as caught:
            make(**options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


RIGHT = {
    "lists": (X.tolist(), Y.tolist(), TASK.tolist()),
    "a masked array without masked values": (masked(X, -1), masked(Y, -1), masked(TASK, -1)),
    "arrays of JAX": tuple(map(jax.numpy.asarray, GOOD)),
    "unsigned labels": (X, Y.astype(np.uint64), TASK.astype(np.uint8)),
    "truth values as numbers": (X > 3, Y, TASK),
    "the largest of float32": (put(X, np.finfo(np.float32).max), Y, TASK),
    "half precision": (X.astype(np.float16), Y, TASK),
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_can_be_held_is_taken(what):
    stream = make(RIGHT[what], RIGHT[what])
    expected = np.asarray(RIGHT[what][0]).astype(np.float32)
    np.testing.assert_array_equal(stream.train_x, expected)
    assert stream.class_mask.shape == (3, 6) and stream.train_y.tolist() == Y.tolist()


def test_doubles_are_held_where_there_are_some():
    with jax.enable_x64(True):
        assert make(**of(put(X, 1e300, np.float64), "float64")).train_x.max() == 1e300
        assert make(**of(put(X, 2**40, np.int64), "int64")).train_x.max() == 2**40


def test_classes_that_no_example_has_may_lie_between():
    stream = make(*[(X, 3 * Y, TASK)] * 2)
    assert stream.num_classes == 16 and stream.class_mask.sum() == 6
