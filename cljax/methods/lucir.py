"""LUCIR: a cosine head, features that keep their direction, a margin between old and new.

    L       = CE over outputs seen + lambda L_lf + weight L_mr
    L_lf    = mean_B  1 - cos(f^(x), f(x))
    L_mr    = mean over old-class examples x and the top new outputs k of
              max(0, margin - s_y(x) + s_k(x))
    s_c     = cos(f(x), w_c),    z_c = sigma s_c,    lambda = base sqrt(n_past / n_new)

The course of a task is that of ``class_incremental``; nothing is distilled from logits. The first
task has cross-entropy alone.

Symbols: f features and f^ the teacher's, w ``model.rows``, base ``less_forget``, top ``negatives``,
n_past and n_new the numbers of outputs.

Source: Hou, Pan, Loy, Wang, Lin, "Learning a Unified Classifier Incrementally via Rebalancing",
CVPR 2019, equations 6, 8 and 10; base 5 for CIFAR-100 and 10 for ImageNet, margin 0.5, top 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array as AnyArray
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError
from cljax.losses import masked_mean, weighted
from cljax.method import Problem
from cljax.methods.class_incremental import ClassIncremental
from cljax.methods.incremental import Outputs, classification
from cljax.nets.cosine import cosines, unit
from cljax.options import Count, Rate
from cljax.types import Array, Batch, Output, Params, PyTree

__all__ = ["LUCIR", "less_forget_loss", "margin_loss"]


def less_forget_loss(
    features: Float[AnyArray, "B D"], old: Float[AnyArray, "B D"], mask: Bool[AnyArray, " B"]
) -> Array:
    """L_lf [], in [0, 2]: how far features have turned from the teacher's."""
    return masked_mean(1 - jnp.sum(unit(features) * unit(old), axis=1), mask)


def margin_loss(
    scores: Float[AnyArray, "B C"],
    y: Int[AnyArray, " B"],
    mask: Bool[AnyArray, " B"],
    outputs: Outputs,
    *,
    margin: Array | float,
    negatives: int,
) -> Array:
    """L_mr []: hinges of an old class's cosine against the nearest new ones.

    Where fewer than ``negatives`` outputs are new, those count; without old examples it is 0.
    """
    own = jnp.sum(jnp.where(jnp.arange(scores.shape[1])[None] == y[:, None], scores, 0.0), axis=1)
    nearest, _ = jax.lax.top_k(jnp.where(outputs.own[None], scores, -jnp.inf), negatives)
    there = jnp.arange(negatives)[None] < jnp.sum(outputs.own)
    # Chosen before the hinge: an infinity must not reach its gradient.
    nearest = jnp.where(there, nearest, 0.0)
    hinges = jax.nn.relu(margin - own[:, None] + nearest)
    old = (mask & outputs.past[y])[:, None] & there
    return masked_mean(hinges, old)


class LUCIR(ClassIncremental):
    """LUCIR: a cosine head, a less-forget constraint on features and a margin ranking loss.

    Paper: Hou et al., CVPR 2019, "Learning a Unified Classifier Incrementally via Rebalancing".
    Pseudo-code and symbols: ``cljax.methods.lucir``.

    Example:
        >>> import cljax
        >>> method, stream = cljax.LUCIR(lr=0.3), cljax.streams.toy("class")
        >>> run = cljax.run(method, stream, seeds=1, net="mlp:16:cosine", epochs=3)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    less_forget: Rate = 5.0
    """Its strength where old and new outputs are as many."""
    margin: Rate = 0.5
    """Between the cosines of the right old output and of new ones."""
    margin_weight: Rate = 1.0
    """Of the margin loss."""
    negatives: Count = 2
    """New outputs that each old example is held apart from, the nearest ones."""
    imprint: bool = True
    """Start the rows of new outputs at their classes' mean features."""
    freeze: bool = True
    """Rows of past outputs do not learn."""

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        model, spec = problem
        if model.rows is None or not model.cosine:
            raise UserError(
                "lucir compares features and outputs by angle, but this network has no cosine "
                "head; use one such as resnet32 or mlp:100:cosine."
            )
        if self.negatives > spec.num_classes:
            raise UserError(
                f"negatives is {self.negatives}, but the stream has only {spec.num_classes} "
                "outputs."
            )

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
        """L [] of a batch, in nats and cosines."""
        assert problem.model.rows is not None
        plain = classification("softmax", output.logits, batch.y, outputs.seen)
        plain = weighted(problem.spec, plain, batch.y)
        past, new = jnp.sum(outputs.past), jnp.sum(outputs.own)
        strength = self.less_forget * jnp.sqrt(past / jnp.maximum(new, 1)).astype(plain.dtype)
        forgetting = less_forget_loss(output.features, old.features, batch.mask)
        scores = cosines(output.features, problem.model.rows.get(params))
        apart = margin_loss(
            scores, batch.y, batch.mask, outputs, margin=self.margin, negatives=self.negatives
        )
        return masked_mean(plain, batch.mask) + strength * forgetting + self.margin_weight * apart
