"""Replays the traces of ER, La-ER and MER."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import golden_support
import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax.methods import der, er, er_ace, laer, mer
from cljax.types import Examples


def _bind(arrays: Any, config: dict[str, Any], method: cljax.Method) -> tuple[Any, Any]:
    model = cljax.nets.mlp(config["hidden"], config["hidden"])(config["n_out"])
    learner = method.bind(model, golden_support.spec(config))
    params = golden_support.params(arrays, "init/param")
    return learner, learner.init(jax.random.key(0))._replace(params=params)


def _stacked(rows: list[Any]) -> Any:
    return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *rows)


def _replays(arrays: Any, call: int, config: dict[str, Any]) -> tuple[Examples, Any]:
    size = config["batch_size"]
    drawn = [
        golden_support.replay(
            arrays, f"call{call}/draw{g}", config["replay_batch_size"], slice(None, -size)
        )
        for g in range(config["glances"])
    ]
    return _stacked(drawn)


def replay_er(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """ER, or La-ER where the trace has per-parameter rates."""
    shared = {
        "capacity": config["memories"],
        "replay_size": config["replay_batch_size"],
        "glances": config["glances"],
        "clip_norm": config["grad_clip_norm"],
    }
    slots = jnp.full((config["batch_size"],), config["memories"])
    if config["learn_lr"]:
        method = cljax.LaER(
            alpha_lr=config["opt_lr"],
            inner_steps=config["cifar_batches"],
            inner_clip=config["grad_clip_norm"],
            **shared,
        )
    else:
        method = cljax.ER(lr=config["lr"], **shared)
    learner, state = _bind(arrays, config, method)
    if config["learn_lr"]:
        state = state._replace(alpha=golden_support.params(arrays, "init/alpha"))
    update = jax.jit(learner.update)
    for call in range(config["calls"]):
        batch = golden_support.batch(arrays, call)
        replay, mask = _replays(arrays, call, config)
        if config["learn_lr"]:
            orders = golden_support.orders(arrays, call, config)
            state, _ = update(state, batch, laer.Draws(orders, replay, mask, slots))
            yield call, {"param": state.params, "alpha": state.alpha}
        else:
            state, _ = update(state, batch, er.Draws(replay, mask, slots))
            yield call, {"param": state.params}


def replay_mer(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    sweeps, num = config["batches_per_example"], config["replay_batch_size"] + 1
    method = cljax.MER(
        lr=config["lr"],
        beta=config["beta"],
        gamma=config["gamma"],
        sweeps=sweeps,
        capacity=config["memories"],
        replay_size=config["replay_batch_size"],
        clip_norm=config["grad_clip_norm"],
    )
    learner, state = _bind(arrays, config, method)
    update = jax.jit(learner.update)
    slots = jnp.full((config["batch_size"],), config["memories"])
    for call in range(config["calls"]):
        drawn = [
            golden_support.replay(arrays, f"call{call}/draw{s}", num, slice(None))
            for s in range(sweeps)
        ]
        sequence, mask = jax.tree.map(lambda a: a[None], _stacked(drawn))
        draws = mer.Draws(sequence, mask, jnp.ones(mask.shape), slots)
        state, _ = update(state, golden_support.batch(arrays, call), draws)
        yield call, {"param": state.params}


def replay_der(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """DER and DER++; every example is stored, so that all recorded logits are found again."""
    size, num = config["batch_size"], config["replay_batch_size"]
    shared = {"lr": config["lr"], "alpha": config["alpha"], "replay_size": num}
    shared["capacity"] = size * config["calls"]
    again = config["method"] == "derpp"
    method = cljax.DERpp(beta=config["beta"], **shared) if again else cljax.DER(**shared)
    learner, state = _bind(arrays, config, method)
    update = jax.jit(learner.update)
    for call in range(config["calls"]):
        drawn = [_answered(arrays, f"call{call}/draw{n}", num, state) for n in range(1 + again)]
        replay, mask = jax.tree.map(lambda a: a[None], _stacked(drawn))
        slots = jnp.arange(call * size, (call + 1) * size)
        draws = der.Draws(replay, mask, slots)
        state, info = update(state, golden_support.batch(arrays, call), draws)
        np.testing.assert_allclose(info.loss, arrays[f"call{call}/loss"], rtol=0, atol=1e-10)
        yield call, {"param": state.params}


def _answered(arrays: Any, prefix: str, num: int, state: Any) -> tuple[Examples, Any]:
    """The rows of a recorded draw with their logits, which are those that are stored for them."""
    if f"{prefix}/meta_x" not in arrays:
        rows = jax.tree.map(
            lambda a: jnp.zeros((num, *a.shape[1:]), a.dtype), state.memory.rows.data
        )
        return rows, np.zeros(num, bool)
    examples, mask = golden_support.replay(arrays, prefix, num, slice(None))
    logits, stored = arrays[f"{prefix}/meta_logits"], state.memory.rows.data.x
    for x, expected in zip(examples.x[mask], logits, strict=True):
        (slot,) = np.flatnonzero((np.asarray(stored.x) == x).all(axis=1))
        np.testing.assert_allclose(stored.logits[slot], expected, rtol=0, atol=1e-10)
    padded = np.pad(logits, ((0, num - len(logits)), (0, 0)))
    return examples._replace(x=der.Answered(examples.x, padded)), mask


def replay_er_ace(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    size, num = config["batch_size"], config["replay_batch_size"]
    method = cljax.ERACE(
        lr=config["lr"],
        capacity=config["memories"],
        replay_size=num,
        form="task-free" if config["task_free"] else "task-aware",
    )
    learner, state = _bind(arrays, config, method)
    update, slots = jax.jit(learner.update), jnp.full((size,), config["memories"])
    for call in range(config["calls"]):
        prefix = f"call{call}/draw0"
        if f"{prefix}/meta_x" in arrays:
            drawn = golden_support.replay(arrays, prefix, num, slice(None))
        else:  # the memory of the task-aware form is not empty then, but it is not replayed
            rows, valid = state.memory.data, not config["task_free"]
            empty = jax.tree.map(lambda a: jnp.ones((num, *a.shape[1:]), a.dtype), rows)
            drawn = empty, np.full(num, valid)
        replay, mask = _stacked([drawn])
        draws = er_ace.Draws(replay, mask, slots)
        state, info = update(state, golden_support.batch(arrays, call), draws)
        np.testing.assert_allclose(info.loss, arrays[f"call{call}/loss"], rtol=0, atol=1e-10)
        yield call, {"param": state.params}


ADAPTERS = {
    "er_ace": replay_er_ace,
    "eralg4": replay_er,
    "meralg1": replay_mer,
    "der": replay_der,
    "derpp": replay_der,
}
