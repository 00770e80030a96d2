"""What several methods share: predictors, and factories that are variants of another."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from cljax.types import Array, Batch, Method, Model, Predictor, PyTree, Variables

__all__ = ["logits_predictor", "variant"]


def logits_predictor(model: Model) -> Predictor:
    """Scores are the network's logits in evaluation mode, for states with ``params``."""

    def prepare(state: PyTree) -> Variables:
        return Variables(state.params, state.model_state)

    def scores(variables: Variables, batch: Batch) -> Array:
        return model.apply(variables, batch.x, False)[0].logits

    return Predictor(prepare, scores)


def variant(
    factory: Callable[..., Method],
    name: str,
    summary: str,
    *,
    fixed: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Callable[..., Method]:
    """A named method that is ``factory`` with other defaults and, in ``fixed``, values it keeps.

    The variant shows the signature and the arguments' documentation of ``factory``, less what
    is fixed, so that help texts and command-line flags are right without being written twice.
    """
    fixed = dict(fixed or {})
    signature = inspect.signature(factory)
    parameters = [
        p.replace(default=defaults.get(p.name, p.default))
        for p in signature.parameters.values()
        if p.name not in fixed
    ]

    def make(**options: Any) -> Method:
        bound = make.__signature__.bind(**options)  # type: ignore[attr-defined]
        method = factory(**{**defaults, **bound.arguments, **fixed})
        shown = {k: v for k, v in method.options.items() if k not in fixed}
        return method._replace(name=name, options=shown)

    documentation = inspect.getdoc(factory) or ""
    for argument in fixed:
        documentation = re.sub(rf"\n  {argument}:.*(\n    .*)*", "", documentation)
    make.__name__ = make.__qualname__ = name.replace("-", "_")
    make.__module__ = factory.__module__
    make.__doc__ = summary + documentation[documentation.index("\n") :]
    make.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": Method}
    make.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return make
