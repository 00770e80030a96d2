"""Streams of features: those of the network, task by task, kept by what they are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.errors import UserError
from cljax.streams import encoded, from_arrays, toy
from cljax.streams.base import first_tasks, on_validation, plan, rows_used
from cljax.streams.continued import later_tasks
from cljax.types import Model, Output, Variables


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


MODEL = cljax.nets.mlp(6)(4)
EXAMPLE = jnp.zeros((1, 4, 4, 1))
WEIGHTS = MODEL.init(jax.random.key(0), EXAMPLE)
OTHER = MODEL.init(jax.random.key(1), EXAMPLE)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.npy"))


def by_hand(stream, model, weights, x, task):
    """Features of stored examples, seen as a task."""
    seen = stream.spec(1).show(jnp.asarray(x), jnp.full(len(x), task, jnp.int32))
    return np.asarray(model.apply(weights, seen, False)[0].features)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [256, 50])
def test_features_are_those_of_the_network_and_tasks_those_of_the_stream(batch_size):
    stream = toy("class")
    made = encoded(stream, MODEL, WEIGHTS, batch_size=batch_size)
    close(made.train_x, by_hand(stream, MODEL, WEIGHTS, stream.train_x, 0))
    close(made.test_x, by_hand(stream, MODEL, WEIGHTS, stream.test_x, 0))
    assert made.train_x.dtype == np.float32 and made.example.shape == (6,)
    for seed in (0, 3):
        jax.tree.map(np.testing.assert_array_equal, plan(made, seed, 7), plan(stream, seed, 7))
        jax.tree.map(np.testing.assert_array_equal, made.valid(seed), stream.valid(seed))
    np.testing.assert_array_equal(made.class_mask, stream.class_mask)
    np.testing.assert_array_equal(made.train_y, stream.train_y)
    jax.tree.map(np.testing.assert_array_equal, made.test_index, stream.test_index)


def test_each_task_has_the_features_of_its_own_view():
    stream = cljax.streams.MNISTRotations(sample=True, num_tasks=3, samples_per_task=20).build()
    model = cljax.nets.mlp(5)(10)
    weights = model.init(jax.random.key(0), jnp.zeros((1, 784)))
    made = encoded(stream, model, weights)
    held_out, theirs = on_validation(made, 1), on_validation(stream, 1)
    for task in range(3):
        pairs = [
            (made.train_x[made.subsets(2)[task]], stream.train_x[stream.subsets(2)[task]]),
            (made.test_x[made.test_index[task]], stream.test_x[stream.test_index[task]]),
            (held_out.test_x[held_out.test_index[task]], theirs.test_x[theirs.test_index[task]]),
        ]
        for ours, stored in pairs:
            close(ours[:9], by_hand(stream, model, weights, stored[:9], task))
        rows, old = made.subsets(2)[task], stream.subsets(2)[task]
        np.testing.assert_array_equal(made.train_y[rows], stream.train_y[old])
        np.testing.assert_array_equal(
            made.test_y[made.test_index[task]], stream.test_y[stream.test_index[task]]
        )


def test_augmentation_is_left_out():
    def apply(x, draws):
        raise AssertionError("augmented")

    stream = toy("class")
    augment = cljax.streams.Augmentation(lambda key, n: jnp.zeros(n), apply)
    changed = dataclasses.replace(stream, transform=stream.transform._replace(augment=augment))
    np.testing.assert_array_equal(
        encoded(changed, MODEL, WEIGHTS).train_x, encoded(stream, MODEL, WEIGHTS).train_x
    )


def test_any_form_of_a_network_gives_the_same_features():
    stream = toy("class")
    expected = encoded(stream, MODEL, WEIGHTS).train_x
    in_flax_form = {"params": WEIGHTS.params}

    def function(variables, x):
        dense = variables["params"]["Dense_0"]
        return jax.nn.relu(x.reshape(len(x), -1) @ dense["kernel"] + dense["bias"][None])

    assert np.array_equal(encoded(stream, MODEL, in_flax_form).train_x, expected)
    close(encoded(stream, function, in_flax_form).train_x, expected)


def test_modules_of_linen_nnx_and_equinox_are_encoders():
    import flax.linen as nn
    from flax import nnx

    stream = toy("class")
    dense = nn.Dense(3)
    weights = dense.init(jax.random.key(0), jnp.zeros((1, 16)))

    def linen(variables, x):
        return dense.apply(variables, x.reshape(len(x), -1))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(16, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

        def __call__(self, x):
            features = nnx.relu(self.hidden(x.reshape(len(x), -1)))
            return self.out(features), features

    model = cljax.nets.from_nnx(Net)
    of_nnx = model.init(jax.random.key(0), EXAMPLE)
    assert encoded(stream, linen, weights).train_x.shape == (192, 3)
    made = encoded(stream, model, {"params": of_nnx.params, **of_nnx.model_state})
    close(made.train_x, by_hand(stream, model, of_nnx, stream.train_x, 0))

    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(16, 2, 8, 1, key=jax.random.key(0))  # holds functions beside arrays
    of_equinox = encoded(stream, lambda net, x: jax.vmap(net)(x.reshape(len(x), -1)), net)
    seen = stream.train_x.reshape(192, 16) / np.float32(255)
    close(of_equinox.train_x, jax.vmap(net)(jnp.asarray(seen)))


def test_features_are_computed_once_and_a_damaged_file_again(tmp_path):
    stream, folder = toy("class"), tmp_path / "features"
    first = encoded(stream, MODEL, WEIGHTS, cache=folder)
    (name,) = files(folder)
    path = folder / name
    written = path.stat().st_mtime_ns
    again = encoded(stream, MODEL, WEIGHTS, cache=folder)
    assert path.stat().st_mtime_ns == written and again.checksum == first.checksum
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="are damaged"):
        third = encoded(stream, MODEL, WEIGHTS, cache=folder)
    np.testing.assert_array_equal(third.train_x, first.train_x)


def test_other_weights_code_or_data_have_a_file_and_a_checksum_of_their_own(tmp_path):
    stream, weights = toy("class"), {"w": np.ones((16, 2), np.float32)}

    def one(variables, x):
        return x.reshape(len(x), -1) @ variables["w"]

    def two(variables, x):
        return 2 * (x.reshape(len(x), -1) @ variables["w"])

    scale = 3.0

    def scaled(variables, x):
        return scale * (x.reshape(len(x), -1) @ variables["w"])

    made = [
        encoded(stream, one, weights, cache=tmp_path),
        encoded(stream, two, weights, cache=tmp_path),
        encoded(stream, one, {"w": weights["w"] * 2}, cache=tmp_path),
        encoded(stream, scaled, weights, cache=tmp_path),
        encoded(toy("domain"), one, weights, cache=tmp_path),
        encoded(stream, one, weights, id="one", cache=tmp_path),
    ]
    scale = 4.0
    made.append(encoded(stream, scaled, weights, cache=tmp_path))
    assert len(files(tmp_path)) == len(made) == len({m.checksum for m in made})
    np.testing.assert_array_equal(made[1].train_x, made[2].train_x)
    np.testing.assert_allclose(made[6].train_x, 4 * made[0].train_x, rtol=1e-6)


def test_the_parts_of_a_stream_share_their_file(tmp_path):
    """Which classes come when does not change the features of an image."""
    stream = toy("class")
    for part in (stream, first_tasks(stream, 1), later_tasks(stream, 1)):
        encoded(part, MODEL, WEIGHTS, cache=tmp_path)
    assert len(files(tmp_path)) == 1


def test_results_name_the_network(tmp_path):
    made = encoded(toy("class"), MODEL, WEIGHTS)
    run = cljax.run(cljax.NCM(), made, seeds=1, out=tmp_path / "run", progress=False)
    mark = made.manifest["encoder_sha256"].item()
    assert run.results["stream"] == f"toy-class[features-{mark[:8]}]"
    assert f"features of a network with SHA-256 {mark[:12]}" in run.config["stream_facts"]["source"]
    assert not run.config["stream_facts"]["published"]
    assert run.config["stream"]["checksum"] == made.checksum
    assert str(rows_used(made, [0])["encoder_sha256"]) == mark


def test_a_run_of_cljax_is_an_encoder(tmp_path):
    first, second = first_tasks(toy("class"), 1), later_tasks(toy("class"), 1)
    run = cljax.run("er", first, seeds=1, net="mlp:6", out=tmp_path / "run", progress=False)
    made = encoded(second, cljax.nets.mlp(6)(4), run.variables())
    result = cljax.run(cljax.SLDA(), made, seeds=1, progress=False)
    assert float(result.metric("RA")[0]) > 0.9


def test_runs_on_features_of_another_network_are_told_apart(tmp_path):
    stream, options = toy("class"), {"seeds": 1, "net": "mlp:", "progress": False}
    mine, theirs = (encoded(stream, MODEL, weights) for weights in (WEIGHTS, OTHER))
    run = cljax.run(cljax.ER(), mine, out=tmp_path / "run", **options)
    again = cljax.run(cljax.ER(), mine, out=tmp_path / "run", **options)
    assert again.resumed
    with pytest.raises(UserError, match=r"another run: stream\.name, stream\.checksum differ|"
                       r"another run: stream\.checksum, stream\.name differ"):  # fmt: skip
        cljax.run(cljax.ER(), theirs, out=tmp_path / "run", **options)
    with pytest.raises(UserError, match="features of another network"):
        cljax.run(cljax.ER(), theirs, start=run.state, **options)
    with pytest.raises(UserError, match="features are of another network"):
        cljax.evaluate(run.state, theirs)
    same = cljax.evaluate(run.state, mine)
    np.testing.assert_allclose(same.accuracy[0], run.accuracy_matrix()[0, -1])


def reject(said, *args, stream=None, **options):
    with pytest.raises(UserError, match=said) as caught:
        encoded(toy("class") if stream is None else stream, *args, **options)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text


FLAT = {"w": np.ones((16, 2), np.float32)}


@pytest.mark.parametrize("variables", [None, {}, {"params": {}}, Variables({}, {}), "weights.npz"])
def test_a_network_without_weights_is_refused(variables):
    reject("The network has no weights: its variables are", MODEL, variables)
    reject("The network has no weights: its variables are", lambda v, x: x, variables)


def test_shapes_are_no_weights():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), EXAMPLE)
    reject("The network has no weights", MODEL, shapes)
    reject("The network has no weights", lambda v, x: x, shapes)


def test_variables_of_another_network_are_refused():
    other = cljax.nets.mlp(7)(4).init(jax.random.key(0), EXAMPLE)
    reject(r"variables are of another network than this cljax module: params/Dense_0", MODEL, other)
    reject(
        "params/Dense_1/bias is not there, but the module has",
        MODEL,
        {"params": {"Dense_0": WEIGHTS.params["Dense_0"]}},
    )
    said = r"fails with these variables on examples float32\[4, 4, 1\] of toy-class \(KeyError"
    reject(said, lambda v, x: x.reshape(len(x), -1) @ v["b"], FLAT)


def test_a_model_for_other_examples_is_refused():
    model = cljax.nets.cnn(4, dense=(3,))(4)
    weights = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    vectors = from_arrays(
        (np.eye(6, dtype=np.float32), np.arange(6) % 2, np.zeros(6, int)),
        test=(np.eye(6, dtype=np.float32), np.arange(6) % 2, np.zeros(6, int)), dtype="float32",
    )  # fmt: skip
    reject(r"\[height, width, channels\]|fails with", model, weights, stream=vectors)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda v, x: x * v["w"][0, 0], r"features \[4, 4, 1\] of an example, but they must be a"),
        (lambda v, x: x.mean(axis=(1, 2, 3)) * v["w"][0, 0], r"features \[\] of an example"),
        (lambda v, x: x.reshape(-1, 8) * v["w"][0, 0], r"features \[512, 8\] of 256 examples"),
        (lambda v, x: x.mean(axis=0).reshape(-1), r"features \[16\] of 256 examples"),
        (lambda v, x: x.reshape(len(x), -1) > v["w"][0, 0], r"makes bool\[256, 16\] of a batch"),
        (lambda v, x: (x.reshape(len(x), -1), x), "makes .* of a batch, but features are floats"),
        (lambda v, x: x.reshape(len(x), -1) @ v["w"] / 0, "not finite numbers of example 0 of toy"),
    ],
)
def test_what_is_no_vector_of_finite_numbers_is_refused(function, said):
    reject(said, function, FLAT)


def test_the_first_example_that_is_not_finite_is_named():
    stream = toy("class")
    low = stream.train_x.reshape(192, -1).min(axis=1) / np.float32(255)
    row = int(np.flatnonzero(low == low.min())[0])

    def root(v, x):
        return jnp.sqrt(x.reshape(len(x), -1) - v["w"] * (low.min() + 1e-4))

    reject(f"not finite numbers of example {row} of", root, {"w": np.ones((1, 1), np.float32)})


def test_a_function_that_cannot_be_told_apart_needs_an_id():
    rng = np.random.default_rng(0)

    def noisy(v, x):
        return x.reshape(len(x), -1) @ v["w"] + rng.normal()

    reject(r"cannot be told by its content, .* pass id='\.\.\.'", noisy, FLAT)
    assert encoded(toy("class"), noisy, FLAT, id="noisy 1").train_x.shape == (192, 2)


@pytest.mark.parametrize(
    ("args", "options", "said"),
    [
        ((3, FLAT), {}, "The network is 3, but it must be a Model"),
        ((MODEL, WEIGHTS), {"batch_size": 0}, "batch_size"),
        ((MODEL, WEIGHTS), {"id": 3}, "id"),
        ((MODEL, WEIGHTS), {"cache": 3}, "cache"),
        ((MODEL, WEIGHTS), {"stream": "split-mnist"}, "must be a Stream"),
        ((MODEL, WEIGHTS), {"stream": cljax.streams.SplitMNIST(sample=True)}, "open it"),
    ],
)
def test_arguments_of_another_kind_are_refused(args, options, said):
    reject(said, *args, **options)


def test_a_plan_over_views_that_differ_is_refused():
    rotations = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=20)
    free = cljax.streams.task_free(rotations.build())
    model = cljax.nets.mlp(5)(10)
    weights = model.init(jax.random.key(0), jnp.zeros((1, 784)))
    reject("show one image in different ways, and it has a plan", model, weights, stream=free)
    made = cljax.streams.task_free(encoded(rotations.build(), model, weights))
    assert plan(made, 0, 10).index.max() < len(made.train_x)


def test_a_network_in_evaluation_mode_only_is_asked():
    def apply(variables, x, train):
        assert not train
        z = x.reshape(len(x), -1) @ variables.params["w"]
        return Output(z, z), variables.model_state

    init = lambda key, x: Variables({"w": jnp.ones((16, 2))}, {})
    model = Model(init, apply)
    assert encoded(toy("class"), model, {"params": FLAT}).train_x.shape == (192, 2)
