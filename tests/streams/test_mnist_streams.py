from __future__ import annotations

import jax.numpy as jnp
import mnist_support as support
import numpy as np
import pytest

from cljax import resolve, streams
from cljax.errors import UserError
from cljax.options import options_of
from cljax.streams import fixed, orders, plan

NAMES = ("mnist-rotations", "mnist-permutations", "mnist-many-permutations")


def small(name: str, **options):
    options = {"num_tasks": 4, "samples_per_task": 50, **options}
    data = options.pop("data", support.digits())
    return streams.make(name, **options).build(data)


def seen(stream, x: np.ndarray, task: int) -> np.ndarray:
    tasks = jnp.full(len(x), task, jnp.int32)
    return np.asarray(
        stream.transform.apply(jnp.asarray(stream.transform.tables), jnp.asarray(x), tasks)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_image_of_a_task_goes_through_its_table(name):
    stream = small(name)
    padded = np.pad(stream.test_x, ((0, 0), (0, 1)))
    for task in range(stream.num_tasks):
        table = stream.transform.tables[task]
        wanted = padded[:, table].astype(np.float32) / np.float32(255)
        # One table for training and tests: rows of either array are seen the same way.
        assert np.array_equal(seen(stream, stream.test_x, task), wanted)
        train = np.pad(stream.train_x[:7], ((0, 0), (0, 1)))[:, table].astype(np.float32)
        assert np.array_equal(seen(stream, stream.train_x[:7], task), train / np.float32(255))


def test_the_permutations_are_orders_of_pixels_and_shared_by_all_seeds():
    stream = small("mnist-permutations")
    tables = stream.transform.tables
    assert np.array_equal(np.sort(tables, axis=1), np.tile(np.arange(784), (4, 1)))
    assert len({row.tobytes() for row in tables}) == 4
    assert not any((row == np.arange(784)).all() for row in tables)  # the first task too
    many = small("mnist-many-permutations", num_tasks=6)
    assert np.array_equal(many.transform.tables[:4], tables)


def test_the_angles_are_one_draw_from_each_ninth_degree():
    angles = fixed.angles()
    assert ((angles >= 9 * np.arange(20)) & (angles < 9 * np.arange(1, 21))).all()
    drawn = 9 * (np.arange(20) + orders.uniform(20, "mnist-rotations", "angles"))
    assert np.array_equal(angles, drawn)
    assert np.array_equal(small("mnist-rotations").manifest["rotations_angles"], angles[:4])


def test_a_generator_that_changed_is_noticed(monkeypatch):
    shifted = lambda n, *counters: orders.permutation(n, "other", *counters)  # noqa: E731
    monkeypatch.setattr(fixed, "permutation", shifted)
    with pytest.raises(RuntimeError, match="differ from the recorded"):
        fixed.permutations()


@pytest.mark.parametrize("name", NAMES)
def test_subsets_are_fresh_draws_without_replacement(name):
    stream = small(name)
    subsets = stream.subsets(3)
    assert [len(rows) for rows in subsets] == [50] * 4
    for rows in subsets:
        assert len(np.unique(rows)) == 50 and rows.min() >= 0 and rows.max() < 600
    again = small(name).subsets(3)
    assert all(np.array_equal(a, b) for a, b in zip(subsets, again, strict=True))
    others = [*subsets, *stream.subsets(4)]
    assert len({rows.tobytes() for rows in others}) == 8
    fewer = small(name, num_tasks=2).subsets(3)
    assert np.array_equal(fewer[1], subsets[1])


@pytest.mark.parametrize(("samples", "shared"), [(50, True), (580, False)])
def test_validation_images_are_apart_from_those_learned(samples, shared):
    stream = small("mnist-rotations", samples_per_task=samples)
    for seed in (0, 1):
        subsets, valid = stream.subsets(seed), stream.valid(seed)
        for task in range(4):
            assert len(valid[task]) and not np.intersect1d(subsets[task], valid[task]).size
            if shared:
                assert not np.intersect1d(np.concatenate(subsets), valid[task]).size
    assert not np.array_equal(stream.valid(0)[0], stream.valid(1)[0])


def test_all_images_may_be_learned_and_then_none_validate():
    stream = small("mnist-permutations", samples_per_task=600)
    assert [len(rows) for rows in stream.valid(0)] == [0] * 4


def test_all_test_images_test_every_task():
    stream = small("mnist-rotations")
    assert all(np.array_equal(rows, np.arange(60)) for rows in stream.test_index)
    assert stream.class_mask.shape == (4, 10) and stream.class_mask.all()
    assert stream.example.shape == (784,) and stream.spec(5).num_tasks == 4


def test_a_manifest_gives_every_seed_the_recorded_images_in_its_own_order(tmp_path):
    rng = np.random.default_rng(0)
    indices = np.stack([rng.permutation(600)[:50] for _ in range(4)]).astype(np.int32)
    angles = rng.uniform(0, 180, 4)
    np.savez(tmp_path / "m.npz", rotations_angles=angles, rotations_train_indices=indices)
    stream = small("mnist-rotations", stream_manifest=str(tmp_path / "m.npz"))
    assert np.array_equal(stream.manifest["rotations_angles"], angles)
    assert np.array_equal(stream.manifest["rotations_train_indices"], indices)
    for task in range(4):
        a, b = stream.subsets(0)[task], stream.subsets(1)[task]
        assert not np.array_equal(a, b)
        assert np.array_equal(np.sort(a), np.sort(indices[task]))
        assert np.array_equal(np.sort(b), np.sort(indices[task]))
        assert not np.intersect1d(stream.valid(0)[task], indices).size
    # What a run records is a manifest again.
    np.savez(tmp_path / "again.npz", **stream.manifest)
    again = small("mnist-rotations", stream_manifest=str(tmp_path / "again.npz"))
    assert again.checksum == stream.checksum
    assert np.array_equal(again.subsets(5)[2], stream.subsets(5)[2])


def test_recorded_permutations_become_the_tables(tmp_path):
    rng = np.random.default_rng(0)
    recorded = np.stack([rng.permutation(784) for _ in range(4)]).astype(np.int16)
    np.savez(tmp_path / "m.npz", permutations=recorded)
    stream = small("mnist-permutations", stream_manifest=str(tmp_path / "m.npz"))
    image = stream.test_x[:1]
    for task in range(4):
        wanted = image[:, recorded[task]].astype(np.float32) / np.float32(255)
        assert np.array_equal(seen(stream, image, task), wanted)


def test_the_reference_streams_are_reproduced():
    path = support.reference_manifest()
    folder = support.real_data_dir()
    with np.load(path) as recorded:
        for kind, key in (("rotations", "rotations_angles"), ("permutations", "permutations")):
            stream = streams.make(
                f"mnist-{kind}", data_dir=folder, stream_manifest=str(path)
            ).build()
            assert stream.published and stream.name == f"mnist-{kind}"
            assert np.array_equal(stream.manifest[key], recorded[key])
            indices = recorded[f"{kind}_train_indices"]
            for task, rows in enumerate(stream.subsets(2)):
                assert np.array_equal(np.sort(rows), np.sort(indices[task]))
            steps = plan(stream, 2, 10)
            assert steps.index.shape == (2000, 10) and steps.mask.all()


def test_the_checksum_follows_images_angles_and_sizes():
    sums = [
        small("mnist-rotations").checksum,
        small("mnist-permutations").checksum,
        small("mnist-rotations", data=support.digits(seed=1)).checksum,
        small("mnist-rotations", samples_per_task=51).checksum,
        small("mnist-rotations", num_tasks=3).checksum,
    ]
    assert len(set(sums)) == 5
    assert small("mnist-rotations").checksum == sums[0]


def test_the_sample_is_named_everywhere_and_not_compared():
    stream = streams.MNISTRotations(sample=True).build()
    assert stream.name == "mnist-rotations[sample]" and not stream.published
    assert len(stream.subsets(0)) == 20 and len(stream.subsets(0)[19]) == 1000
    assert len(stream.valid(0)[0]) == 1000
    assert stream.num_classes == 10 and len(stream.test_index[0]) == 2000


def test_streams_are_found_without_a_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert streams.MNISTPermutations(num_tasks=2).build().name == "mnist-permutations[sample]"


def test_every_option_is_a_flag_with_its_help():
    assert set(streams.STREAMS) >= {*NAMES, "split-mnist"}
    for name, source in streams.STREAMS.items():
        listed = options_of(source)
        assert [o.name for o in resolve.options_of(source)] == [o.name for o in listed], name
        assert source.summary.endswith(".") and all(o.help for o in listed), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 0}, "num_tasks is 0"),
        ({"num_tasks": 21}, "num_tasks is 21, but this stream has 20"),
        ({"samples_per_task": -1}, "samples_per_task is -1"),
        ({"samples_per_task": 601}, "samples_per_task is 601, but made up has only 600"),
        ({"stream_manifest": "nowhere.npz"}, "no stream manifest nowhere.npz"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        small("mnist-rotations", **options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"permutations": np.zeros((4, 784))}, "has no array 'rotations_angles'"),
        ({"rotations_angles": np.zeros(3)}, r"has shape \[3\], but 4 tasks need \[4\]"),
        ({"rotations_angles": np.full(4, np.nan)}, "must hold finite angles"),
        (
            {"rotations_angles": np.zeros(4), "rotations_train_indices": np.zeros((4, 9), int)},
            r"4 tasks of 50 images need at least \[4, 50\]",
        ),
        (
            {
                "rotations_angles": np.zeros(4),
                "rotations_train_indices": np.tile(np.arange(551, 601), (4, 1)),
            },
            "indices up to 600, but there are 600 training images",
        ),
        (
            {"rotations_angles": np.zeros(4), "rotations_train_indices": np.zeros((4, 50), int)},
            "a training image twice",
        ),
    ],
)
def test_wrong_manifests_get_a_sentence(tmp_path, arrays, message):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(UserError, match=message):
        small("mnist-rotations", stream_manifest=str(tmp_path / "m.npz"))


def test_damaged_manifests_get_a_sentence(tmp_path):
    (tmp_path / "m.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a readable .npz file"):
        small("mnist-permutations", stream_manifest=str(tmp_path / "m.npz"))
    np.savez(tmp_path / "p.npz", permutations=np.zeros((4, 784), int))
    with pytest.raises(UserError, match="an order of 0 to 783"):
        small("mnist-permutations", stream_manifest=str(tmp_path / "p.npz"))


def test_wrong_images_get_a_sentence():
    data = support.digits()
    with pytest.raises(UserError, match="float32 values, but images are uint8"):
        small("mnist-rotations", data=data._replace(train_x=data.train_x / np.float32(255)))
    with pytest.raises(UserError, match="label 10, but its 10 classes are 0 to 9"):
        small("mnist-rotations", data=data._replace(test_y=data.test_y + 1))
    with pytest.raises(UserError, match="28 x 28 pixels"):
        small("mnist-rotations", data=data._replace(train_x=data.train_x[:, :27]))
