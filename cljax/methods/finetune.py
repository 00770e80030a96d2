"""Fine-tuning: gradient steps on the stream as it comes, with a penalty if one is given.

    update(batch):   theta = theta - lr * grad [CE(theta; batch) + penalty(theta)]

Without a penalty it is the lower bound that papers call Online (single pass, one example a
step), FineTune or SGD; with one it is EWC, online EWC, SI, MAS, RWalk or LwF.

Symbols: theta ``params``, lr ``lr``; the optimiser is optax's.

Source: Riemer et al., "Learning to Learn without Forgetting by Maximizing Transfer and
Minimizing Interference", ICLR 2019 (arXiv:1810.11910), Online; the penalties name their own.
"""

from __future__ import annotations

from typing import NamedTuple

from cljax.errors import check_above_zero, check_rate, given
from cljax.factories import variant, with_part
from cljax.losses import classification_loss
from cljax.methods.common import (
    Descent,
    check_penalty,
    descend,
    initial,
    logits_predictor,
    mean_weights,
    network_of,
    penalty_phases,
    penalty_state,
)
from cljax.optimizers import Optimizer, make_optimizer
from cljax.penalties import PENALTIES
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    Penalty,
    PyTree,
    Spec,
)

__all__ = ["Draws", "State", "draw", "finetune", "online", "sgd"]


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


def finetune(
    *,
    lr: Array | float = 0.01,
    optimizer: Optimizer = "sgd",
    clip_norm: float | None = None,
    penalty: Penalty | None = None,
) -> Method:
    """Gradient descent on the examples as they come: the lower bound, or a penalty's carrier.

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.
      clip_norm: bound of the global norm of the gradient; None disables.
      penalty: a regulariser such as ``cljax.ewc(100.0)``; None is plain fine-tuning.

    Raises:
      UserError: for a rate that is not finite or an unknown optimiser.
    """
    options = dict(locals())
    check_rate(lr=lr)
    check_above_zero(**given(clip_norm=clip_norm))
    check_penalty(penalty)
    step = make_optimizer(optimizer, lr)

    def bind(model: Model, spec: Spec) -> Learner:
        loss_fn, network = classification_loss(model, spec), network_of(model, spec)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            return State(params, model_state, step.init(params), penalty_state(penalty, params))

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            after, loss = descend(
                Descent(*state), Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask),
                batch, loss_fn=loss_fn, optimizer=step, clip_norm=clip_norm, penalty=penalty,
                network=network,
            )  # fmt: skip
            return State(*after), Info(loss)

        return Learner(
            init,
            draw,
            update,
            {"logits": logits_predictor(model)},
            penalty_phases(penalty, model, spec),
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    return Method("finetune", bind, Needs(boundaries=penalty is not None), options, make=finetune)


online = variant(
    finetune,
    "online",
    "Online: stochastic gradient descent on the stream, once, without any memory (Riemer 2019).",
    fixed={"penalty": None, "optimizer": "sgd"},
)
sgd = variant(
    finetune,
    "sgd",
    "SGD: plain gradient descent, the hand-made rule that learned ones are compared with.",
    fixed={"penalty": None, "optimizer": "sgd"},
)
ewc, online_ewc, si, mas, rwalk, lwf = (
    with_part(finetune, name, "penalty", PENALTIES[name])
    for name in ("ewc", "online-ewc", "si", "mas", "rwalk", "lwf")
)
