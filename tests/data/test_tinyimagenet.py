"""TinyImageNet's layout, a small copy of it: read, as a stream, and with files missing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from cljax import data, streams
from cljax.data.tinyimagenet import tinyimagenet
from cljax.errors import UserError
from cljax.streams import make

NAMES = [f"n{c:08d}" for c in (3, 1, 4, 15, 9, 2)]
EACH, TESTS = 10, 2


def picture(path, seed: int, size=(64, 64), grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if grey else (*size[::-1], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for c, name in enumerate(NAMES):
        for i in range(EACH):
            picture(root / "train" / name / "images" / f"{name}_{i}.JPEG", 100 * c + i, grey=not i)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0.JPEG\t0\t0\t62\t62\n")
        for i in range(TESTS):
            file = f"val_{TESTS * c + i}.JPEG"
            picture(root / "val" / "images" / file, 1000 + TESTS * c + i)
            lines.append(f"{file}\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("\n".join(NAMES) + "\n")
    (root / "test" / "images").mkdir(parents=True)
    return root


def decoded(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_images_and_labels(root):
    found = tinyimagenet(root.parent)
    names = sorted(NAMES)
    assert found.train_x.shape == (6 * EACH, 64, 64, 3) and found.train_x.dtype == np.uint8
    assert np.bincount(found.train_y).tolist() == [EACH] * 6
    assert np.bincount(found.test_y).tolist() == [TESTS] * 6
    for label, name in enumerate(names):
        of_train = found.train_x[found.train_y == label]
        wanted = [decoded(root / "train" / name / "images" / f"{name}_{i}.JPEG")
                  for i in range(EACH)]  # fmt: skip
        assert np.array_equal(of_train, wanted)
        c = NAMES.index(name)
        wanted = {decoded(root / "val" / "images" / f"val_{TESTS * c + i}.JPEG").tobytes()
                  for i in range(TESTS)}  # fmt: skip
        assert {x.tobytes() for x in found.test_x[found.test_y == label]} == wanted
    assert tinyimagenet(root).checksum == found.checksum  # the folder itself
    # Any stream of class folders reads the layout too.
    with pytest.warns(UserWarning, match="are no images by their endings"):
        some = data.class_folders(root, size=32, classes=names[:2])
    assert some.test_x.shape == (2 * TESTS, 32, 32, 3) and set(some.test_y) == {0, 1}


def test_the_stream(root):
    stream = make("tinyimagenet-40x5", classes_per_task=2, classes=6, data_dir=str(root)).build()
    assert stream.name == "tinyimagenet-3x2" and not stream.published
    assert stream.multi_head and stream.scenario == "task"
    assert stream.transform.augment.name == "crop4-flip"
    assert [len(rows) for rows in stream.subsets(0)] == [2 * (EACH - 1)] * 3
    assert [len(rows) for rows in stream.valid(0)] == [2] * 3
    assert [len(rows) for rows in stream.tests(0)] == [2 * TESTS] * 3
    assert stream.example.shape == (64, 64, 3)
    outputs = [stream.class_orders(seed) for seed in range(4)]
    assert len({tuple(own) for own in outputs}) > 1
    natural = make(
        "tinyimagenet-40x5", class_order="natural", classes=5, data_dir=str(root)
    ).build()
    assert natural.test_index and natural.num_tasks == 1


def lines_of(root):
    path = root / "val" / "val_annotations.txt"
    return path, path.read_text().splitlines(keepends=True)


def without_train(root):
    shutil.rmtree(root / "train")


def without_a_class(root):
    shutil.rmtree(root / "train" / NAMES[2])


def without_annotations(root):
    lines_of(root)[0].unlink()


def without_a_line(root):
    path, lines = lines_of(root)
    path.write_text("".join(lines[1:]))


def without_a_test(root):
    (root / "val" / "images" / "val_3.JPEG").unlink()


def without_an_image(root):
    (root / "train" / NAMES[0] / "images" / f"{NAMES[0]}_4.JPEG").unlink()


def with_a_strange_class(root):
    path, lines = lines_of(root)
    path.write_text("".join([*lines, "val_99.JPEG\tn99\t0\t0\t1\t1\n"]))


def with_a_small_image(root):
    picture(root / "val" / "images" / "val_3.JPEG", 0, size=(32, 48))


def with_a_broken_image(root):
    (root / "val" / "images" / "val_3.JPEG").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_train, "There is no TinyImageNet in .*unpack tiny-imagenet-200.zip"),
        (without_a_class, "wnids.txt lists the class n00000004, but there is no folder"),
        (without_annotations, "There is no file .*val_annotations.txt"),
        (
            without_a_line,
            "The class n00000002 has 1 images in .*annotations.txt, but others have 2",
        ),
        (without_a_test, "1 of the images that .* names are missing, such as .*val_3.JPEG"),
        (without_an_image, "The class n00000003 has 9 images in .*train, but others have 10"),
        (with_a_strange_class, "names the class 'n99' of the image 'val_99.JPEG', but there is no"),
        (with_a_small_image, "val_3.JPEG: it has 32 x 48 pixels, but those .* set 64 x 64"),
        (with_a_broken_image, "val_3.JPEG: it cannot be read"),
    ],
)
def test_what_is_missing_gets_a_sentence(root, spoil, message):
    spoil(root)
    with pytest.raises(UserError, match=message):
        streams.make("tinyimagenet-40x5", classes=6, classes_per_task=2, data_dir=str(root)).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "classes is 200, but there are only 6 classes"),
        ({"classes": 6, "classes_per_task": 4}, "does not divide the 6 classes"),
        ({"classes": 6, "classes_per_task": 2, "augment": "standard"}, "augment 'standard'"),
    ],
)
def test_wrong_options_get_a_sentence(root, options, message):
    with pytest.raises(UserError, match=message):
        make("tinyimagenet-40x5", data_dir=str(root), **options).build()
