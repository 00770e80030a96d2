"""What is minimised on a stream and what its tests are judged by: losses, class weights, scores.

    loss    (outputs, targets) -> [B], by name or a function; what methods minimise, on average
    weights by class: a row's loss times its class's weight over the mean of all weights
    score   (outputs, targets) -> [B], likewise; its mean over a task's tests takes the place of
            accuracy in the matrix and in every measure of it, so larger must be better

Targets are labels, int32 [B], or floats [B] or [B, K] (regression, several labels at once), and a
network has as many outputs. Functions get the outputs of a batch in the shape of its targets.
By name, means over the outputs of an example:

    cross-entropy         of a softmax; labels only, and the loss where none is named
    binary-cross-entropy  of a sigmoid for each output, with targets from 0 to 1
    squared-error, absolute-error, huber (quadratic up to 1)    labels as 0 and 1, one an output

    accuracy                   labels only, and their score where none is named
    r-squared                  1 - mean_k (o_k - t_k)^2 / var_k, var_k over the training targets of
                               all tasks: 0 is as good as their mean; of regression
    negative-squared-error, negative-absolute-error
    subset-accuracy            whether all outputs are right, one above 0 saying 1; of sigmoids
    label-accuracy             the share of outputs that are right
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known, in_words
from cljax.losses import LOSSES, as_targets
from cljax.types import Array, Objective, Spec

__all__ = [
    "SCORES", "Loss", "Score", "Weights", "check_objective", "described", "name_of",
    "objective_of", "score_fn",
]  # fmt: skip

Loss: TypeAlias = Callable[[Array, Array], Array]
Score: TypeAlias = Callable[[Array, Array], Array]
Weights: TypeAlias = Sequence[float] | Literal["balanced"]

_ROWS = 3  # of the batch that a function is tried on
_SMOOTH = ("squared-error", "absolute-error", "huber")


# Of outputs and targets [B, K], and the variance of the targets [1, K].
_Named: TypeAlias = Callable[[Array, Array, Any], Array]


def _right(outputs: Array, targets: Array) -> Array:
    return (outputs > 0) == (targets > 0.5)


SCORES: Mapping[str, _Named] = MappingProxyType(
    {
        "r-squared": lambda o, t, var: 1 - jnp.mean((o - t) ** 2 / var, axis=-1),
        "negative-squared-error": lambda o, t, var: -jnp.mean((o - t) ** 2, axis=-1),
        "negative-absolute-error": lambda o, t, var: -jnp.mean(abs(o - t), axis=-1),
        "subset-accuracy": lambda o, t, var: jnp.all(_right(o, t), axis=-1).astype(o.dtype),
        "label-accuracy": lambda o, t, var: jnp.mean(_right(o, t), axis=-1, dtype=o.dtype),
    }
)


def name_of(given: str | Callable[..., Any]) -> str:
    """What a loss or a score is called in tables: its name, that of a function, or custom."""
    if isinstance(given, str):
        return given
    name = getattr(given, "__name__", type(given).__name__)
    return "custom" if name == "<lambda>" else name.strip("_").replace("_", "-")


def described(objective: Objective) -> dict[str, Any] | None:
    """An objective for a run's config; None where it is that of classes without weights."""
    if objective == Objective():
        return None
    loss, weights, score, _ = objective
    return {"loss": name_of(loss), "weights": weights and list(weights), "score": name_of(score)}


def score_fn(objective: Objective) -> Callable[[Array, Array], Array] | None:
    """``(outputs [B, C], targets) -> [B]``; None where the score is the accuracy."""
    score = objective.score
    if score == "accuracy":
        return None
    if not isinstance(score, str):
        return lambda outputs, y: score(as_targets(outputs, y), y)
    variance = np.atleast_2d(1.0 if objective.variance is None else objective.variance)

    def named(outputs: Array, y: Array) -> Array:
        targets = y
        if jnp.issubdtype(y.dtype, jnp.integer):
            targets = jax.nn.one_hot(y, outputs.shape[1], dtype=outputs.dtype)
        return SCORES[score](outputs, targets.reshape(outputs.shape), variance)

    return named


def objective_of(
    targets: np.ndarray,
    num_outputs: int,
    *,
    loss: Loss | str | None = None,
    weights: Weights | None = None,
    score: Score | str | None = None,
    heads: bool = False,
) -> Objective:
    """What is minimised and judged by, checked against the training targets of a stream.

    Args:
      targets: [N] integers (labels) or floats, or [N, K] floats. num_outputs: C.
      loss: None: the cross-entropy of labels.
      weights: of the C classes, none negative; "balanced": one over the number of examples of
        each, of all tasks; None: all alike.
      score: None: the accuracy of labels, for targets "r-squared" or "subset-accuracy".
      heads: whether each task has outputs of its own.

    Raises:
      UserError: for an unknown name, a function that does not give a number for each example,
        weights that do not fit, or a loss or score that such targets do not have.
    """
    labels = targets.dtype.kind in "iu"
    if loss is None and not labels:
        raise UserError(
            f"The targets are {_shape(targets)}, which need a loss: name one, such as "
            f"loss='squared-error' ({', '.join(LOSSES)}), or give a function (outputs, targets) -> "
            "losses; labels are whole numbers of an integer type."
        )
    loss = "cross-entropy" if loss is None else loss
    if isinstance(loss, str):
        check_known("loss", loss, ("cross-entropy", *LOSSES) if labels else LOSSES)
    score = _default_score(loss, labels=labels) if score is None else score
    if isinstance(score, str):
        check_known("score", score, ("accuracy", *SCORES) if labels else SCORES)
    named = [given for given in (loss, score) if isinstance(given, str)]
    if not labels and any(name in (*LOSSES, *SCORES) for name in named):
        size = 1 if targets.ndim == 1 else targets.shape[1]
        if size != num_outputs:
            raise UserError(
                f"There are {num_outputs} outputs for {size} targets of an example, which the "
                f"{'loss' if isinstance(loss, str) else 'score'} {named[0]} compares one by one; "
                "leave num_classes out, or give functions of your own."
            )
    if loss == "binary-cross-entropy" and not labels and not _within_unit(targets):
        raise UserError(
            f"The targets reach from {targets.min():g} to {targets.max():g}, but "
            "binary-cross-entropy takes targets from 0 to 1."
        )
    for what, given in (("loss", loss), ("score", score)):
        if not isinstance(given, str):
            _check_function(what, given, targets, num_outputs, heads=heads)
    variance = None
    if score == "r-squared":
        variance = _variance(targets, num_outputs)
    return Objective(loss, _weights(weights, targets, num_outputs), score, variance)


def check_objective(method: Any, spec: Spec) -> None:
    """Raises UserError for a stream whose targets, loss or weights a method cannot learn by."""
    how, target = spec.objective, spec.target
    if target is not None and method.needs_classes:
        raise UserError(
            f"{method.name} needs classes, because it {method.needs_classes}, but the targets of "
            f"this stream are {target.dtype}{list(target.shape)}; choose a method such as er or "
            "ewc."
        )
    if how.loss != "cross-entropy" and method.fixed_loss:
        raise UserError(
            f"{method.name} takes no other loss, because it {method.fixed_loss}, but the loss is "
            f"{name_of(how.loss)}; leave it out, or choose a method such as er."
        )
    if how.weights is not None and method.unweighted:
        raise UserError(
            f"{method.name} takes no weights of classes, because it {method.unweighted}; leave "
            "weights out, or choose a method such as er."
        )


def _default_score(loss: Loss | str, *, labels: bool) -> str:
    if labels:
        return "accuracy"
    if loss == "binary-cross-entropy":
        return "subset-accuracy"
    if loss in _SMOOTH:
        return "r-squared"
    raise UserError(
        "The targets are no classes and the loss is a function of your own, so nothing says what "
        f"the tests are judged by; name a score ({', '.join(SCORES)}), or give a function (outputs,"
        " targets) -> numbers of which larger is better."
    )


def _check_function(
    what: str, given: Any, targets: np.ndarray, num_outputs: int, *, heads: bool
) -> None:
    """Raises UserError unless this makes a float for each example."""
    if not callable(given):
        raise UserError(
            f"{what} is {in_words(given)}, but it must be a name or a function (outputs, targets) "
            "-> [B]."
        )
    if heads and what == "loss":
        raise UserError(
            f"The loss {name_of(given)} is a function of all outputs, but in this stream each "
            "example's loss is over the outputs of its own task; name a loss, or make the stream "
            "of another scenario than 'task'."
        )
    label = targets.dtype.kind in "iu"
    kind = jnp.int32 if label else jnp.result_type(float)
    y = jax.ShapeDtypeStruct((_ROWS, *targets.shape[1:]), kind)
    out = jax.ShapeDtypeStruct((_ROWS, num_outputs), jnp.result_type(float))
    try:
        made = jax.eval_shape(lambda o, y: given(as_targets(o, y), y), out, y)
    except Exception as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"The {what} {name_of(given)} fails on outputs and targets of {_ROWS} examples "
            f"({type(error).__name__}: {text}); it must be a function (outputs, targets) -> "
            f"[{_ROWS}] that JAX can trace."
        ) from error
    shape, dtype = getattr(made, "shape", None), getattr(made, "dtype", None)
    if shape != (_ROWS,) or not jnp.issubdtype(np.dtype(dtype), jnp.floating):
        got = in_words(made) if shape is None else f"{dtype}{list(shape)}"
        raise UserError(
            f"The {what} {name_of(given)} makes {got} of {_ROWS} examples, but it must make a "
            f"float for each, [{_ROWS}]: the {what} of a row, not their mean."
        )


def _variance(targets: np.ndarray, num_outputs: int) -> tuple[float, ...]:
    if targets.dtype.kind in "iu":
        targets = targets[:, None] == np.arange(num_outputs)
    variance = np.var(targets.reshape(len(targets), -1).astype(np.float64), axis=0)
    if not (variance > 0).all():
        where = int(np.flatnonzero(~(variance > 0))[0])
        raise UserError(
            f"Target {where} is the same for all training examples, so r-squared has no meaning; "
            "name another score, such as score='negative-squared-error'."
        )
    return tuple(variance.tolist())


def _weights(given: Any, targets: np.ndarray, num_outputs: int) -> tuple[float, ...] | None:
    if given is None:
        return None
    if targets.dtype.kind not in "iu":
        raise UserError(
            f"weights are of classes, but the targets are {_shape(targets)}; leave them out, and "
            "weigh rows in a loss of your own."
        )
    if isinstance(given, str):
        check_known("weights", given, ("balanced",))
        counts = np.bincount(targets, minlength=num_outputs)
        if not counts.all():
            raise UserError(
                f"weights are balanced, but no training example has the class "
                f"{int(np.flatnonzero(counts == 0)[0])}; give a list of weights."
            )
        return tuple((1.0 / counts).tolist())
    try:
        values = np.asarray(given, float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    good = values.shape == (num_outputs,) and np.isfinite(values).all()
    if not good or (values < 0).any() or not values.any():
        raise UserError(
            f"weights are {in_words(given)}, but they must be {num_outputs} numbers, one for each "
            "class, none negative and not all 0, or 'balanced'."
        )
    return tuple(values.tolist())


def _within_unit(targets: np.ndarray) -> bool:
    return bool(targets.min() >= 0 and targets.max() <= 1)


def _shape(targets: np.ndarray) -> str:
    return f"{targets.dtype}{list(targets.shape)}"
