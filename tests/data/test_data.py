from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from cljax import data
from cljax.data import cache, load, prepared
from cljax.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "tfds"


def made_up(num_train: int = 30, num_test: int = 20):
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (num_train, 28, 28, 1), dtype=np.uint8),
        (np.arange(num_train) % 10).astype(np.int32),
        rng.integers(0, 256, (num_test, 28, 28, 1), dtype=np.uint8),
        (np.arange(num_test) % 10).astype(np.int32),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A prepared MNIST of 50 images: what a decoder would give is counted and made up."""
    version = tmp_path / "tfds" / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    (version / "mnist-train.array_record-00000-of-00001").write_bytes(b"train")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    decoded.clear()

    def decode(path, source):
        decoded.append(path)
        return made_up()

    monkeypatch.setattr(prepared, "decode", decode)
    return tmp_path / "tfds"


decoded: list[Path] = []


def cached_file(folder: Path) -> Path:
    (path,) = folder.rglob("cljax-mnist-*.npy")
    return path


def read(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return data.images("mnist", folder)


def test_images_are_decoded_once_and_kept_beside_the_data(folder):
    first, second = read(folder), read(folder)
    assert len(decoded) == 1
    assert cached_file(folder).parent == folder / "mnist" / "3.0.1"
    for a, b, wanted in zip(first[:4], second[:4], made_up(), strict=True):
        assert np.array_equal(a, wanted) and np.array_equal(b, wanted) and b.dtype == wanted.dtype
    assert first.checksum == second.checksum == data.digest(*made_up())
    assert first.source == "tfds:mnist/3.0.1" and not first.sample and "CC BY-SA" in first.licence
    assert not first.train_x.flags.writeable
    left = {p.name.split(".")[-1] for p in (folder / "mnist" / "3.0.1").glob("*cljax*")}
    assert left == {"npy", "sha256"}  # nothing temporary stays


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty", "no checksum", "checksum"])
def test_a_damaged_cache_is_said_and_made_again(folder, damage):
    wanted = read(folder)
    path = cached_file(folder)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flip":
        content[1000] ^= 1
        path.write_bytes(content)
    elif damage == "header":
        content[20] ^= 255
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no checksum":
        path.with_suffix(".sha256").unlink()
    else:
        path.with_suffix(".sha256").write_text("0" * 64)
    with pytest.warns(UserWarning, match="are damaged .* made again"):
        again = data.images("mnist", folder)
    assert len(decoded) == 2 and np.array_equal(again.train_x, wanted.train_x)
    read(folder)  # sound from now on
    assert len(decoded) == 2


def test_a_cache_of_other_data_is_not_used(folder):
    read(folder)
    (folder / "mnist" / "3.0.1" / "mnist-train.array_record-00000-of-00001").write_bytes(b"longer")
    read(folder)
    assert len(decoded) == 2


def test_a_read_only_folder_falls_back_to_the_users_cache(folder, tmp_path):
    version = folder / "mnist" / "3.0.1"
    version.chmod(0o555)
    try:
        read(folder), read(folder)
    finally:
        version.chmod(0o755)
    assert len(decoded) == 1
    assert not list(version.glob("*cljax*"))
    assert cached_file(tmp_path / "cache").parent == tmp_path / "cache" / "cljax"


def test_without_any_writable_folder_images_are_still_given(folder, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    version = folder / "mnist" / "3.0.1"
    version.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match="could not be kept"):
            assert len(data.images("mnist", folder).train_y) == 30
    finally:
        version.chmod(0o755)


def test_an_interrupted_write_leaves_nothing_to_be_read(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            data.images("mnist", folder)
    assert not list(folder.rglob("*cljax*"))
    read(folder)


def test_the_new_file_replaces_the_old_one_whole(folder, monkeypatch):
    """Until the rename the old file is there; what is renamed is complete and on disk."""
    wanted = read(folder)
    path = cached_file(folder)
    path.write_bytes(b"damaged")
    renamed, replace, synced = [], os.replace, []
    fsync = os.fsync
    monkeypatch.setattr(cache.os, "fsync", lambda fd: synced.append(fd) or fsync(fd))

    def watch(source, target):
        # The content before a name is taken, and the folder after it.
        assert len(synced) == 2 * len(renamed) + 1 and Path(source).parent == Path(target).parent
        if Path(target) == path:
            assert path.read_bytes() == b"damaged"
        renamed.append(Path(target).suffix)
        replace(source, target)

    monkeypatch.setattr(cache.os, "replace", watch)
    with pytest.warns(UserWarning):
        data.images("mnist", folder)
    assert renamed == [".sha256", ".npy"]  # an array file is never without its checksum
    assert np.array_equal(read(folder).test_x, wanted.test_x)


def test_where_a_data_set_is_looked_for(folder, monkeypatch, tmp_path):
    assert prepared.data_folder() == tmp_path / "home" / "tensorflow_datasets"
    assert data.images_or_sample("mnist").sample
    monkeypatch.setenv("CLJAX_DATA_DIR", str(folder))
    assert prepared.data_folder() == folder
    assert not data.images_or_sample("mnist").sample
    assert data.images_or_sample("mnist", use_sample=True).sample
    assert prepared.data_folder("~/there") == tmp_path / "home" / "there"
    monkeypatch.setenv("CLJAX_DATA_DIR", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="No data set mnist in"):
        data.images_or_sample("mnist")


def test_the_newest_version_is_read(folder):
    for version in ("3.0.9", "3.0.10"):
        (folder / "mnist" / version).mkdir()
        (folder / "mnist" / version / "dataset_info.json").write_text("{}")
    assert prepared.find("mnist", folder).name == "3.0.10"


def test_a_missing_data_set_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        data.images("mnist", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "mnist"), "cljax data mnist --prepare", "TensorFlow", "--sample"):
        assert part in message
    with pytest.raises(UserError) as caught:
        data.images("cifar100", tmp_path)
    assert "--sample" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean mnist"):
        data.images("mnits", tmp_path)


def test_sample_and_folder_together_are_refused(folder):
    with pytest.raises(UserError, match="leave out one"):
        data.images_or_sample("mnist", folder, use_sample=True)


def test_prepared_files_that_are_damaged_get_a_sentence(tmp_path):
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("not json")
    with pytest.raises(UserError, match="could not be read"):
        data.images("mnist", tmp_path)


def test_labels_and_images_of_the_wrong_kind_get_a_sentence():
    whole = data.sample()
    for change, message in (
        ({"train_y": whole.train_y - 1}, "label -1, but its 10 classes are 0 to 9"),
        ({"test_y": whole.test_y + 5}, "label 14"),
        ({"test_x": whole.test_x.astype(np.float32)}, "test_x of .* float32 values"),
        ({"train_y": whole.train_y[1:]}, r"shape \[9999\] for 10000 images"),
        ({"train_y": whole.train_y.astype(float)}, "labels are integers"),
    ):
        with pytest.raises(UserError, match=message):
            data.check_images(whole._replace(**change), 10)


def test_the_sample_is_balanced_small_and_sound():
    sample = data.sample("mnist")
    assert sample.train_x.shape == (10_000, 28, 28, 1) and sample.train_x.dtype == np.uint8
    assert np.bincount(sample.train_y).tolist() == [1000] * 10
    assert np.bincount(sample.test_y).tolist() == [200] * 10
    assert sample.sample and "CC BY-SA 3.0" in sample.licence
    assert sample.checksum == "c8bcabfcd5b7f14ef01204104f65725286cd45b300d9e63ae32910b06fba1f76"
    package = Path(load.__file__).parent
    assert (package / "mnist_sample.npz.xz").stat().st_size < 3_000_000
    note = (package / "MNIST_SAMPLE_LICENSE.txt").read_text()
    assert "Yann LeCun" in note and "Corinna Cortes" in note and "ShareAlike 3.0" in note


def test_a_damaged_sample_gets_a_sentence(tmp_path, monkeypatch):
    packed = bytearray((Path(load.__file__).parent / "mnist_sample.npz.xz").read_bytes())
    packed[50_000] ^= 4
    (tmp_path / "bad.xz").write_bytes(packed)
    monkeypatch.setattr(load, "_sample_file", lambda name: tmp_path / "bad.xz")
    with pytest.raises(UserError, match="is damaged .* install cljax again"):
        data.sample()


def test_there_is_no_sample_of_cifar():
    with pytest.raises(UserError, match="no sample of cifar100"):
        data.sample("cifar100")


def test_reports_and_licences(folder):
    report = data.describe("mnist", folder)
    assert (report.num_train, report.num_test, report.shape) == (30, 20, (28, 28, 1))
    assert report.path == folder / "mnist" / "3.0.1" and report.cache == cached_file(folder)
    assert report.num_bytes == 50 * (784 + 4) and len(report.checksum) == 64
    sample = data.describe("mnist", use_sample=True)
    assert sample.cache is None and sample.num_train == 10_000 and sample.path.is_file()
    assert set(data.licences()) == set(data.SOURCES)


def real_folder() -> Path:
    folder = Path(os.environ.get("CLJAX_DATA_DIR") or SHARED)
    if not any(folder.glob("mnist/*/dataset_info.json")):
        pytest.skip(f"no MNIST in {folder}; set CLJAX_DATA_DIR")
    return folder


def test_the_sample_holds_images_of_the_whole_unchanged():
    whole, sample = data.images("mnist", real_folder()), data.sample()
    train, test = data.sample_rows()
    assert len(np.unique(train)) == 10_000 and len(np.unique(test)) == 2000
    assert np.array_equal(whole.train_x[train], sample.train_x)
    assert np.array_equal(whole.train_y[train], sample.train_y)
    assert np.array_equal(whole.test_x[test], sample.test_x)
    assert np.array_equal(whole.test_y[test], sample.test_y)


def test_images_come_in_the_order_of_the_data_source():
    tfds = pytest.importorskip("tensorflow_datasets")
    whole = data.images("mnist", real_folder())
    assert whole.train_x.shape == (60_000, 28, 28, 1) and whole.test_x.shape[0] == 10_000
    for split, x, y in (
        ("train", whole.train_x, whole.train_y),
        ("test", whole.test_x, whole.test_y),
    ):
        source = tfds.data_source("mnist", split=split, data_dir=real_folder())
        for row in (0, 1, 4999, 5000, 9999):
            assert np.array_equal(source[row]["image"], x[row]) and source[row]["label"] == y[row]


def test_neither_import_nor_sample_needs_the_readers():
    code = (
        "import sys, cljax.data, cljax.streams; cljax.streams.SplitMNIST(sample=True).build();"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'PIL', 'matplotlib', 'orbax', 'tyro'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def archive_at(path: Path, **change) -> None:
    train_x, train_y, test_x, test_y = made_up()
    arrays = {
        "x_train": train_x[..., 0],
        "y_train": train_y.astype(np.uint8),
        "x_test": test_x[..., 0],
        "y_test": test_y.astype(np.uint8),
    } | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("above", [False, True])
def test_a_part_of_fashion_mnist_in_an_archive(tmp_path, above):
    folder = tmp_path / "tfds"
    folder.mkdir()
    path = (tmp_path if above else folder) / "fashion_mnist_15k.npz"
    archive_at(path)
    found = data.images("fashion_mnist", folder)
    for a, wanted in zip(found[:4], made_up(), strict=True):
        assert np.array_equal(a, wanted) and a.dtype == wanted.dtype and not a.flags.writeable
    assert found.source == "archive:fashion_mnist_15k.npz" and found.checksum == data.digest(
        *made_up()
    )
    assert data.marked("s", found) == "s[15k]" and not found.sample and "MIT" in found.licence
    report = data.describe("fashion_mnist", folder)
    assert report.path == path and report.cache is None and report.num_train == 30
    with pytest.raises(UserError, match="No data set cifar10 in"):
        data.images("cifar10", folder)


def test_a_prepared_fashion_mnist_comes_before_the_archive(folder):
    version = folder / "fashion_mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    archive_at(folder / "fashion_mnist_15k.npz")
    found = data.images("fashion_mnist", folder)
    assert found.source == "tfds:fashion_mnist/3.0.1" and data.marked("s", found) == "s"
    assert decoded == [version]


def test_marks_of_names(folder):
    assert data.marked("s", data.sample()) == "s[sample]"
    assert data.marked("s", read(folder)) == "s"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "has no array y_test; copy it again"),
        ({"y_train": np.full(30, 10)}, "archive:fashion_mnist_15k.npz holds the label 10"),
        ({"x_train": np.zeros((30, 28, 28))}, "holds float64 values"),
        ({"x_train": np.array([None])}, "could not be read"),
    ],
)
def test_an_unsound_archive_gets_a_sentence(tmp_path, change, message):
    archive_at(tmp_path / "fashion_mnist_15k.npz", **change)
    with pytest.raises(UserError, match=message):
        data.images("fashion_mnist", tmp_path)


def test_a_damaged_or_missing_archive_gets_a_sentence(tmp_path):
    folder = tmp_path / "deep" / "tfds"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="put the file fashion_mnist_15k.npz there or in the") as e:
        data.images("fashion_mnist", folder)
    assert str(e.value).count(". ") == 0 and str(folder) in str(e.value)
    (folder / "fashion_mnist_15k.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match="fashion_mnist_15k.npz could not be read .* copy it again"):
        data.images("fashion_mnist", folder)


def test_the_real_archive():
    path = real_folder().parent / "fashion_mnist_15k.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = data.images("fashion_mnist", real_folder())
    assert found.train_x.shape == (15_000, 28, 28, 1) and found.test_x.shape[0] == 3000
    assert np.bincount(found.train_y).tolist() == [1500] * 10
    assert found.checksum == "4261f4b12b5bce1c43582bd869f48b90e38e5baab3e2ac8188ab6751531c04fd"


def recorded(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "mnist-train.array_record-00000-of-00001").write_bytes(content)
    return folder


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("keep_time", [True, False])
def test_records_of_equal_size_and_other_content_are_another_data_set(
    tmp_path, monkeypatch, whole, keep_time
):
    """Such as one that was prepared again with other labels."""
    monkeypatch.setattr(cache, "_READ_WHOLE", 100 if whole else 0)
    folder = recorded(tmp_path, b"a" * 50)
    (file,) = folder.glob("*record*")
    before, times = cache.fingerprint(folder), file.stat()
    assert cache.fingerprint(folder) == before
    recorded(tmp_path, b"b" * 50)
    if keep_time:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.fingerprint(folder) != before


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_other_words_about_the_same_records_are_another_data_set(tmp_path, name):
    """They say which feature is the label, and how the image is kept."""
    folder = recorded(tmp_path, b"a" * 50)
    marks = {cache.fingerprint(folder)}
    for text in ('{"label": 1}', '{"label": 2}'):
        times = (folder / "dataset_info.json").stat()
        (folder / name).write_text(text)
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        marks.add(cache.fingerprint(folder))
    assert len(marks) == 3


def test_copied_records_are_the_same_data_set(tmp_path):
    one, other = recorded(tmp_path / "a", b"a" * 50), recorded(tmp_path / "b", b"a" * 50)
    assert cache.fingerprint(one) == cache.fingerprint(other)
