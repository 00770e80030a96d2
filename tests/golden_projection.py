"""Replays the traces of GEM and A-GEM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import golden_support
import jax

import cljax
from cljax.methods.gem import Draws


def replay(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    shared = {
        "lr": config["lr"],
        "per_task": config["n_memories"],
        "glances": config["glances"],
        "clip_norm": config["grad_clip_norm"],
        "ring_rule": "truncate",
    }
    if config["method"] == "gem":
        method = cljax.GEM(margin=config["memory_strength"], ridge=1e-3, **shared)
    else:
        method = cljax.AGEM(reference_size=None, skip_first_task=True, **shared)
    model = cljax.nets.mlp(config["hidden"], config["hidden"])(config["n_out"])
    learner = method.bind(model, golden_support.spec(config))
    params = golden_support.params(arrays, "init/param")
    state = learner.init(jax.random.key(0))._replace(params=params)
    update = jax.jit(learner.update)
    for call in range(config["calls"]):
        state, _ = update(state, golden_support.batch(arrays, call), Draws((), ()))
        yield call, {"param": state.params}


ADAPTERS = {"gem": replay, "agem": replay}
