"""Losses of LUCIR and of LwF with exemplars, held to values and gradients of the authors' code."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.methods.icarl import distilled
from cljax.methods.incremental import Outputs
from cljax.methods.lucir import less_forget_loss, margin_loss, objective
from cljax.nets.cosine import cosines
from cljax.types import Batch, Clock, Lens, Output


def replay(arrays: Mapping[str, Any], case: int) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, theirs) for each value and gradient of a case."""
    read = {
        name.removeprefix(f"case{case}/"): arrays[name]
        for name in arrays
        if name.startswith(f"case{case}/")
    }
    settings = json.loads(str(read["settings"]))
    old, new = settings["num_old"], settings["num_new"]
    past = jnp.arange(old + new) < old
    outputs = Outputs(past, ~past, jnp.ones(old + new, bool))
    y = jnp.asarray(read["labels"], jnp.int32)
    clock = Clock(*(jnp.int32(1),) * 3, *(jnp.bool_(True),) * 2)
    every = jnp.ones(len(y), bool)
    batch = Batch(jnp.zeros((len(y), 1)), y, y, every, y, clock)
    teacher = Output(
        jnp.pad(jnp.asarray(read["previous_logits"]), ((0, 0), (0, new))),
        jnp.asarray(read["previous_features"]),
    )
    # Theirs has two heads side by side; ours one kernel, [D, C].
    params = {
        "features": jnp.asarray(read["features"]),
        "kernel": jnp.concatenate([read["head_old"], read["head_new"]]).T,
        "sigma": jnp.asarray(read["sigma"][0]),
    }

    def output(params: dict[str, Any]) -> Output:
        logits = params["sigma"] * cosines(params["features"], params["kernel"])
        return Output(logits, params["features"])

    # lambda = base sqrt(old / new)
    base = settings["lucir_lambda"] / np.sqrt(old / new)
    rows = Lens(lambda params: params["kernel"], lambda params, kernel: params)
    margin = {"margin": settings["margin"], "negatives": settings["top_k"]}
    lucir = functools.partial(
        objective, rows=rows, less_forget=base, margin_weight=settings["margin_weight"], **margin
    )
    # Theirs averages over batch and outputs, then multiplies by tau^2 beta and the outputs.
    strength = settings["distillation_beta"] * settings["temperature"] ** 2
    lwf = functools.partial(
        distilled, loss="kl", strength=strength, temperature=settings["temperature"]
    )
    yield "logits", output(params).logits, read["logits"]
    less = less_forget_loss(params["features"], teacher.features, every)
    yield "less forget", settings["lucir_lambda"] * less, read["lucir_less_forget"]
    scores = cosines(params["features"], params["kernel"])
    apart = margin_loss(scores, y, every, outputs, **margin)
    yield "margin", settings["margin_weight"] * apart, read["lucir_margin"]
    for name, loss in (("lucir", lucir), ("lwf", lwf)):
        value, grads = jax.value_and_grad(
            lambda params, loss=loss: loss(params, output(params), teacher, (), batch, outputs)
        )(params)
        yield f"{name} total", value, read[f"{name}_total"]
        yield f"{name} features", grads["features"], read[f"{name}_grad/features"]
        yield f"{name} sigma", grads["sigma"], read[f"{name}_grad/sigma"][0]
        both = np.concatenate([read[f"{name}_grad/head_old"], read[f"{name}_grad/head_new"]])
        yield f"{name} rows", grads["kernel"].T, both
