"""Replays the traces of ER, La-ER and MER."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import golden_support
import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax.methods import er, laer, mer
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


ADAPTERS = {"eralg4": replay_er, "meralg1": replay_mer}
