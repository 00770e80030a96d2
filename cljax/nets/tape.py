"""What goes into and comes out of each layer, averaged: a network's ``Model.tape``.

    pre_c = mean over batch and positions of the layer's input x[..., c]
    post_c = mean over batch and positions of its own output y[..., c]

Layers are ``nn.Dense``, ``nn.Conv``, ``cljax.nets.conv.Conv`` and the gain and shift of a
``GroupNorm`` (``Affine``), whose input is the normalised activation. ``post`` is the layer's own
output, bias included, before any normalisation or activation function. A layer that is used twice
has the mean of its uses.

The name of a layer is the path of its parameters joined with "/", as in "ConvGN_0/Conv_0": a
parameter has an entry just if its path less its own name ("kernel", "bias", "scale") is in the
tape. The head has none, nor have layers of other kinds, such as BatchNorm.

A network of your own, as pure functions, gives a tape by hand:

    def tape(variables, x, mask=None):  # this one leaves masked rows in its means
        weights = variables.params
        z = x @ weights["first"]["kernel"] + weights["first"]["bias"][None]
        features = jax.nn.relu(z)
        output = Output(features @ weights["head"]["kernel"], features)
        return output, {"first": Tape(x.mean(0), z.mean(0))}

    Model(init, apply, tape=tape)

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019, where
``pre`` is the presynaptic activation and ``post`` that of the unit itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cljax.nets.conv import Conv
from cljax.nets.groupnorm import Affine
from cljax.types import Array, Output, PyTree, Tape, Variables

__all__ = ["taped"]

_LAYERS = (nn.Dense, nn.Conv, Conv, Affine)


def taped(module: nn.Module, head: str | None) -> Callable[..., tuple[Output, dict[str, Tape]]]:
    """``Model.tape`` of a module whose ``__call__(x, train)`` returns ``(logits, features)``.

    Means have at least single precision and are taken at once, so that no activation stays alive
    for them. Layers inside ``nn.scan`` or ``nn.remat`` cannot be seen from outside, and fail.

    Args:
      head: name of the output layer, which is left out; None leaves out nothing.
    """

    def tape(
        variables: Variables, x: PyTree, mask: Array | None = None
    ) -> tuple[Output, dict[str, Tape]]:
        seen: dict[str, list[Tape]] = {}

        def record(layer: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            out = layer(*args, **kwargs)
            of = context.module
            watched = isinstance(of, _LAYERS) and context.method_name == "__call__"
            if watched and of.path[:1] != (head,):
                given = args[0] if args else next(iter(kwargs.values()))
                seen.setdefault("/".join(of.path), []).append(
                    Tape(_mean(given, mask), _mean(out, mask))
                )
            return out

        with nn.intercept_methods(record):
            collections = {"params": variables.params, **variables.model_state}
            out: Any = module.apply(collections, x, False)
        logits, features = out
        return Output(logits, features), {name: _average(uses) for name, uses in seen.items()}

    return tape


def _mean(x: Array, mask: Array | None) -> Array:
    """Over all axes but the last, and the rows [B] of the mask: [B, ..., C] -> [C]."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = tuple(range(x.ndim - 1))
    if mask is None:
        return jnp.mean(x, axis=axes, dtype=wide)
    rows = jnp.mean(x, axis=axes[1:], dtype=wide)  # [B, C]
    total = jnp.sum(jnp.where(mask[:, None], rows, 0), axis=0)
    return total / jnp.maximum(jnp.sum(mask), 1)


def _average(uses: list[Tape]) -> Tape:
    pre, post = (jnp.stack(parts).mean(0) for parts in zip(*uses, strict=True))
    return Tape(pre, post)
