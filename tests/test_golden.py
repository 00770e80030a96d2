"""Step-by-step traces of the authors' code, replayed through the public updates in float64.

The folder is ``CLJAX_GOLDEN_DIR`` (default: ``shared/golden`` beside the checkout); every file in
it is one test. A trace says in its ``config`` what made it, and nothing here knows a number.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import golden_incremental
import golden_itaml
import golden_lamaml
import golden_projection
import golden_replay
import golden_support
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.memory.selection import herd

pytestmark = pytest.mark.golden

_DEFAULT = Path(__file__).parents[2] / "shared" / "golden"
_FOLDER = Path(os.environ.get("CLJAX_GOLDEN_DIR", _DEFAULT))
_FILES = sorted(_FOLDER.glob("*.npz"))
ADAPTERS = {**golden_lamaml.ADAPTERS, **golden_replay.ADAPTERS, **golden_projection.ADAPTERS}


@pytest.mark.skipif(not _FILES, reason=f"no golden traces in {_FOLDER.name}; set CLJAX_GOLDEN_DIR")
@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_trace(path: Path) -> None:
    arrays = np.load(path, allow_pickle=False)
    config = json.loads(str(arrays["config"]))
    method = config.get("method", config.get("rule"))
    if method == "itaml":
        _check_itaml(arrays, config)
        return
    if method == "herding":
        _check_herding(arrays, config)
        return
    if method == "class_incremental_losses":
        _check_incremental(arrays, config)
        return
    if method not in ADAPTERS:
        pytest.skip(f"the method of this trace, {method}, is not built yet")
    with jax.enable_x64(True):
        compared = 0
        for call, trees in ADAPTERS[method](arrays, config):
            for name, tree in trees.items():
                if f"call{call}/after/{name}0" not in arrays:
                    continue
                expected = golden_support.params(arrays, f"call{call}/after/{name}")
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10),
                    tree,
                    expected,
                )
                compared += 1
    assert compared >= config["calls"]


def _check_itaml(arrays: Any, config: dict[str, Any]) -> None:
    """SGD and Adam to 1e-10, RAdam to 1e-8, as asked; all agree to 1e-14 in fact."""
    with jax.enable_x64(True):
        compared = 0
        for ours, theirs in golden_itaml.replay(arrays, config):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), ours, theirs
            )
            compared += 1
    assert compared == config["num_tasks"] * config["batches"]


def _check_herding(arrays: Any, config: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        for case in range(config["cases"]):
            features, ranks = arrays[f"case{case}/features"], arrays[f"case{case}/ranks"]
            features = jnp.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))
            every = jnp.ones(len(features), bool)
            np.testing.assert_array_equal(herd(features, every, len(ranks), repeats=True), ranks)


def _check_incremental(arrays: Any, config: dict[str, Any]) -> None:
    """To 1e-10, as asked; all agree to 1e-12 in fact."""
    with jax.enable_x64(True):
        compared = 0
        for case in range(config["cases"]):
            for name, ours, theirs in golden_incremental.replay(arrays, case):
                np.testing.assert_allclose(
                    ours, theirs, rtol=0, atol=1e-12, err_msg=f"case {case}: {name}"
                )
                compared += 1
    assert compared == 11 * config["cases"]


def test_the_adapters_see_a_wrong_update() -> None:
    """A trace replayed with one setting changed must not agree."""
    path = _FOLDER / "lamaml_single_head_first_order.npz"
    if not path.exists():
        pytest.skip("no golden traces; set CLJAX_GOLDEN_DIR")
    arrays = np.load(path, allow_pickle=False)
    config = json.loads(str(arrays["config"])) | {"grad_clip_norm": 0.5}
    with jax.enable_x64(True):
        call, trees = next(golden_lamaml.replay(arrays, config))
        expected = golden_support.params(arrays, f"call{call}/after/param")
        difference = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), trees["param"], expected
        )
    assert max(jax.tree.leaves(difference)) > 1e-6
