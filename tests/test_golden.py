"""Step-by-step traces of the authors' code, replayed through the public updates in float64.

The folder is ``CLJAX_GOLDEN_DIR`` (default: ``shared/golden`` beside the checkout); every file in
it is one test. A trace says in its ``config`` what made it, and nothing here knows a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.methods import lamaml as lamaml_module
from cljax.types import Batch, Clock, Examples, Spec, Variables

pytestmark = pytest.mark.golden

_DEFAULT = Path(__file__).parents[2] / "shared" / "golden"
_FOLDER = Path(os.environ.get("CLJAX_GOLDEN_DIR", _DEFAULT))
_FILES = sorted(_FOLDER.glob("*.npz"))


def _params(arrays: Any, prefix: str) -> Any:
    """The file's W1, b1, W2, b2, W3, b3, stored [out, in], as our perceptron's parameters."""
    return {
        f"Dense_{layer}": {
            "kernel": jnp.asarray(arrays[f"{prefix}{2 * layer}"].T),
            "bias": jnp.asarray(arrays[f"{prefix}{2 * layer + 1}"]),
        }
        for layer in range(3)
    }


def _spec(config: dict[str, Any]) -> Spec:
    tasks, outputs = config["n_tasks"], config["n_out"]
    mask = np.ones((tasks, outputs), bool)
    if config["multi_head"]:
        owner = np.arange(outputs) // config["classes_per_task"]
        mask = owner == np.arange(tasks)[:, None]
    example = jax.ShapeDtypeStruct((config["n_in"],), jnp.float64)
    return Spec(example, mask, config["batch_size"], multi_head=config["multi_head"])


def _batch(arrays: Any, call: int) -> Batch:
    x, y = jnp.asarray(arrays[f"call{call}/x"]), jnp.asarray(arrays[f"call{call}/y"], jnp.int32)
    task = jnp.asarray(arrays[f"call{call}/task"], jnp.int32)
    size = x.shape[0]
    clock = Clock(task, jnp.int32(0), jnp.int32(call), jnp.bool_(True), jnp.bool_(False))
    tasks = jnp.full((size,), task)
    return Batch(x, y, tasks, jnp.ones(size, bool), jnp.full((size,), -1), clock)


def _replay(arrays: Any, prefix: str, num: int, skip: slice) -> tuple[Examples, np.ndarray]:
    """The replayed rows of one recorded draw, padded to ``num``, and their mask."""
    x, y, task = (arrays[f"{prefix}/meta_{name}"][skip] for name in ("x", "y", "task"))
    missing = num - len(y)
    pad = lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1))  # noqa: E731
    examples = Examples(pad(x), pad(y).astype(np.int32), pad(task).astype(np.int32))
    return examples, np.arange(num) < len(y)


def _lamaml_draws(arrays: Any, call: int, config: dict[str, Any], capacity: int) -> Any:
    """Recorded meta-batches as Draws: the replay first, then the batch in the glance's order."""
    size, x = config["batch_size"], arrays[f"call{call}/x"]
    orders, replays, masks = [], [], []
    for glance in range(config["glances"]):
        prefix = f"call{call}/draw{glance}"
        shuffled = arrays[f"{prefix}/meta_x"][-size:]
        orders.append([int(np.flatnonzero((x == row).all(axis=1))[0]) for row in shuffled])
        replay, mask = _replay(arrays, prefix, config["replay_batch_size"], slice(None, -size))
        replays.append(replay)
        masks.append(mask)
    stacked = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *replays)
    slots = jnp.full((size,), capacity)
    return lamaml_module.Draws(jnp.asarray(orders), stacked, jnp.asarray(np.stack(masks)), slots)


def _run_lamaml(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    single = config["method"] == "lamaml"
    method = cljax.lamaml(
        alpha_lr=config["opt_lr"] if config["learn_lr"] else None,
        lr=config["opt_wt"] if config["sync_update"] else None,
        capacity=config["memories"],
        replay_size=config["replay_batch_size"],
        glances=config["glances"],
        inner_steps=config["batch_size"] if single else config["cifar_batches"],
        order="second" if config["second_order"] else "first",
        clip_norm=config["grad_clip_norm"],
        inner_clip=None if single else config["grad_clip_norm"],
        inner_relu=single,
    )
    model = cljax.nets.mlp(config["hidden"], config["hidden"])(config["n_out"])
    learner = method.bind(model, _spec(config))
    state = learner.init(jax.random.key(0))
    params, alpha = _params(arrays, "init/param"), _params(arrays, "init/alpha")
    state = state._replace(params=params, alpha=alpha)
    update = jax.jit(learner.update)
    for call in range(config["calls"]):
        draws = _lamaml_draws(arrays, call, config, config["memories"])
        state, _ = update(state, _batch(arrays, call), draws)
        yield call, {"param": state.params, "alpha": state.alpha}


_ADAPTERS: dict[str, Callable[..., Iterator[tuple[Any, dict[str, Any]]]]] = {
    "lamaml": _run_lamaml,
    "lamaml_cifar": _run_lamaml,
}


@pytest.mark.skipif(not _FILES, reason=f"no golden traces in {_FOLDER.name}; set CLJAX_GOLDEN_DIR")
@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_trace(path: Path) -> None:
    arrays = np.load(path, allow_pickle=False)
    config = json.loads(str(arrays["config"]))
    method = config.get("method", config.get("rule"))
    if method not in _ADAPTERS:
        pytest.skip(f"the method of this trace, {method}, is not built yet")
    with jax.enable_x64(True):
        compared = 0
        for call, trees in _ADAPTERS[method](arrays, config):
            for name, tree in trees.items():
                if f"call{call}/after/{name}0" not in arrays:
                    continue
                expected = _params(arrays, f"call{call}/after/{name}")
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10),
                    tree,
                    expected,
                )
                compared += 1
    assert compared >= config["calls"]


def test_the_adapters_see_a_wrong_update() -> None:
    """A trace replayed with one setting changed must not agree."""
    path = _FOLDER / "lamaml_single_head_first_order.npz"
    if not path.exists():
        pytest.skip("no golden traces; set CLJAX_GOLDEN_DIR")
    arrays = np.load(path, allow_pickle=False)
    config = json.loads(str(arrays["config"])) | {"grad_clip_norm": 0.5}
    with jax.enable_x64(True):
        call, trees = next(_run_lamaml(arrays, config))
        expected = _params(arrays, f"call{call}/after/param")
        difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trees["param"], expected)
    assert max(jax.tree.leaves(difference)) > 1e-6


def test_variables_are_a_plain_pair() -> None:
    variables = Variables({"w": jnp.ones(1)}, {})
    assert variables.model_state == {}
