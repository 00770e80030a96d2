"""Replays the La-MAML family's traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import golden_support
import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax.methods.lamaml import Draws


def _lamaml_draws(arrays: Any, call: int, config: dict[str, Any], capacity: int) -> Any:
    """Recorded meta-batches as Draws: the replay first, then the batch in the glance's order."""
    size = config["batch_size"]
    replays, masks = [], []
    for glance in range(config["glances"]):
        prefix = f"call{call}/draw{glance}"
        replay, mask = golden_support.replay(
            arrays, prefix, config["replay_batch_size"], slice(None, -size)
        )
        replays.append(replay)
        masks.append(mask)
    stacked = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *replays)
    slots = jnp.full((size,), capacity)
    orders = golden_support.orders(arrays, call, config)
    return Draws(orders, stacked, jnp.asarray(np.stack(masks)), slots)


def replay(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    single = config["method"] == "lamaml"
    method = cljax.LaMAML(
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
    learner = method.bind(model, golden_support.spec(config))
    state = learner.init(jax.random.key(0))
    params, alpha = (
        golden_support.params(arrays, "init/param"),
        golden_support.params(arrays, "init/alpha"),
    )
    state = state._replace(params=params, alpha=alpha)
    update = jax.jit(learner.update)
    for call in range(config["calls"]):
        draws = _lamaml_draws(arrays, call, config, config["memories"])
        state, _ = update(state, golden_support.batch(arrays, call), draws)
        yield call, {"param": state.params, "alpha": state.alpha}


# Config's method -> (arrays, config) -> after each call: its number, and trees to compare.
ADAPTERS = {"lamaml": replay, "lamaml_cifar": replay}
