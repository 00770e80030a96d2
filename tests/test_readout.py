"""The readout against a plain loop of Adam, and what must change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.errors import UserError
from cljax.evaluation.linear import readout
from cljax.types import Features

C, D, N, M = 3, 4, 31, 21  # not as many of each class: else the bias has no gradient to follow


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def problem(seed: int = 0, spread: float = 1.0):
    """Classes around three centres: features, labels, and as many again for tests."""
    rng = np.random.default_rng(seed)
    centres = 3 * np.eye(C, D)

    def some(count):
        y = np.arange(count) % C
        return centres[y] + spread * rng.normal(size=(count, D)), y

    return *some(N), *some(M)


def fit(features, labels, features_test, labels_test, mask=None, mask_test=None, **options):
    train = Features(features, labels, mask)
    return readout(train, Features(features_test, labels_test, mask_test), **options)


def plain(x, y, x_test, y_test, steps, lr, rows=None):
    """Adam by hand, in NumPy."""
    weights = np.zeros((D + 1, C))
    m, v = np.zeros_like(weights), np.zeros_like(weights)

    def forward(x, y):
        ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        z = ones @ weights
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return ones, p, -np.log(p[np.arange(len(y)), y]).mean()

    for k in range(steps):
        own = np.arange(len(y)) if rows is None else np.asarray(rows[k])
        ones, p, _ = forward(x[own], y[own])
        gradient = ones.T @ (p - np.eye(C)[y[own]]) / len(own)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9 ** (k + 1)), v / (1 - 0.999 ** (k + 1))
        weights = weights - lr * m_hat / (np.sqrt(v_hat) + 1e-8)
    accuracy = (forward(x_test, y_test)[1].argmax(axis=1) == y_test).mean()
    return accuracy, forward(x, y)[2], weights


def assert_equal(found, expected, atol=1e-12):
    accuracy, loss, weights = expected
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.loss, loss, rtol=0, atol=atol)
    np.testing.assert_allclose(found.params["kernel"], weights[:-1], rtol=0, atol=atol)
    np.testing.assert_allclose(found.params["bias"], weights[-1], rtol=0, atol=atol)


def test_separable_classes_are_told_apart():
    found = fit(*problem(spread=0.1), num_classes=C)
    assert float(found.accuracy) == 1.0 and 0 < float(found.loss) < 1e-3


def test_features_without_the_classes_are_read_at_chance():
    x, y, x_test, y_test = problem()
    found = fit(np.ones_like(x), y, np.ones_like(x_test), y_test, num_classes=C)
    share = np.bincount(y) / N
    assert float(found.accuracy) == pytest.approx(1 / C)  # all are the class of most examples
    assert float(found.loss) == pytest.approx(-share @ np.log(share), abs=1e-6)


@pytest.mark.parametrize("lr", [0.1, 0.01])
def test_it_is_plain_adam_on_all_examples(lr):
    given = problem(spread=2.0)
    expected = plain(*given, steps=60, lr=lr)
    assert 0.5 < expected[0] < 1
    assert_equal(fit(*given, num_classes=C, steps=60, lr=lr), expected)


def test_batches_are_drawn_by_the_key_among_the_examples_that_count():
    given, key = problem(spread=2.0), jax.random.key(3)
    rows = jax.random.randint(key, (40, 8), 0, N)
    options = {"num_classes": C, "steps": 40, "batch_size": 8}
    found = fit(*given, **options, key=key)
    assert_equal(found, plain(*given, steps=40, lr=0.1, rows=rows))
    other = fit(*given, **options, key=jax.random.key(4))
    assert float(jnp.abs(other.params["kernel"] - found.params["kernel"]).max()) > 1e-3
    assert_equal(fit(*poisoned(given), **masks(), **options, key=key), as_expected(found))


def poisoned(given):
    """The same examples among rows that are no numbers, with labels that are no classes."""
    x, y, x_test, y_test = given

    def among(values, junk):
        whole = np.full((2 * len(values), *values.shape[1:]), junk, values.dtype)
        whole[1::2] = values
        return whole

    return among(x, np.nan), among(y, -1), among(x_test, np.inf), among(y_test, 99)


def masks():
    return {"mask": np.arange(2 * N) % 2 == 1, "mask_test": np.arange(2 * M) % 2 == 1}


def as_expected(found):
    weights = np.concatenate([found.params["kernel"], found.params["bias"][None]])
    return found.accuracy, found.loss, weights


def test_masked_rows_change_nothing():
    given = problem(spread=2.0)
    clean = fit(*given, num_classes=C, steps=50)
    assert_equal(fit(*poisoned(given), num_classes=C, steps=50, **masks()), as_expected(clean))


def test_outputs_that_take_no_part_change_nothing():
    given = problem(spread=2.0)
    clean = fit(*given, num_classes=C, steps=50)
    outputs = np.array([True, True, True, False, False])
    wide = fit(*given, num_classes=5, outputs=outputs, steps=50)
    narrow = wide._replace(params=jax.tree.map(lambda a: a[..., :C], wide.params))
    assert_equal(narrow, as_expected(clean))
    assert not np.any(wide.params["kernel"][:, C:]) and not np.any(wide.params["bias"][C:])


def test_it_goes_under_jit_and_vmap_over_checkpoints_seeds_and_rates():
    given = [problem(seed, spread=2.0) for seed in range(3)]
    x, y, x_test, y_test = (np.stack(part) for part in zip(*given, strict=True))
    rates, keys = jnp.array([0.1, 0.05, 0.2]), jax.random.split(jax.random.key(0), 3)

    for batch_size in (None, 6):

        def one(x, y, x_test, y_test, lr, key, batch_size=batch_size):
            return fit(
                x, y, x_test, y_test, num_classes=C, steps=30, lr=lr, batch_size=batch_size, key=key
            )

        found = jax.jit(jax.vmap(one))(x, y, x_test, y_test, rates, keys)
        single = jax.jit(one)
        for i in range(3):
            own = single(*given[i], rates[i], keys[i])
            assert_equal(jax.tree.map(lambda a, i=i: a[i], found), as_expected(own))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_it_is_as_exact_as_its_features(dtype):
    x, y, x_test, y_test = problem()
    found = fit(jnp.asarray(x, dtype), y, jnp.asarray(x_test, dtype), y_test, num_classes=C)
    expected = jnp.float32 if dtype == jnp.bfloat16 else dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(expected)}


def test_it_is_a_public_name():
    assert cljax.evaluation.readout is readout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1, but a readout tells at least 2 apart"),
        ({"num_classes": 0}, "num_classes is 0, but it must be"),
        ({"steps": 0}, "steps is 0, but it must be"),
        ({"lr": float("nan")}, "lr is nan, but it must be a finite number"),
        ({"batch_size": 0}, "batch_size is 0, but it must be"),
        ({"batch_size": 8}, "batch_size is 8, but drawing batches needs a key"),
        ({"labels": np.zeros(N - 1, int)}, r"train.labels has shape \[30\], but there are 31 rows"),
        ({"labels_test": np.zeros(2, int)}, r"test.labels has shape \[2\], but there are 21"),
        ({"mask": np.ones(2, bool)}, r"train.mask has shape \[2\], but there are 31"),
        ({"mask_test": np.ones(2, bool)}, r"test.mask has shape \[2\], but there are 21"),
        ({"labels": np.full(N, C)}, "train.labels run from 3 to 3, but they must be 0 to 2"),
        ({"labels_test": np.full(M, -1)}, "test.labels run from -1 to -1, but they must be 0 to 2"),
        ({"features_test": np.zeros((M, D + 1))}, r"shapes \[31, 4\] and \[21, 5\]"),
        ({"features": np.zeros(N)}, r"must be \[N, D\] and \[M, D\]"),
        ({"features": np.zeros((0, D)), "labels": np.zeros(0, int)}, "training_examples is 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes, message):
    names = ("features", "labels", "features_test", "labels_test")
    given = {**dict(zip(names, problem(), strict=True)), "num_classes": C, **changes}
    with pytest.raises(UserError, match=message) as error:
        fit(**given)
    assert str(error.value).count(". ") == 0
