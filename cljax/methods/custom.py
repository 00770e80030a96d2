"""A method of three functions, for an idea that needs no phases, options or draws of its own.

    state = init(key);  state, info = update(state, batch, key);  scores = predict(state, x)

The whole form, with hyper-parameters that may be traced and draws apart from updates, is that of
``cljax/methods/lamaml.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from cljax.errors import UserError, check_callable
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Predictor,
    PyTree,
    Spec,
)

__all__ = ["from_update"]


def from_update(
    init: Callable[[Array], PyTree],
    update: Callable[[PyTree, Batch, Array], tuple[PyTree, Info]],
    predict: Callable[[PyTree, PyTree], Array],
    *,
    name: str = "custom",
    needs: Needs = Needs(),  # noqa: B008, it is frozen
) -> Method:
    """A method of one's own from its update; ``cljax.Method.from_update`` is the same.

    The functions bring their own network, so the run's ``net`` is not used. Rows outside
    ``batch.mask`` are padding.

    Args:
      init: ``key -> state``, a NamedTuple of arrays and pytrees of arrays.
      update: ``(state, batch, key) -> (state, Info(loss))``.
      predict: ``(state, x [B, ...]) -> scores [B, C]``.
      name: of the method, in tables and as part of a run's identity.
      needs: what it asks of a stream.

    Raises:
      UserError: for what is no function, and (when bound) if ``init`` does not return a NamedTuple.
    """
    check_callable(init=init, update=update, predict=predict)

    def bind(model: Model, spec: Spec) -> Learner:
        shapes = jax.eval_shape(init, jax.random.key(0))
        if not hasattr(shapes, "_asdict"):
            raise UserError(
                f"The state of the method {name} is a {type(shapes).__name__}, but it must be a "
                "NamedTuple, whose fields are listed with their sizes."
            )
        predictor = Predictor(lambda state: state, lambda state, batch: predict(state, batch.x))
        return Learner(init, lambda state, batch, key: key, update, {"logits": predictor})

    options = {"init": init, "update": update, "predict": predict}
    return Method(name, bind, needs, options)
