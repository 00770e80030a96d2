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

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from cljax.losses import binary_cross_entropy, distillation, masked_mean, weighted
from cljax.method import Problem
from cljax.methods.class_incremental import ClassIncremental
from cljax.methods.incremental import Outputs, classification
from cljax.options import Positive, Rate
from cljax.types import Array, Batch, Output, Params, PyTree

__all__ = ["ICaRL", "LwFExemplars"]


class ICaRL(ClassIncremental, name="icarl"):
    """iCaRL: distillation, herded exemplars, prediction by the nearest class mean.

    Paper: Rebuffi et al., CVPR 2017 (arXiv:1611.07725). Pseudo-code, symbols and what differs:
    ``cljax.methods.icarl``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.ICaRL(lr=0.3), cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    headline: ClassVar[str] = "nearest-mean"

    loss: Literal["bce", "kl"] = "bce"
    """Bce, the sum of binary cross-entropies (the paper), or kl, softmax cross-entropy with
    distillation."""
    strength: Rate = 1.0
    """Weight of the distillation; loss=kl only."""
    temperature: Positive = 2.0
    """Softens both networks' outputs in it; loss=kl only."""

    def objective(
        self,
        problem: Problem,
        params: Params,
        output: Output,
        old: Output,
        own: PyTree,
        batch: Batch,
        outputs: Outputs,
    ) -> Array:
        logits = output.logits
        if self.loss == "bce":
            new = jax.nn.one_hot(batch.y, logits.shape[1], dtype=logits.dtype)
            targets = jnp.where(outputs.past[None], jax.nn.sigmoid(old.logits), new)
            each = binary_cross_entropy(logits, targets, outputs.seen[None])
            each = weighted(problem.spec, each, batch.y)
            return masked_mean(jnp.sum(outputs.seen) * each, batch.mask)
        apart = distillation(logits, old.logits, outputs.past, self.temperature)
        each = classification("softmax", logits, batch.y, outputs.seen)
        each = weighted(problem.spec, each, batch.y)
        return masked_mean(each + self.strength * apart, batch.mask)


class LwFExemplars(ICaRL, name="lwf-exemplars"):
    """LwF with exemplars: cross-entropy and distillation, prediction by the head.

    Paper: Rebuffi et al., CVPR 2017 (arXiv:1611.07725), its baseline; Liu et al., CVPR 2020
    (arXiv:2002.10211). Pseudo-code, symbols and what differs: ``cljax.methods.icarl``.

    Example:
        >>> import cljax
        >>> method = cljax.LwFExemplars(lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    headline: ClassVar[str] = "logits"
    loss: ClassVar[Literal["kl"]] = "kl"

    strength: Rate = 1.0
    """Weight of the distillation."""
    temperature: Positive = 2.0
    """Softens both networks' outputs in it."""
