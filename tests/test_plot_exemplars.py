"""Pictures of exemplars: which image stands where, what is said, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from cljax import plot
from cljax.errors import UserError
from cljax.types import Features

BLANK = 0xE4 / 255

LEVEL = 0.51 / 255  # of grey, half of it


def _exemplars(channels: int = 1, dtype=np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Three of class 2, one of class 0, mixed; 14 x 10 pixels, all different."""
    images = np.random.default_rng(0).integers(0, 256, (4, 14, 10, channels)).astype(np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return images, np.array([2, 0, 2, 2])


def _canvas(ax) -> np.ndarray:
    """In [0, 1]; shown in 256 levels."""
    return np.asarray(ax.images[0].get_array()) / 255


def _ticks(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def _blobs(per_class: int = 20, exemplars: int = 3, classes: int = 3):
    """Data and exemplars of far clusters in 5 dimensions: features and labels of both."""
    rng = np.random.default_rng(0)
    centres = 30 * rng.normal(size=(classes, 5))
    draw = lambda n: (centres[:, None] + rng.normal(size=(classes, n, 5))).reshape(-1, 5)
    labels = np.arange(classes)
    return draw(per_class), labels.repeat(per_class), draw(exemplars), labels.repeat(exemplars)


def _tsne(x, y, chosen, owner, seed=0, names=None, mask=None, **options):
    exemplars = Features(chosen, owner, mask)
    return plot.tsne(Features(x, y), exemplars, seed, names=names, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_class_has_a_row_of_its_images(channels: int) -> None:
    images, labels = _exemplars(channels)
    ax = plot.exemplar_grid(images, labels, title="four")
    assert _ticks(ax) == ["class 0", "class 2"] and ax.get_title() == "four"
    canvas = _canvas(ax)
    assert canvas.shape == (14 + 1 + 14, 10 + 1 + 10 + 1 + 10, 3)  # a pixel apart
    wanted = np.broadcast_to(images / 255, (4, 14, 10, 3))
    np.testing.assert_allclose(canvas[:14, :10], wanted[1])
    assert (canvas[:14, 11:21] == BLANK).all() and (canvas[:14, 22:] == BLANK).all()
    for column, row in enumerate([0, 2, 3]):
        left = 11 * column
        np.testing.assert_allclose(canvas[15:, left : left + 10], wanted[row])
    assert (canvas[14] == 1).all() and (canvas[:, 10] == 1).all()
    np.testing.assert_allclose(ax.get_yticks(), [6.5, 21.5])


def test_floats_grey_images_and_masks_are_the_same_picture() -> None:
    images, labels = _exemplars()
    wanted = _canvas(plot.exemplar_grid(images, labels))
    for same in (images[..., 0], *(_exemplars(1, dtype)[0] for dtype in (np.float32, np.float64))):
        np.testing.assert_allclose(_canvas(plot.exemplar_grid(same, labels)), wanted, atol=1e-7)
    more = np.concatenate([images[:1] / 255, np.full((1, 14, 10, 1), np.nan), images[1:] / 255])
    owner, mask = np.array([2, 7, 0, 2, 2]), np.array([1, 0, 1, 1, 1])
    np.testing.assert_allclose(_canvas(plot.exemplar_grid(more, owner, mask)), wanted)


def test_before_and_after_with_their_magnified_difference() -> None:
    images, labels = _exemplars()
    images = images // 2 + 60
    before = images.copy()
    images[1] += 3  # class 0: 3 levels up
    images[[0, 2, 3], :7] -= 2  # class 2: half of each image two levels down
    ax = plot.exemplar_grid(images, labels, before=before, names={0: "cat", 2: "dog"})
    assert _ticks(ax) == [
        "cat, before", "after", "change, mean 3", "dog, before", "after", "change, mean 1",
    ]  # fmt: skip
    # 3 levels times 32 stay within 127.5, times 64 they do not.
    assert ax.get_xlabel().splitlines() == [
        "mean |change| 1.5 grey levels", "change × 32; mid-grey: none, lighter: raised",
    ]  # fmt: skip
    canvas = _canvas(ax)
    assert canvas.shape[0] == 2 * 44 + 5
    np.testing.assert_allclose(canvas[:14, :10], before[1].repeat(3, axis=-1) / 255)
    np.testing.assert_allclose(canvas[15:29, :10], images[1].repeat(3, axis=-1) / 255)
    np.testing.assert_allclose(canvas[30:44, :10], 0.5 + 32 * 3 / 255, atol=LEVEL)
    np.testing.assert_allclose(canvas[49 + 30 : 49 + 37, :10], 0.5 - 32 * 2 / 255, atol=LEVEL)
    np.testing.assert_allclose(canvas[49 + 37 :, :10], 0.5, atol=LEVEL)


def test_exemplars_that_did_not_change_say_so() -> None:
    images, labels = _exemplars(3)
    ax = plot.exemplar_grid(images, labels, before=images)
    assert _ticks(ax)[2] == "change, mean 0"
    assert "mean |change| 0 grey" in ax.get_xlabel() and "× 1;" in ax.get_xlabel()
    assert (np.abs(_canvas(ax)[30:44, :10] - 0.5) < LEVEL).all()


def test_a_change_of_the_whole_range_is_shown_and_not_wrapped() -> None:
    black, white = np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 255, np.uint8)
    ax = plot.exemplar_grid(black, [0], before=white)
    assert _ticks(ax)[2] == "change, mean 255" and (_canvas(ax)[-4:] == 0).all()


def test_the_first_images_of_many_are_shown_and_said() -> None:
    images = np.random.default_rng(0).random((30, 8, 8))
    labels = np.arange(30) % 3
    ax = plot.exemplar_grid(images, labels, most=4)
    assert _canvas(ax).shape == (3 * 9 - 1, 4 * 9 - 1, 3)
    assert ax.get_xlabel() == "the first 4 of up to 10 exemplars a class"
    np.testing.assert_allclose(_canvas(ax)[:8, 27:, 0], images[9], atol=LEVEL)
    assert plot.exemplar_grid(images, labels, most=10).get_xlabel() == ""  # those are all


@pytest.mark.parametrize(
    "classes, each, shape, name",
    [(6, 5, (32, 32), "aquarium fish of a kind"), (1, 1, (32, 64), "0"), (9, 20, (8, 8), "cat")],
)
def test_no_text_is_cut_off(
    classes: int, each: int, shape: tuple[int, int], name: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((classes * each, *shape))
    ax = plot.exemplar_grid(
        images, np.arange(classes).repeat(each), names=[name] * classes,
        before=0.9 * images, title="Learned exemplars of CIFAR-100, in phase 3 of 5",
    )  # fmt: skip
    with Image.open(plot.save(ax, tmp_path / "grid.png")) as image:
        pixels = np.asarray(image.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255  # paper


def test_wrong_grids_are_refused() -> None:
    images, labels = _exemplars()
    refused = {
        r"no exemplar to draw: all 4 are masked out": (images, labels, np.zeros(4)),
        r"no exemplar to draw: all 0": (images[:0], labels[:0]),
        r"exemplar labels have shape \[3\]": (images, labels[:3]),
        r"their mask \[2\]": (images, labels, np.ones(2)),
        r"with 1 or 3 channels": (images.reshape(4, 7, 10, 2), labels),
        r"images have shape \[4, 140\]": (images.reshape(4, 140), labels),
        r"from -2.5 to 2.5, but must lie in \[0, 1\]; undo": (images / 51 - 2.5, labels),
        r"from nan to nan": (images * np.nan, labels),
        r"images are int64, but must be uint8": (images.astype(np.int64), labels),
        r"names has no entry for class 2": (images, labels, None, ["cat", "dog"]),
        r"before has shape \[3, 14": (images, labels, None, None, images[:3]),
        r"401 classes make 401 rows": (np.zeros((401, 2, 2)), np.arange(401)),
        r"134 classes make 402 rows": (*(np.zeros((134, 2, 2)), np.arange(134)), None, None,
                                       np.zeros((134, 2, 2))),
    }  # fmt: skip
    for sentence, arguments in refused.items():
        with pytest.raises(UserError, match=sentence):
            plot.exemplar_grid(*arguments)
    with pytest.raises(UserError, match="most is 0"):
        plot.exemplar_grid(images, labels, most=0)


def test_tsne_draws_light_data_and_dark_exemplars_of_each_class() -> None:
    arguments = _blobs(per_class=40)
    ax = _tsne(*arguments, seed=3, names=["cat", "dog", "eel"], title="phase 0")
    assert [len(c.get_offsets()) for c in ax.collections] == [40, 3] * 3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["cat", "dog", "eel"]
    assert ax.get_xlabel() == "t-SNE, perplexity 30, seed 3; light: data, dark: exemplars"
    data, chosen = ax.collections[::2], ax.collections[1::2]
    centres = np.array([np.mean(c.get_offsets(), axis=0) for c in data])
    for i, (light, dark) in enumerate(zip(data, chosen, strict=True)):
        assert light.get_facecolor()[0, :3].mean() > dark.get_facecolor()[0, :3].mean() + 0.3
        assert dark.get_sizes()[0] > light.get_sizes()[0] and dark.zorder > light.zorder
        # One fit of all: each exemplar lies with the data of its class.
        gaps = np.linalg.norm(np.asarray(dark.get_offsets())[:, None] - centres, axis=-1)
        assert (gaps.argmin(axis=1) == i).all()


def test_the_same_seed_draws_the_same_tsne() -> None:
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(30, 4)), np.arange(30) % 2, rng.normal(size=(4, 4)), [0, 1, 0, 1]
    one, same, other = (
        np.concatenate([c.get_offsets() for c in _tsne(*arguments, seed).collections])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert one.shape == (34, 2) and np.isfinite(other).all()


def test_perplexity_of_few_points_is_lower_and_said() -> None:
    x, y, *_ = _blobs(per_class=5)
    ax = _tsne(x, y, x[:2] + 1, y[:2], mask=[True, False])
    assert "perplexity 5," in ax.get_xlabel()  # of 16 points
    assert "(perplexity 30 needs 91 points)" in ax.get_xlabel()
    assert sum(len(c.get_offsets()) for c in ax.collections) == 16
    for few in (np.eye(5), np.arange(10.0).reshape(5, 2)):  # also on a line
        ax = _tsne(few, np.zeros(5), few[:0], [])
        assert np.isfinite(ax.collections[0].get_offsets()).all()
        assert "perplexity 1.33," in ax.get_xlabel()


def test_up_to_24_classes_differ_in_colour_or_marker() -> None:
    x, y, chosen, owner = _blobs(per_class=1, exemplars=1, classes=24)
    ax = _tsne(x, y, chosen, owner)
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections
    }
    assert len(looks) == 48
    with pytest.raises(UserError, match="25 classes, but at most 24"):
        _tsne(np.eye(25), np.arange(25), np.eye(25), np.arange(25))


def test_wrong_points_are_refused() -> None:
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.zeros(6, int)
    refused = {
        r"shapes \[6, 3\] and \[6, 2\]": (x, y, x[:, :2], y),
        r"shapes \[6\] and": (x[:, 0], y, x, y),
        r"data labels have shape \[5\]": (x, y[:5], x, y),
        r"exemplar labels have shape \[5\]": (x, y, x, y[:5]),
        r"given 4 points of 3 features, but needs at least 5 points of 2": (x[:2], y[:2]) * 2,
        r"given 12 points of 1 features": (x[:, :1], y, x[:, :1], y),
        r"finite and not all the same": (x * 0, y, x * 0, y),
        r"must be finite": (x, y, x * np.nan, y),
        r"seed not negative": (x, y, x, y, -1),
        r"names has no entry for class 0": (x, y, x, y, 0, []),
    }
    for sentence, arguments in refused.items():
        with pytest.raises(UserError, match=sentence):
            _tsne(*arguments)
    with pytest.raises(UserError, match="perplexity is 0"):
        _tsne(x, y, x, y, perplexity=0)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"pip install 'cljax\[pictures\]'"):
        _tsne(*_blobs())


def test_losses_start_before_the_first_step() -> None:
    values = np.array([[2.0, 1.0, 0.5], [1.0, 1.0, 0.7]])
    ax = plot.outer_loss({"random": values, "herding": [0.9, np.nan]}, title="phase 0")
    first, *singles, second = ax.lines
    assert len(singles) == 2
    assert first.get_xdata().tolist() == [0, 1, 2] and second.get_xdata().tolist() == [0, 1]
    np.testing.assert_allclose(first.get_ydata(), [1.5, 1, 0.6])
    np.testing.assert_allclose(second.get_ydata(), [0.9, np.nan])
    assert not ax.collections  # two seeds are too few for a band
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["random", "herding"]
    assert ax.get_xlabel() == "Outer steps" and ax.get_ylabel() == "Validation loss (nats)"
    assert ax.get_title() == "phase 0"
    assert to_rgb(first.get_color()) != to_rgb(second.get_color())


def test_a_window_averages_the_last_values_of_each_seed() -> None:
    values = [[1.0, 2.0, 6.0, np.nan, 4.0], [3.0, 4.0, 8.0, np.nan, 6.0]]
    ax = plot.outer_loss({"a": values}, window=2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 2.5, 5, 7, 5])
    assert ax.get_ylabel() == "Validation loss (nats), mean of the last 2 values"


@pytest.mark.parametrize("value", [2.302585, 0.0, 1e-12])
def test_a_constant_loss_is_a_level_line(value: float) -> None:
    ax = plot.outer_loss({"a": value + 1e-9 * value * np.arange(30) ** 2})
    low, high = ax.get_ylim()
    assert low < value < high or low < 0 < high
    assert high - low >= 0.0199 * value
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() in ("", "1e−12")  # never a number to add


def test_wrong_losses_are_refused() -> None:
    with pytest.raises(UserError, match="no losses to draw"):
        plot.outer_loss({})
    for wrong, sentence in (
        ([], r"shape \[0\] and 0 finite"),
        ([np.nan, np.inf], r"shape \[2\] and 0 finite"),
        (np.zeros((2, 3, 4)), r"shape \[2, 3, 4\]"),
    ):
        with pytest.raises(UserError, match="'a' have " + sentence):
            plot.outer_loss({"a": wrong})
    with pytest.raises(UserError, match="window is 0"):
        plot.outer_loss({"a": [1.0]}, window=0)


def test_given_axes_are_used() -> None:
    from matplotlib.figure import Figure

    left, middle, right = Figure().subplots(1, 3)
    images, labels = _exemplars()
    assert plot.exemplar_grid(images, labels, ax=left) is left
    assert _tsne(*_blobs(per_class=3), ax=middle) is middle
    assert plot.outer_loss({"a": [1.0, 0.5]}, right) is right


def test_neither_scikit_learn_nor_pyplot_comes_in_before_it_is_needed() -> None:
    code = (
        "import sys, numpy as np, cljax.plot as p\n"
        "assert not {'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "p.exemplar_grid(np.zeros((1, 4, 4)), [0])\n"
        "p.outer_loss({'a': [1.0]})\n"
        "assert not {'matplotlib.pyplot', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
