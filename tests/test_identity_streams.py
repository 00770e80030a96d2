"""A stream is told by its checksum where that is of all of it, else by its content."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import support

import cljax
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams.base import Augmentation, Transform, plan

SMALL = RunOptions(net="mlp:5", seeds=1, batch_size=4)


def test_streams_are_told_by_arrays_transforms_and_planners():
    base = support.stream()
    x, y, task = np.zeros((12, 3), np.float32), np.arange(12) % 2, np.arange(12) // 6
    arrays = functools.partial(
        cljax.streams.from_arrays, (x, y, task), test=(x, y, task), dtype="float32"
    )
    split = cljax.streams.SplitMNIST(sample=True, samples_per_task=20).build()
    replaced = cljax.streams.base.dataclasses.replace

    def seen(factor):
        return Transform((), lambda tables, x, task: x.reshape(len(x), -1) * factor, name="same")

    def planner(shift):
        return lambda seed, size, epochs: plan(base, seed + shift, size, epochs)

    jitter = lambda size: Augmentation(lambda key, n: (), lambda x, draws: x + size)
    streams = [
        base, replaced(base, train_x=255 - base.train_x), replaced(base, planner=planner(1)),
        replaced(base, planner=planner(2)), arrays(), arrays(num_classes=5), arrays(val=0.2),
        replaced(arrays(), transform=seen(1.0)), replaced(arrays(), transform=seen(2.0)), split,
        replaced(split, transform=split.transform._replace(augment=jitter(1))),
        replaced(split, transform=split.transform._replace(augment=jitter(2))),
        cljax.streams.gaussian(base, width=0.5), cljax.streams.gaussian(base, width=0.5000001),
        cljax.streams.gaussian(split, width=0.5), cljax.streams.gaussian(split, width=0.5000001),
        cljax.streams.blurry(split, 0.1), cljax.streams.blurry(split, 0.10000001),
        replaced(split, train_y=np.asarray(split.train_y)[::-1]),
    ]  # fmt: skip
    made = [prepare(cljax.Finetune(), s, SMALL) for s in streams]
    assert len({one.config["config_hash"] for one in made}) == len(streams)
    assert len({one.config["stream"]["checksum"] for one in made}) == len(streams)
    again = prepare(cljax.Finetune(), support.stream(), SMALL)
    assert again.config["config_hash"] == made[0].config["config_hash"]
    assert made[9].config["identity"] == {}  # its name and checksum tell all


def test_arrays_that_a_checksum_is_of_cannot_be_written():
    x, y = np.zeros((8, 3), np.float32), np.arange(8) % 2
    stream = cljax.streams.from_arrays((x, y, y), test=(x, y, y), dtype="float32")
    with pytest.raises(ValueError, match="read-only"):
        stream.train_x[:] = 1
    x[:] = 1  # the user's own stays writable, and is not the stream's
    assert not stream.train_x.any()


def numpy_leaves(stream):
    values = {name: getattr(stream, name) for name in cljax.streams.base.DECISIVE}
    values |= {f"{kind} of a seed": getattr(stream, kind)(0) for kind in ("subsets", "valid")}
    paths = jax.tree_util.tree_leaves_with_path(values)
    return {jax.tree_util.keystr(p): leaf for p, leaf in paths if isinstance(leaf, np.ndarray)}


def streams_of_the_library(folder):
    x, y, task = np.zeros((12, 3), np.uint8), np.arange(12) % 4, np.arange(12) // 6
    arrays = cljax.streams.from_arrays((x, y, task), test=(x, y, task), scenario="task")
    split = cljax.streams.SplitMNIST(sample=True).build()
    small = {"sample": True, "num_tasks": 2, "samples_per_task": 9}
    cljax.streams.save_split(folder / "split.npz", split, seeds=[0])
    return {
        "arrays": arrays, "split": split, "validation": cljax.streams.base.on_validation(split, 0),
        "rotations": cljax.streams.MNISTRotations(**small).build(),
        "permutations": cljax.streams.MNISTPermutations(**small).build(),
        "gaussian": cljax.streams.gaussian(split, width=0.5),
        "recorded": cljax.streams.with_split(split, folder / "split.npz"),
        "first": cljax.streams.base.first_tasks(split, 2),
    }  # fmt: skip


def test_nothing_that_a_checksum_tells_can_be_edited_in_place(tmp_path):
    for name, stream in streams_of_the_library(tmp_path).items():
        assert cljax.streams.base.told(stream), name
        before = prepare(cljax.Finetune(), stream, SMALL).config["config_hash"]
        edited = []
        for path, leaf in numpy_leaves(stream).items():
            try:
                leaf[...] = leaf[::-1].copy()
                leaf.reshape(-1)[:1] += 1 if leaf.dtype != bool else True
                edited.append(path)
            except ValueError as error:
                assert "read-only" in str(error)
        # Rows of a seed that are drawn anew each time may be anyone's.
        assert all("of a seed" in path and name != "recorded" for path in edited), (name, edited)
        after = prepare(cljax.Finetune(), stream, SMALL).config["config_hash"]
        assert after == before
