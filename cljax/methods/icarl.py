"""iCaRL, and LwF with exemplars: the previous network's outputs as targets, exemplars replayed.

    loss "bce":  sum over outputs seen of  BCE(z_c, q_c),   q_c = sigmoid(z^_c) for old outputs,
                                                            1[y = c] for new ones
    loss "kl":   CE over outputs seen
                 + strength KL(softmax(z^ / tau) || softmax(z / tau)) over old ones

    predict(x):  iCaRL: the nearest mean of exemplars;  LwF: the largest logit

The course of a task is that of ``class_incremental``.

Symbols: z logits and z^ the teacher's, tau ``temperature``.

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL: Incremental Classifier and Representation
Learning", CVPR 2017 (arXiv:1611.07725), algorithms 1 to 5. ``kl`` is the loss of the code released
with Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), at tau = 2 without the factor
tau^2: one training there gives the rows of iCaRL and of LwF with exemplars.

Differs from the paper: the teacher's outputs are computed at each step, not once before the task,
so that they are those of the example as it is augmented.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from cljax.errors import check_above_zero, check_flag, check_known, check_rate
from cljax.factories import with_part
from cljax.losses import binary_cross_entropy, distillation, masked_mean
from cljax.memory.exemplars import Budget
from cljax.methods.class_incremental import (
    Objective,
    Terms,
    both_predictors,
    class_incremental,
)
from cljax.methods.incremental import Outputs, classification
from cljax.types import Array, Batch, Model, Output, Params, PyTree, Spec

__all__ = ["distilled", "icarl", "icarl_objective", "lwf_exemplars", "lwf_objective"]

Kind: TypeAlias = Literal["bce", "kl"]


def distilled(
    params: Params,
    output: Output,
    old: Output,
    own: PyTree,
    batch: Batch,
    outputs: Outputs,
    *,
    loss: Kind,
    strength: Array | float,
    temperature: Array | float,
) -> Array:
    """Mean loss [] of a batch, in nats."""
    logits = output.logits
    if loss == "bce":
        new = jax.nn.one_hot(batch.y, logits.shape[1], dtype=logits.dtype)
        targets = jnp.where(outputs.past[None], jax.nn.sigmoid(old.logits), new)
        each = binary_cross_entropy(logits, targets, outputs.seen[None])
        return masked_mean(jnp.sum(outputs.seen) * each, batch.mask)
    apart = distillation(logits, old.logits, outputs.past, temperature)
    each = classification("softmax", logits, batch.y, outputs.seen)
    return masked_mean(each + strength * apart, batch.mask)


def icarl_objective(
    *,
    loss: Kind = "bce",
    strength: Array | float = 1.0,
    temperature: Array | float = 2.0,
    mirror: bool = False,
) -> Objective:
    """iCaRL: distillation, herded exemplars, prediction by the nearest class mean.

    Args:
      loss: bce, the sum of binary cross-entropies (the paper), or kl, softmax cross-entropy with
        distillation.
      strength: weight of the distillation; loss=kl only. May be traced.
      temperature: softens both networks' outputs in it; loss=kl only. May be traced.
      mirror: class means over the exemplars and their mirror images.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    return _objective("icarl", "nearest-mean", options, **options)


def lwf_objective(
    *, strength: Array | float = 1.0, temperature: Array | float = 2.0, mirror: bool = False
) -> Objective:
    """LwF with exemplars: cross-entropy and distillation, prediction by the head.

    Args:
      strength: weight of the distillation. May be traced.
      temperature: softens both networks' outputs in it. May be traced.
      mirror: class means over the exemplars and their mirror images.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    return _objective("lwf-exemplars", "logits", options, loss="kl", **options)


def _objective(
    name: str,
    headline: str,
    options: Mapping[str, Any],
    *,
    loss: Kind,
    strength: Array | float,
    temperature: Array | float,
    mirror: bool,
) -> Objective:
    check_known("loss", loss, get_args(Kind))
    check_rate(strength=strength)
    check_above_zero(temperature=temperature)
    check_flag(mirror=mirror)
    mean_loss = functools.partial(
        distilled, loss=loss, strength=strength, temperature=temperature
    )  # fmt: skip

    def bind(model: Model, spec: Spec, budget: Budget) -> Terms:
        return Terms(mean_loss, both_predictors(model, spec, headline=headline, mirror=mirror))

    return Objective(bind, name=name, options=options)


icarl = with_part(class_incremental, "icarl", "objective", icarl_objective)
lwf_exemplars = with_part(class_incremental, "lwf-exemplars", "objective", lwf_objective)
