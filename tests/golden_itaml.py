"""Adapter of the recorded iTAML traces: sessions of mini-batches through the released mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.methods.itaml import ITAML
from cljax.nets import mlp
from cljax.types import Batch, Clock, Spec


def params(arrays: Any, prefix: str) -> Any:
    """The file's W1, b1, W2, b2 and head, stored [out, in], as our perceptron's parameters."""
    kernel = lambda i: jnp.asarray(arrays[f"{prefix}{i}"].T)
    bias = lambda i: jnp.asarray(arrays[f"{prefix}{i}"])
    return {
        "Dense_0": {"kernel": kernel(0), "bias": bias(1)},
        "Dense_1": {"kernel": kernel(2), "bias": bias(3)},
        "Dense_2": {"kernel": kernel(4)},
    }


def replay(arrays: Any, config: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Our parameters and the recorded ones after every mini-batch."""
    tasks, each = config["num_tasks"], config["classes_per_task"]
    owner = np.arange(tasks * each) // each
    example = jax.ShapeDtypeStruct((config["n_in"],), jnp.float64)
    spec = Spec(example, owner == np.arange(tasks)[:, None], config["batch_size"])
    momentum = config["momentum"]
    method = ITAML(
        lr=config["lr"], mode=config["mode"], beta=config["beta"], inner_steps=config["r"],
        optimizer="momentum" if momentum else config["optimizer"], momentum=momentum or 0.0,
        weight_decay=config["weight_decay"], capacity=tasks * each,
    )  # fmt: skip
    learner = method.bind(mlp(8, 8, head_bias=False)(tasks * each), spec)
    session = next(phase for phase in learner.phases if phase.name == "session")
    state = learner.init(jax.random.key(0))._replace(params=params(arrays, "init/param"))
    update, begin = jax.jit(learner.update), jax.jit(session.update)
    for task in range(tasks):
        for number in range(config["batches"]):
            prefix = f"session{task}/batch{number}"
            y = jnp.asarray(arrays[f"{prefix}/y"], jnp.int32)
            clock = Clock(
                jnp.int32(task), jnp.int32(0), jnp.int32(number), jnp.bool_(True), jnp.bool_(False)
            )
            x = jnp.asarray(arrays[f"{prefix}/x"])
            valid = jnp.ones(y.shape, bool)
            batch = Batch(x, y, y // each, valid, jnp.full(y.shape, -1), clock)
            if number == 0:
                state, _ = begin(state, batch, ())
            state, _ = update(state, batch, learner.draw(state, batch, jax.random.key(0)))
            yield state.params, params(arrays, f"{prefix}/after/param")
