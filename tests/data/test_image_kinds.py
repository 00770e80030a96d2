"""Image files of every kind become the pixels that they show, or are refused with the count."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cljax import data, streams
from cljax.data.layouts import split_of
from cljax.data.pictures import Unusable, open_rgb
from cljax.errors import UserError

SIZE = 8
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(shape=(SIZE, SIZE, 3), dtype=np.uint8, top=256):
    return RNG.integers(0, top, shape).astype(dtype)


def write(folder: Path, num: int = 4, ending: str = "png", start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + num):
        Image.fromarray(noise()).save(folder / f"{i}.{ending}")
    return folder


def classes(root: Path, *names: str, num: int = 4) -> Path:
    for name in names or ("a", "b"):
        write(root / name, num)
    return root


def quiet(root: Path, **options) -> data.ImageData:
    """Reads a folder; anything said is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return data.class_folders(root, size=SIZE, **options)


def heard(root: Path, **options) -> tuple[data.ImageData, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = data.class_folders(root, size=SIZE, **options)
    return found, [str(w.message) for w in caught]


def seen(tmp_path: Path, image: Image.Image, name: str = "x.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return np.asarray(open_rgb(tmp_path / name)).astype(int)


# ---- pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.TIFF", "x.pgm"])
@pytest.mark.parametrize(("low", "high"), [(0, 65535), (300, 900), (40000, 40600)])
def test_sixteen_bits_keep_their_contrast(tmp_path, name, low, high):
    values = np.linspace(low, high, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    found = seen(tmp_path, Image.fromarray(values), name)
    np.testing.assert_array_equal(found, np.repeat(np.round(values / 257)[..., None], 3, axis=2))


def test_big_endian_sixteen_bits_are_the_same_numbers(tmp_path):
    values = (np.arange(64).reshape(8, 8) * 1000).astype(">u2")
    image = Image.frombytes("I;16B", (8, 8), values.tobytes())
    np.testing.assert_array_equal(seen(tmp_path, image, "x.tif")[..., 0], np.round(values / 257))


@pytest.mark.parametrize(("dtype", "word"), [(np.int32, "32-bit integers"), (np.float32, "floats")])
def test_pixels_of_no_known_range_are_refused(tmp_path, dtype, word):
    root = classes(tmp_path / "root")
    for i in range(3):
        Image.fromarray(noise((8, 8), dtype)).save(root / "b" / f"z{i}.tif")
    with pytest.raises(
        UserError, match=rf"^3 of the 11 images .*z[0-2].tif: its pixels are {word}"
    ):
        quiet(root)


def test_palettes_and_single_bits_show_their_colours(tmp_path):
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)
    palette = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    for name in ("x.png", "x.gif", "x.bmp", "x.tif"):
        np.testing.assert_array_equal(seen(tmp_path, palette, name), pixels)
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for name in ("x.png", "x.bmp", "x.tif", "x.pbm"):
        np.testing.assert_array_equal(seen(tmp_path, bits, name)[..., 1], [[0, 255], [255, 0]])


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.array([[[200, 10, 0, 255], [200, 10, 0, 0], [200, 10, 0, 128]]], np.uint8)
    expected = [[[200, 10, 0], [255, 255, 255], [227, 132, 127]]]
    for name in ("x.png", "x.tif"):
        found = seen(tmp_path, Image.fromarray(rgba), name)
        assert np.abs(found - expected).max() <= 1
    found = seen(tmp_path, Image.fromarray(rgba), "x.webp", lossless=True, exact=True)
    assert np.abs(found - expected).max() <= 1
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(seen(tmp_path, grey)[..., 0], [[7, 255]])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 70, 80, 90])
    found = seen(tmp_path, palette, "x.png", transparency=0)
    np.testing.assert_array_equal(found, [[[255, 255, 255], [70, 80, 90]]])
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    found = seen(tmp_path, keyed, "x.png", transparency=(4, 5, 6))
    np.testing.assert_array_equal(found, [[[1, 2, 3], [255, 255, 255]]])
    wide = Image.fromarray(np.array([[0, 2570, 51400]], np.uint16))
    found = seen(tmp_path, wide, "x.png", transparency=2570)
    np.testing.assert_array_equal(found[..., 0], [[0, 255, 200]])


@pytest.mark.parametrize(
    ("ink", "rgb"),
    [((0, 0, 0, 0), (255, 255, 255)), ((255, 255, 0, 0), (0, 0, 255)), ((0, 0, 0, 255), (0, 0, 0)),
     ((0, 255, 255, 0), (255, 0, 0))],
)  # fmt: skip
def test_printers_inks_become_colours(tmp_path, ink, rgb):
    for name in ("x.jpg", "x.tif"):
        found = seen(tmp_path, Image.new("CMYK", (8, 8), ink), name)
        assert np.abs(found - np.array(rgb)).max() <= 6


@pytest.mark.parametrize("orientation", range(2, 9))
def test_cameras_turn_images_upright(tmp_path, orientation):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0, 0], pixels[0, 5] = 255, 128
    # By TIFF's table: where the first row and the first column of the file belong.
    upright = {
        2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T,
        6: pixels.T[:, ::-1], 7: pixels.T[::-1, ::-1], 8: pixels.T[::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = seen(tmp_path, Image.fromarray(pixels), "x.png", exif=exif)
    np.testing.assert_array_equal(found[..., 0], upright)


@pytest.mark.parametrize("ending", ["PNG", "JPEG", "BMP", "WebP", "Tif", "TIFF", "GIF", "JPE"])
def test_every_ending_in_any_capitals_is_read(tmp_path, ending):
    kind = {"Tif": "TIFF", "JPE": "JPEG"}.get(ending, ending.upper())
    for name in ("a", "b"):
        (tmp_path / "r" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise()).save(tmp_path / "r" / name / f"{i}.{ending}", kind)
    found = quiet(tmp_path / "r")
    assert len(found.train_y) + len(found.test_y) == 6


# ---- files that are no images to learn from ---------------------------------------------------


def frames(path: Path) -> None:
    pages = [Image.fromarray(noise()) for _ in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def cut_off(path: Path) -> None:
    Image.fromarray(noise((40, 40, 3))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


SPOILED = {
    "an animated GIF": ("z.gif", frames, "it has 3 frames or pages"),
    "a TIFF of several pages": ("z.tiff", frames, "it has 3 frames or pages"),
    "a cut PNG": ("z.png", cut_off, "it cannot be read as an image"),
    "a cut JPEG": ("z.jpg", cut_off, "it cannot be read as an image"),
    "a cut TIFF": ("z.tif", cut_off, "it cannot be read as an image"),
    "text": ("z.png", lambda p: p.write_text("a,b\n1,2\n"), "it cannot be read as an image"),
    "an empty file": ("z.bmp", lambda p: p.touch(), "it is empty"),
    "a broken link": ("z.jpeg", lambda p: p.symlink_to("/nowhere/x.png"), "it is a broken link"),
    "a link to itself": ("z.webp", lambda p: p.symlink_to(p), "broken link"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_what_cannot_be_learned_from_is_refused_with_the_count(tmp_path, what):
    name, spoil, reason = SPOILED[what]
    root = classes(tmp_path / "r", num=5)
    spoil(root / "b" / name)
    spoil(root / "b" / f"y{name}")
    with pytest.raises(UserError) as caught:
        quiet(root)
    sentence = str(caught.value)
    assert sentence.startswith("2 of the 12 images below ") and reason in sentence
    assert str(root / "b") in sentence and sentence.endswith("; replace or remove them.")
    assert "\n" not in sentence and not list(root.glob("*.npy"))


def test_a_photograph_with_a_second_picture_inside_is_its_first(tmp_path):
    pages = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (200, 10)]
    pages[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert open_rgb(tmp_path / "x.jpg").getpixel((0, 0))[0] > 190


def test_an_image_without_pixels_is_refused(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5\n0 0\n255\n")
    with pytest.raises(Unusable):
        open_rgb(tmp_path / "x.pgm")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    root = classes(tmp_path / "r")
    (root / "a" / "0.png").chmod(0)
    with pytest.raises(UserError, match="a/0.png: it cannot be opened"):
        quiet(root)


# ---- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "._old"])
def test_hidden_folders_add_no_images(tmp_path, name):
    root = classes(tmp_path / "r", num=10)
    for own in ("a", "b"):
        shutil.copytree(root / own, root / own / name)
    shutil.copytree(root / "a", root / name)
    found = quiet(root)
    assert data.class_names(root) == ["a", "b"]
    assert len(found.train_y) + len(found.test_y) == 20


def test_hidden_files_are_no_images(tmp_path):
    root = classes(tmp_path / "r", num=10)
    for junk in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"):
        (root / "a" / junk).write_bytes(b"junk")
    assert len(quiet(root).train_y) == 16


PARTS = [
    ("train", "test"), ("Train", "Test"), ("TRAIN", "VALID"), ("training", "testing"),
    ("Training", "validation"), ("train_set", "test_set"), ("Train Images", "Val"),
    ("train", "Validation"), ("seg_train", "seg_test"), ("trn", "tst"),
    ("dataset_train", "dataset-test"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PARTS)
def test_splits_in_any_usual_name_are_splits(tmp_path, train, test):
    root = tmp_path / "r"
    classes(root / train, "cat", "dog", num=5)
    classes(root / test, "cat", "dog", num=2)
    found = quiet(root)
    assert data.class_names(root) == ["cat", "dog"]
    assert np.bincount(found.train_y).tolist() == [5, 5] and len(found.test_y) == 4
    stream = streams.ClassFolders(path=str(root), num_tasks=2, image_size=8, augment="none").build()
    assert stream.manifest["class_names"].tolist() == ["cat", "dog"]


def test_tests_test_where_there_are_validation_images_too(tmp_path):
    root = tmp_path / "r"
    for part, num in (("train", 5), ("Test", 2), ("Valid", 3)):
        classes(root / part, num=num)
    found, said = heard(root)
    assert len(found.test_y) == 4
    (sentence,) = said
    assert "Valid (val images) was not read. The tests are those of" in sentence


@pytest.mark.parametrize("name", ["train", "Training", "seg_train"])
def test_a_class_may_be_called_like_a_split_where_others_are_not(tmp_path, name):
    root = classes(tmp_path / "r", "boat", "car", name)
    assert split_of(root) == {} and data.class_names(root) == sorted(["boat", "car", name])
    with pytest.warns(UserWarning, match=f"{name} is taken for a class"):
        assert len(data.class_folders(root, size=4).train_y) == 9


@pytest.mark.parametrize("name", ["test", "Testing", "val", "Validation", "seg_test"])
def test_tests_beside_folders_of_classes_are_refused_unless_they_are_asked_for(tmp_path, name):
    root = classes(tmp_path / "r", "boat", "car", name)
    named = {"path": str(root), "num_tasks": 1, "image_size": 4, "augment": "none"}
    for call in (lambda: data.class_folders(root, size=4), streams.ClassFolders(**named).build):
        with pytest.raises(
            UserError, match=f"{name} with [34] images is named like the (test|val)"
        ):
            call()
    assert data.class_folders(root, size=4, classes=["boat", "car"]).train_y.max() == 1
    with pytest.warns(UserWarning, match=f"{name} is taken for a class"):
        data.class_folders(root, size=4, classes=["boat", name])


REFUSED = {
    "two folders of one part": (
        lambda r: [classes(r / p) for p in ("train", "Training", "test")],
        "both named like",
    ),
    "tests without training images": (
        lambda r: [classes(r / p) for p in ("Test", "Valid")],
        "but none of training images",
    ),
    "a split a level deeper": (
        lambda r: [classes(r / "pets" / p) for p in ("Train", "Test")],
        "holds Test with folders of its own, so it is no class; name .*pets instead",
    ),
    "a split without classes": (
        lambda r: [write(r / p) for p in ("train", "test")],
        "train holds no folders",
    ),
    "names that differ in capitals": (
        lambda r: classes(r, "Cat", "cat", "dog"),
        "Cat and cat of .* differ in capitals alone",
    ),
    "other capitals among the tests": (
        lambda r: (classes(r / "train", "cat", "dog"), classes(r / "test", "Cat", "dog")),
        "The class Cat is in .*test, but not in",
    ),
    "a class that only tests have": (
        lambda r: (classes(r / "train", "a", "b"), classes(r / "test", "a", "b", "c")),
        "The class c is in .*test, but not in",
    ),
    "a class without tests": (
        lambda r: (classes(r / "train", "a", "b"), classes(r / "test", "a")),
        "no images of the class b in",
    ),
    "a class of one image": (lambda r: (classes(r), write(r / "c", 1)), "c holds 1 images"),
    "a class of no image": (lambda r: (classes(r), (r / "c").mkdir()), "c holds 0 images"),
    "a class of hidden images": (
        lambda r: (classes(r), write(r / "c" / ".old", 3)),
        "c holds 0 images",
    ),
    "no folders": (lambda r: write(r), "holds no folders"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_folders_that_say_no_split_or_classes_are_refused(tmp_path, what):
    make, message = REFUSED[what]
    make(tmp_path / "r")
    with pytest.raises(UserError, match=message) as caught:
        quiet(tmp_path / "r")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["n" * 300, "a\0b", "missing"])
def test_a_folder_that_cannot_be_is_not_there(tmp_path, path):
    with pytest.raises(UserError, match="There is no folder"):
        data.class_names(tmp_path / path)


def test_other_files_are_counted_and_said(tmp_path):
    root = classes(tmp_path / "r")
    for name in ("labels.csv", "notes.TXT", "scan.dcm", "README"):
        (root / "b" / name).write_text("x")
    Image.fromarray(noise()).save(root / "loose.png")
    found, said = heard(root)
    assert len(found.train_y) + len(found.test_y) == 8
    files, loose = said
    assert "4 files below" in files and ".csv, .dcm, .txt, no ending" in files
    assert "1 images lie beside the folders of classes" in loose and "loose.png" in loose


def test_tests_that_are_training_images_are_said_each_time(tmp_path):
    root = tmp_path / "r"
    classes(root / "train", num=5)
    classes(root / "test", num=3)
    shutil.copy(root / "train" / "a" / "1.png", root / "test" / "a" / "copy.png")
    Image.open(root / "train" / "b" / "2.png").save(root / "test" / "b" / "again.bmp")
    for _ in range(2):  # decoded, then read back
        _, (sentence,) = heard(root)
        assert sentence.startswith("2 of the 8 tests have the very pixels of a training image")
        assert "copy.png" in sentence and "train/a/1.png" in sentence
    (root / "test" / "a" / "copy.png").unlink()
    (root / "test" / "b" / "again.bmp").unlink()
    quiet(root)


def test_links_to_folders_are_followed_once(tmp_path):
    root = classes(tmp_path / "r")
    write(tmp_path / "elsewhere", 3)
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root / "a")
    found = quiet(root)
    assert np.bincount(np.concatenate([found.train_y, found.test_y])).tolist() == [7, 4]


def small(folder, name, shade, num=3):
    (folder / name).mkdir(parents=True)
    for i in range(num):
        Image.new("RGB", (4, 4), (shade, i, 0)).save(folder / name / f"{i}.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
@pytest.mark.parametrize("name", ["pipe.png", "PIPE.JPG"])
def test_a_pipe_is_no_image(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(Unusable, match="no regular file"):
        open_rgb(tmp_path / name)


@pytest.mark.parametrize("name", [b"\xff", b"a\xfe"])
def test_a_class_whose_name_is_no_text_is_refused(tmp_path, name):
    small(tmp_path, "a", 10)
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    except OSError:
        pytest.skip("this file system has names of text alone")
    with pytest.raises(UserError, match="a name that is no text"):
        data.class_folders(tmp_path, size=4)


def test_images_that_others_took_the_place_of_are_read_again(tmp_path):
    """Of equal sizes, and with the earlier times set back."""
    files = [tmp_path / own / f"{i}.ppm" for own in ("a", "b") for i in range(3)]
    for shade in (20, 210):
        for file in files:
            file.parent.mkdir(exist_ok=True)
            times = file.stat() if file.exists() else None
            file.write_bytes(b"P6 2 2 255\n" + bytes([shade, files.index(file), 0] * 4))
            if times is not None:
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert data.class_folders(tmp_path, size=2).train_x[..., 0].min() == shade


def test_other_labels_of_the_same_images_are_read_again(tmp_path):
    """As the annotations of Tiny ImageNet's validation images give them."""
    for own in ("a", "b"):
        small(tmp_path / "train", own, 60)
    images = tmp_path / "val" / "images"
    images.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(images / f"{i}.png")
    for names in (("a", "b"), ("b", "a")):
        lines = [f"{i}.png\t{name}\t0\t0\t1\t1" for i, name in enumerate(names)]
        (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
        found = data.class_folders(tmp_path, size=4)
        assert [("a", "b")[y] for y in found.test_y] == list(names)
