"""Transfer streams: what is held, what tasks learn from, their plans, pooling, named ones."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from mnist_support import digits, real_data_dir

from cljax.data import ImageData, digest
from cljax.errors import UserError
from cljax.resolve import options_of
from cljax.streams import (
    STREAMS,
    TransferOptions,
    joined,
    make,
    on_validation,
    plan,
    pooled,
    rows_used,
    transfer,
)

SMALL = ("fashion-5-5", "fashion-4-3-3", "fashion-5-mnist-5", "cifar100-10-5")


@functools.cache
def pictures(classes: int, each: int = 20, tests: int = 2, size: int = 4, seed: int = 0):
    """Colour images; the first pixel of each names its class, the second its number in it."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (each, tests):
        y = rng.permutation(np.repeat(np.arange(classes), count)).astype(np.int32)
        x = rng.integers(0, 256, (len(y), size, size, 3), dtype=np.uint8)
        x[:, 0, 0, 0] = y
        parts += [x, y]
    return ImageData(*parts, f"made up {seed}", f"none {seed}", digest(*parts))


def made(**options):
    options = {"held": (4, 5, 8, 9), "held_share": 0.5, "steps": 7, "pool": 1, **options}
    groups = options.pop("groups", ((2, 3), (4, 5), (6, 7)))
    own = {n: options.pop(n) for n in ("steps", "draws", "pool", "val") if n in options}
    data = options.pop("data", pictures(10))
    return transfer("made", data, groups, TransferOptions(**own), **options)


def test_outputs_follow_the_groups():
    stream = made()
    assert stream.multi_head and stream.scenario == "task" and not stream.published
    wanted = np.zeros((3, 6), bool)
    for task in range(3):
        wanted[task, 2 * task : 2 * task + 2] = True
    assert np.array_equal(stream.class_mask, wanted)
    assert stream.manifest["class_order"].tolist() == [2, 3, 4, 5, 6, 7]
    original = stream.train_x[:, 0, 0, 0]
    for task, rows in enumerate(stream.subsets(0)):
        assert set(original[rows]) == {2 * task + 2, 2 * task + 3}
        assert np.array_equal(stream.train_y[rows], original[rows] - 2)
        tests = stream.test_index[task]
        assert np.array_equal(stream.test_y[tests], stream.test_x[tests, 0, 0, 0] - 2)
        assert set(stream.test_y[tests]) == {2 * task, 2 * task + 1} and len(tests) == 4
    assert set(stream.test_x[:, 0, 0, 0]) == set(range(2, 8))  # none of held classes alone


def test_held_examples_are_the_first_halves_and_no_task_has_them():
    stream, data = made(), pictures(10)
    assert stream.held is not None and stream.held.shape == (4, 10)
    assert stream.held.dtype == np.int32 and np.array_equal(stream.spec(2).held, stream.held)
    assert stream.manifest["held_classes"].tolist() == [4, 5, 8, 9]
    assert np.array_equal(stream.manifest["held_rows"], stream.held)
    for row, (c, label) in enumerate(((4, 2), (5, 3), (8, 6), (9, 7))):  # 8 and 9 are no task's
        first = np.flatnonzero(data.train_y == c)[:10]
        assert np.array_equal(stream.train_x[stream.held[row]], data.train_x[first])
        assert (stream.train_y[stream.held[row]] == label).all()
    for seed in (0, 1):
        parts = stream.subsets(seed), stream.valid(seed)
        used = np.concatenate([*parts[0], *parts[1]])
        assert not set(used) & set(stream.held.reshape(-1)) and len(set(used)) == len(used)
        sizes = [(len(a), len(b)) for a, b in zip(*parts, strict=True)]
        assert sizes == [(36, 4), (18, 2), (36, 4)]  # a tenth of what is left validates
    seen = {image.tobytes() for image in stream.train_x[stream.held.reshape(-1)]}
    assert not seen & {image.tobytes() for image in stream.train_x[: stream.held.min()]}
    assert not np.array_equal(*(np.sort(stream.valid(seed)[0]) for seed in (0, 1)))
    assert {"held_rows", "seed0_train_rows"} <= set(rows_used(stream, [0]))
    assert on_validation(stream, 0).test_index[1].size == 2


def test_whole_classes_are_held_and_none_need_be():
    stream = made(held=(0, 9), held_share=1.0)
    assert stream.held.shape == (2, 20) and stream.train_y[stream.held][:, 0].tolist() == [6, 7]
    assert [len(rows) for rows in stream.subsets(0)] == [36, 36, 36]
    nothing = made(held=())
    assert nothing.held is None and nothing.spec(3).held is None
    assert len(nothing.train_y) == 120


@pytest.mark.parametrize("batch_size", [5, 64])
def test_the_plan_is_one_pass_then_draws(batch_size):
    stream = made()
    steps = plan(stream, 3, batch_size)
    first = -(-36 // batch_size)
    assert steps.current.tolist() == [0] * first + [1] * 7 + [2] * 7
    assert np.flatnonzero(steps.last).tolist() == [first - 1, first + 6, first + 13]
    own = steps.index[:first][steps.mask[:first]]
    assert np.array_equal(own, stream.subsets(3)[0]) and steps.first_pass[:first].all()
    for task in (1, 2):
        at = steps.current == task
        assert steps.mask[at].all() and (steps.task[at] == task).all()
        assert steps.index[at].shape == (7, batch_size) and steps.index.dtype == np.int32
        assert set(steps.index[at].reshape(-1)) <= set(stream.subsets(3)[task])
        drawn = np.arange(7) * batch_size // len(stream.subsets(3)[task])
        assert np.array_equal(steps.epoch[at], drawn)
        assert np.array_equal(steps.first_pass[at], drawn == 0)
    again, other = plan(stream, 3, batch_size), plan(stream, 4, batch_size)
    assert np.array_equal(again.index, steps.index)
    assert not np.array_equal(other.index[first:], steps.index[first:])
    twice = plan(stream, 3, batch_size, epochs=2)  # of the first task alone
    assert (twice.current == 0).sum() == 2 * first and (twice.current == 1).sum() == 7


def test_draws_are_uniform_and_repeat():
    stream = made(steps=400)
    steps = plan(stream, 0, 45)
    rows = steps.index[steps.current == 1].reshape(-1)  # 18 000 draws of 18 rows
    _, counts = np.unique(rows, return_counts=True)
    assert len(counts) == 18 and abs(counts - 1000).max() < 4.5 * np.sqrt(1000)
    assert any(len(set(row)) < 18 for row in steps.index[steps.current == 1][:, :18])


def test_epochs_are_permutations_cut_at_the_last_step():
    stream = made(draws="epochs", steps=7)
    steps = plan(stream, 0, 7)  # task 1: 18 rows, three batches an epoch
    at = steps.current == 1
    assert steps.epoch[at].tolist() == [0, 0, 0, 1, 1, 1, 2] and at.sum() == 7
    for epoch in (0, 1):
        here = at & (steps.epoch == epoch)
        seen = steps.index[here][steps.mask[here]]
        assert np.array_equal(np.sort(seen), np.sort(stream.subsets(0)[1]))
    assert not np.array_equal(steps.index[at][:3], steps.index[at][3:6])
    assert steps.last[at].tolist() == [False] * 6 + [True]
    assert (steps.current == 2).sum() == 7


def test_pooling_takes_means_of_squares():
    x = np.array([[0, 1, 10, 20], [2, 3, 30, 40], [255, 255, 0, 0], [255, 255, 1, 0]], np.uint8)
    y = np.zeros(1, np.int32)
    data = ImageData(x[None, :, :, None], y, x[None, :, :, None], y, "s", "l", "c")
    wanted = np.array([[2, 25], [255, 0]], np.uint8)  # 1.5 rounds up, 0.25 down
    for image in (pooled(data, 2).train_x, pooled(data, 2).test_x):
        assert np.array_equal(image[0, :, :, 0], wanted) and image.dtype == np.uint8
    assert pooled(data, 4).train_x.shape == (1, 1, 1, 1) and pooled(data, 1) is data
    stream = made(pool=2)
    assert stream.train_x.shape[1:] == (2, 2, 3) and stream.example.shape == (2, 2, 3)
    assert np.array_equal(stream.train_y, made().train_y)
    means = stream.train_x.astype(int) - made().train_x.reshape(-1, 2, 2, 2, 2, 3).mean((2, 4))
    assert np.abs(means).max() <= 0.5


def test_the_checksum_covers_everything():
    base = made()
    assert made().checksum == base.checksum
    for options in (
        {"held": (5, 4, 8, 9)},
        {"held": (4, 5, 8)},
        {"held_share": 0.4},
        {"steps": 8},
        {"draws": "epochs"},
        {"pool": 2},
        {"val": 0.2},
        {"groups": ((2, 3), (4, 5), (7, 6))},
        {"data": pictures(10, seed=1)},
    ):
        assert made(**options).checksum != base.checksum, options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"draws": "random"}, "draws 'random' is not known"),
        ({"pool": 3}, "pool is 3, but images of made up 0 have 4 x 4 pixels"),
        ({"pool": 0}, "pool is 0"),
        ({"held_share": 0.0}, "held_share is 0.0"),
        ({"held_share": float("nan")}, "held_share is nan"),
        ({"held_share": 1.0}, "held_share is 1.0, but of class 4, which a task learns"),
        ({"held_share": 0.04}, "has 20 training images of class 4, too few to hold out"),
        ({"held": (4, 4)}, "name a class twice"),
        ({"held": (11,)}, "has 0 training images of class 11"),
        ({"val": 1.0}, "val is 1.0"),
        ({"groups": ((2, 3), (3, 4))}, "classes of their own"),
        ({"groups": ((2, 3), (4, 12))}, "no training or no test images of class 12"),
    ],
)
def test_mistakes_get_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        made(**options)


def test_two_data_sets_are_one():
    first, second = pictures(3), pictures(4, seed=1)
    both = joined(first, second, 3)
    assert np.array_equal(both.train_x, np.concatenate([first.train_x, second.train_x]))
    assert np.array_equal(both.test_y, np.concatenate([first.test_y, second.test_y + 3]))
    assert both.train_y.max() == 6 and both.source == "made up 0 and made up 1"
    assert both.licence == "none 0; none 1"
    others = joined(first, second, 4), joined(second, first, 4), joined(first, pictures(4), 3)
    assert len({both.checksum, *(other.checksum for other in others)}) == 4
    marks = joined(first._replace(mark="15k"), second._replace(sample=True), 3).mark
    assert marks == "15k,sample" and joined(first, first, 3).mark == ""
    with pytest.raises(UserError, match="but one stream needs one shape"):
        joined(first, pictures(3, size=2), 3)
    with pytest.raises(UserError, match="to start at 2, but made up 0 has classes up to 2"):
        joined(first, second, 2)


def data_of(name: str) -> tuple[ImageData, ...]:
    """Made-up data in the place of a named stream's own."""
    if name.startswith("fashion"):
        return (digits(400, 40, 1), digits(300, 30, 2)) if "mnist" in name else (digits(400, 40),)
    hundred = pictures(100, each=10, tests=1)
    if name.startswith("cifar100"):
        return (hundred,)
    return (pictures(10),) if name == "cifar10-5-5" else (pictures(10), hundred)


@pytest.mark.parametrize(
    ("name", "sizes", "held", "steps", "pool"),
    [
        ("fashion-5-5", (5, 5), 5, 500, 2),
        ("fashion-4-3-3", (4, 3, 3), 6, 200, 2),
        ("fashion-5-mnist-5", (5, 5), 5, 500, 2),
        ("cifar100-10-5", (10, 5), 40, 500, 4),
        ("cifar10-5-5", (5, 5), 5, 500, 1),
        ("cifar10-5-cifar100-5", (5, 5), 50, 500, 1),
        ("cifar10-10-10-10", (10, 10, 10), 50, 300, 1),
    ],
)
def test_named_streams(name, sizes, held, steps, pool):
    data = data_of(name)
    stream = STREAMS[name].build(*data)
    assert stream.name == name and stream.class_mask.sum(axis=1).tolist() == list(sizes)
    assert stream.held is not None and len(stream.held) == held
    assert stream.train_x.shape[1] == data[0].train_x.shape[1] // pool
    counted = plan(stream, 0, 8).current
    assert [(counted == t).sum() for t in range(1, len(sizes))] == [steps] * (len(sizes) - 1)
    flags = {option.name: option.default for option in options_of(STREAMS[name])}
    assert flags["steps"] == steps and flags["pool"] == pool and flags["draws"] == "iid"
    order, others = stream.manifest["class_order"], stream.manifest["held_classes"]
    seen = [order[: sizes[0]].tolist(), set(order[sizes[0] :]), set(others)]
    if name in ("fashion-5-5", "fashion-4-3-3", "cifar10-5-5"):
        first = list(range(0, 2 * sizes[0], 2)) if "fashion" in name else list(range(5))
        assert seen == [first, set(range(10)) - set(first), set(range(10)) - set(first)]
        assert stream.held.shape[1] == len(data[0].train_y) // 20
        if len(sizes) == 3:
            assert order[4:].tolist() == [1, 3, 5, 7, 8, 9]
    elif name == "fashion-5-mnist-5":
        assert seen[0] == [0, 2, 4, 6, 8] and seen[2] == {1, 3, 5, 7, 9}
        assert seen[1] < set(range(10, 20))
        halves = STREAMS["fashion-5-5"].build(data[0])
        held_out = lambda s: s.train_x[s.held]
        assert np.array_equal(held_out(stream), held_out(halves))
        assert (stream.train_y[stream.held] >= 10).all()
    elif name == "cifar100-10-5":
        assert set(seen[0]) | seen[2] == set(range(50)) and not set(seen[0]) & seen[2]
        assert seen[1] < set(range(50, 100))
    else:
        assert seen[0] == list(range(sizes[0])) and seen[2] == set(range(10, 60))
        assert seen[1] < set(range(60, 110))


@pytest.mark.parametrize(
    ("name", "draws", "new"),
    [
        ("fashion-5-mnist-5", 2, range(10, 20)),
        ("cifar100-10-5", 10, range(50, 100)),
        ("cifar10-5-cifar100-5", 10, range(60, 110)),
        ("cifar10-10-10-10", 2, range(60, 110)),
    ],
)
def test_draws_choose_the_new_classes_alone(name, draws, new):
    streams = [make(name, draw=draw).build(*data_of(name)) for draw in range(draws)]
    old = int(streams[0].class_mask[0].sum())
    chosen = [c for s in streams for c in s.manifest["class_order"][old:].tolist()]
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(new)
    if draws * int(streams[0].class_mask[1:].sum()) == len(new):
        assert set(chosen) == set(new)
    firsts = [s.train_x[s.subsets(0)[0]] for s in streams]
    assert all(np.array_equal(firsts[0], other) for other in firsts)
    assert len({s.checksum for s in streams}) == draws
    for draw in (-1, draws):
        with pytest.raises(UserError, match=f"draw is {draw}, but "):
            make(name, draw=draw).build(*data_of(name))


def test_small_and_large_streams_share_their_draws():
    small, large = (
        make(name, draw=3).build(*data_of(name))
        for name in ("cifar100-10-5", "cifar10-5-cifar100-5")
    )
    later = small.manifest["class_order"][10:] + 10
    assert np.array_equal(later, large.manifest["class_order"][5:])


def test_tiny_imagenet_from_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for c in range(10):
        for part, count in (("train", 3), ("val", 1)):
            folder = tmp_path / part / f"n{c:02d}" / "images"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / f"{c}_{i}.png")
    data = pictures(10, each=4, tests=1, size=32), pictures(100, each=2, tests=1, size=32)
    tiny = STREAMS["cifar10-5-tinyimagenet-5"].replace(val=0.0)
    streams = [tiny.replace(path=str(tmp_path), draw=draw).build(*data) for draw in (0, 1)]
    for stream in streams:
        assert stream.train_x.shape[1:] == (32, 32, 3) and stream.held.shape == (50, 2)
        assert [len(rows) for rows in stream.subsets(0)] == [20, 15]
        assert len(stream.test_index[1]) == 5
    new = [s.train_x[s.subsets(0)[1]] for s in streams]
    assert not {x.tobytes() for x in new[0]} & {x.tobytes() for x in new[1]}
    for options, message in (
        ({}, "No folder of Tiny-ImageNet is named"),
        ({"path": str(tmp_path), "draw": 2}, "draw is 2, but 10 classes in parts of 5"),
    ):
        with pytest.raises(UserError, match=message):
            tiny.replace(**options).build(*data)


@pytest.mark.parametrize("name", SMALL)
def test_the_real_small_ones(name):
    try:
        stream = make(name, data_dir=real_data_dir()).build()
    except UserError as error:
        assert "No data set" in str(error)
        pytest.skip(str(error))
    mark = "[15k]" if stream.source.startswith("archive:") else ""
    assert stream.name == name + mark and ("[15k]" in stream.name) == ("fashion" in name)
    shape = (8, 8, 3) if name == "cifar100-10-5" else (14, 14, 1)
    assert stream.train_x.shape[1:] == shape and stream.example.shape == shape
    rows = [len(rows) for rows in stream.subsets(0)]
    if name == "fashion-5-5":
        assert rows == [6750, 3375] and stream.held.shape == (5, 750)
    elif name == "fashion-4-3-3":
        assert rows == [5400, 2025, 2025] and stream.held.shape == (6, 750)
    elif name == "cifar100-10-5":
        assert rows == [4500, 2250] and stream.held.shape == (40, 500)
