from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cljax import data, streams
from cljax.cli.command import main
from cljax.data import folders
from cljax.errors import UserError

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def write(folder: Path, num: int, seed: int, size=(40, 30), ending: str = "png") -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(num):
        image = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{i:03d}.{ending}")


def tree(root: Path, tests: str = "val", num: int = 6, num_tests: int = 3) -> Path:
    for c, name in enumerate(NAMES):
        write(root / "train" / name, num, c)
        write(root / tests / name, num_tests, 100 + c, ending="JPEG")
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tree(tmp_path / "images")


def torchvisions(file: Path, resize: int, size: int) -> np.ndarray:
    """Resize and CenterCrop as written there, for images that are wider than high."""
    image = Image.open(file).convert("RGB")
    wide = int(resize * image.width / image.height)
    image = image.resize((wide, resize), Image.Resampling.BILINEAR)
    top, left = round((resize - size) / 2.0), round((wide - size) / 2.0)
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize("tests", ["val", "test"])
def test_images_are_resized_cut_and_labelled_by_name(tmp_path, tests):
    root = tree(tmp_path / "images", tests)
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "notes.txt").write_text("not a class")
    found = data.class_folders(root, size=24, test_resize=23, test_size=22, licence="ours")
    assert found.train_x.shape == (30, 24, 24, 3) and found.train_x.dtype == np.uint8
    assert found.test_x.shape == (15, 22, 22, 3) and found.licence == "ours"
    assert np.array_equal(found.train_y, np.repeat(np.arange(5), 6))
    assert np.array_equal(found.test_y, np.repeat(np.arange(5), 3))
    assert data.class_names(root) == NAMES and found.source == "folder:images"
    for c, name in enumerate(NAMES):
        train = root / "train" / name / "002.png"
        assert np.array_equal(found.train_x[6 * c + 2], torchvisions(train, 24, 24))
        test = root / tests / name / "001.JPEG"
        assert np.array_equal(found.test_x[3 * c + 1], torchvisions(test, 23, 22))


def test_upright_and_grey_images(tmp_path):
    for seed, part in enumerate(("train", "test")):
        (tmp_path / part / "a").mkdir(parents=True)
        grey = np.random.default_rng(seed).integers(0, 256, (50, 20), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / part / "a" / "x.jpg")
    found = data.class_folders(tmp_path, size=10)
    assert found.train_x.shape == found.test_x.shape == (1, 10, 10, 3)
    assert np.array_equal(found.train_x[..., 0], found.train_x[..., 2])


def test_images_are_decoded_once(root, monkeypatch):
    opened = []
    real = folders.open_rgb
    monkeypatch.setattr(folders, "open_rgb", lambda file: opened.append(file) or real(file))
    first = data.class_folders(root, size=8)
    assert len(opened) == 45
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = data.class_folders(root, size=8)
    assert len(opened) == 45 and again.checksum == first.checksum
    assert all(np.array_equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not again.train_x.flags.writeable
    data.class_folders(root, size=9)
    assert len(opened) == 90
    changed = root / "train" / "ant" / "000.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert not data.class_folders(root, size=8).train_x[0].any()
    some = data.class_folders(root, size=8, classes=["dog", "bee"])
    assert np.array_equal(some.train_x, again.train_x[np.isin(again.train_y, [1, 3])])
    assert sorted(set(some.train_y)) == [0, 1]


def test_one_folder_without_tests_keeps_a_share_back(tmp_path):
    for c, name in enumerate(NAMES):
        write(tmp_path / name, 10, c)
    found = data.class_folders(tmp_path, size=30, test_share=0.3)
    assert np.bincount(found.train_y).tolist() == [7] * 5
    assert np.bincount(found.test_y).tolist() == [3] * 5
    train, test = ({image.tobytes() for image in x} for x in (found.train_x, found.test_x))
    assert len(train | test) == 50  # no image in both
    assert data.class_folders(tmp_path, size=30, test_share=0.01).test_y.tolist() == [0, 1, 2, 3, 4]


def test_a_stream_of_folders(root):
    stream = streams.ClassFolders(path=str(root), num_tasks=2, image_size=16, val=0.34).build()
    assert stream.name == "class-folders" and not stream.published
    assert stream.class_mask.astype(int).tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert stream.manifest["class_names"].tolist() == NAMES
    # Training images are stored a little larger, for the random box; the network sees 16.
    assert stream.train_x.shape == (30, 17, 17, 3) and stream.test_x.shape == (15, 16, 16, 3)
    assert stream.example.shape == (16, 16, 3)
    spec, task = stream.spec(3), jnp.zeros(3, jnp.int32)
    x = jnp.asarray(stream.train_x[:3])
    assert spec.show(x, task).shape == (3, 16, 16, 3)
    assert spec.show(x, task, jax.random.key(0)).shape == (3, 16, 16, 3)
    assert stream.transform.apply((), jnp.asarray(stream.test_x), jnp.zeros(15, jnp.int32)).shape \
        == (15, 16, 16, 3)  # fmt: skip
    for t, (own, held) in enumerate(zip(stream.subsets(0), stream.valid(0), strict=True)):
        assert not np.intersect1d(own, held).size and len(held) == 2 * (3 - t)
        assert stream.class_mask[t, stream.train_y[own]].all()
        assert stream.class_mask[t, stream.test_y[stream.test_index[t]]].all()


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_other_augmentations_store_what_is_seen(root, augment):
    stream = streams.ClassFolders(
        path=str(root), num_tasks=5, image_size=16, augment=augment
    ).build()
    assert stream.train_x.shape[1:] == stream.test_x.shape[1:] == (16, 16, 3)
    shown = stream.spec(2).show(
        jnp.asarray(stream.train_x[:2]), jnp.zeros(2, jnp.int32), jax.random.key(0)
    )
    assert shown.shape == (2, 16, 16, 3)


def test_orders_and_fewer_classes(root):
    def of(**options):
        return streams.ClassFolders(path=str(root), num_tasks=2, image_size=8, **options).build()

    whole = of(augment="none")
    for seed in range(4):
        stream = of(class_order="seeded", class_seed=seed, classes=3, augment="none")
        names = stream.manifest["class_names"].tolist()
        assert len(set(names)) == 3 and stream.num_classes == 3 and len(stream.train_y) == 18
        for label, name in enumerate(names):
            own = stream.train_x[stream.train_y == label]
            assert np.array_equal(own, whole.train_x[whole.train_y == NAMES.index(name)])


def test_imagenet_is_a_name_over_folders(root):
    stream = streams.ImageNet(
        classes=5, classes_per_task=2, image_size=8, data_dir=str(root)
    ).build()
    assert stream.name == "imagenet5-3x2" and stream.class_mask.sum(axis=1).tolist() == [2, 2, 1]
    with pytest.raises(UserError, match="classes is 100, but there are only 5"):
        streams.make("imagenet100-10x10", data_dir=str(root)).build()
    with pytest.raises(UserError, match="give --data-dir"):
        streams.STREAMS["imagenet1k-10x100"].build()


def test_folders_that_do_not_fit_get_a_sentence(root, tmp_path):
    def refused(message: str, path: Path = root, **options):
        with pytest.raises(UserError, match=message):
            data.class_folders(path, **{"size": 8, **options})

    refused("no folder .*nowhere", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds no folders", tmp_path / "empty")
    refused("size is 0", size=0)
    refused("test_size is 9", test_size=9, test_resize=8)
    refused("class of .* 'cta' is not known; did you mean cat", classes=["cta"])
    (root / "val" / "fox").mkdir()
    refused("class fox is in .*val, but not in")
    (root / "val" / "fox").rmdir()
    bad = root / "train" / "cat" / "zzz.jpg"
    bad.write_bytes(b"no image")
    refused("1 of the 46 images .*, the first of them .*cat/zzz.jpg: it cannot be read")
    whole = (root / "val" / "ant" / "000.JPEG").read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    refused("1 of the 46 images .*, the first of them .*cat/zzz.jpg: it cannot be read")
    bad.unlink()
    for file in (root / "val" / "bee").iterdir():
        file.unlink()
    refused("no images of the class bee in .*val")
    (root / "val").rename(root / "elsewhere")
    refused("neither .*test nor .*val holds a folder")
    write(tmp_path / "single" / "one", 1, 0)
    refused("holds 1 images", tmp_path / "single")
    refused("test_share is 1.5", tmp_path / "single", test_share=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "give --path"),
        ({"num_tasks": 6}, "num_tasks is 6, but there are only 5"),
        ({"num_tasks": 0}, "num_tasks is 0"),
        ({"classes": 9}, "classes is 9"),
        ({"augment": "some"}, "augment 'some' is not known"),
        ({"image_size": 0}, "image_size is 0"),
        ({"class_order": "size"}, "class order 'size'"),
    ],
)
def test_wrong_options_get_a_sentence(root, options, message):
    with pytest.raises(UserError, match=message):
        streams.ClassFolders(**{"path": str(root), "num_tasks": 5, **options}).build()


def test_the_new_data_sets_have_names(tmp_path, capsys):
    for name in ("svhn_cropped", "fashion_mnist"):
        with pytest.raises(UserError, match=f"cljax data {name} --prepare"):
            data.images(name, tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["data", "svhn_cropped", "--licences"])
    assert done.value.code == 0 and "svhn_cropped: not stated" in capsys.readouterr().out
