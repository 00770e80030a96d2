"""Reading the recorded traces: parameters, batches and draws as cljax has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.types import Batch, Clock, Examples, Spec


def params(arrays: Any, prefix: str) -> Any:
    """The file's W1, b1, W2, b2, W3, b3, stored [out, in], as our perceptron's parameters."""
    return {
        f"Dense_{layer}": {
            "kernel": jnp.asarray(arrays[f"{prefix}{2 * layer}"].T),
            "bias": jnp.asarray(arrays[f"{prefix}{2 * layer + 1}"]),
        }
        for layer in range(3)
    }


def spec(config: dict[str, Any]) -> Spec:
    tasks, outputs = config["n_tasks"], config["n_out"]
    mask = np.ones((tasks, outputs), bool)
    if config["multi_head"]:
        owner = np.arange(outputs) // config["classes_per_task"]
        mask = owner == np.arange(tasks)[:, None]
    example = jax.ShapeDtypeStruct((config["n_in"],), jnp.float64)
    return Spec(example, mask, config["batch_size"], multi_head=config["multi_head"])


def batch(arrays: Any, call: int) -> Batch:
    x, y = jnp.asarray(arrays[f"call{call}/x"]), jnp.asarray(arrays[f"call{call}/y"], jnp.int32)
    task = jnp.asarray(arrays[f"call{call}/task"], jnp.int32)
    size = x.shape[0]
    clock = Clock(task, jnp.int32(0), jnp.int32(call), jnp.bool_(True), jnp.bool_(False))
    tasks = jnp.full((size,), task)
    return Batch(x, y, tasks, jnp.ones(size, bool), jnp.full((size,), -1), clock)


def replay(arrays: Any, prefix: str, num: int, skip: slice) -> tuple[Examples, np.ndarray]:
    """The replayed rows of one recorded draw, padded to ``num``, and their mask."""
    x, y, task = (arrays[f"{prefix}/meta_{name}"][skip] for name in ("x", "y", "task"))
    missing = num - len(y)
    pad = lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1))
    examples = Examples(pad(x), pad(y).astype(np.int32), pad(task).astype(np.int32))
    return examples, np.arange(num) < len(y)


def orders(arrays: Any, call: int, config: dict[str, Any]) -> jax.Array:
    """[G, B], the permutation of the incoming batch at the end of each recorded meta-batch."""
    size, x = config["batch_size"], arrays[f"call{call}/x"]
    found = []
    for glance in range(config["glances"]):
        shuffled = arrays[f"call{call}/draw{glance}/meta_x"][-size:]
        found.append([int(np.flatnonzero((x == row).all(axis=1))[0]) for row in shuffled])
    return jnp.asarray(found)
