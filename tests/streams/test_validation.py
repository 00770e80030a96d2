"""Streams for tuning: validation rows in place of tests."""

from __future__ import annotations

import numpy as np
import pytest
import support

from cljax.errors import UserError
from cljax.streams import on_validation


def test_tuning_streams_test_on_validation_rows_only():
    stream = support.stream()
    held_out = on_validation(stream, 0)
    np.testing.assert_array_equal(held_out.test_index[0], stream.valid(0)[0])
    assert held_out.test_x is stream.train_x and held_out.checksum != stream.checksum
    for rows, test in zip(stream.subsets(0), held_out.test_index, strict=True):
        assert not set(rows) & set(test)


def test_a_stream_without_validation_rows_cannot_tune():
    empty = support.stream(valid=lambda seed: tuple(np.zeros(0, np.int32) for _ in range(3)))
    with pytest.raises(UserError, match="no validation images for task 0"):
        on_validation(empty, 0)
