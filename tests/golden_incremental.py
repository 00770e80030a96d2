"""Losses of LUCIR and of LwF with exemplars, held to values and gradients of the authors' code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.method import Problem
from cljax.methods.class_incremental import ClassIncremental
from cljax.methods.icarl import LwFExemplars
from cljax.methods.incremental import Outputs
from cljax.methods.lucir import LUCIR, less_forget_loss, margin_loss
from cljax.nets import mlp
from cljax.nets.cosine import cosines
from cljax.types import Batch, Clock, Lens, Output, Spec


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
    owner = np.stack([np.asarray(outputs.past), np.asarray(outputs.own)])
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float64), owner, len(y))
    problem = Problem(mlp()(old + new)._replace(rows=rows), spec)
    lucir = LUCIR(less_forget=base, margin_weight=settings["margin_weight"], **margin)
    # Theirs averages over batch and outputs, then multiplies by tau^2 beta and the outputs.
    strength = settings["distillation_beta"] * settings["temperature"] ** 2
    lwf = LwFExemplars(strength=strength, temperature=settings["temperature"])

    def total(params: dict[str, Any], method: ClassIncremental) -> Any:
        now = output(params)
        return method.objective(problem, params, now, teacher, (), batch, outputs)

    @jax.jit
    def ours(params: dict[str, Any]) -> Any:
        scores = cosines(params["features"], params["kernel"])
        less = less_forget_loss(params["features"], teacher.features, every)
        apart = margin_loss(scores, y, every, outputs, **margin)
        both = [jax.value_and_grad(total)(params, method) for method in (lucir, lwf)]
        return output(params).logits, less, apart, both

    logits, less, apart, both = ours(params)
    yield "logits", logits, read["logits"]
    yield "less forget", settings["lucir_lambda"] * less, read["lucir_less_forget"]
    yield "margin", settings["margin_weight"] * apart, read["lucir_margin"]
    for name, (value, grads) in zip(("lucir", "lwf"), both, strict=True):
        yield f"{name} total", value, read[f"{name}_total"]
        yield f"{name} features", grads["features"], read[f"{name}_grad/features"]
        yield f"{name} sigma", grads["sigma"], read[f"{name}_grad/sigma"][0]
        kernel = np.concatenate([read[f"{name}_grad/head_old"], read[f"{name}_grad/head_new"]])
        yield f"{name} rows", grads["kernel"].T, kernel
