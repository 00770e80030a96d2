"""What adapters share: checks of the modules that they are given, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from cljax.errors import UserError, in_words
from cljax.types import Model, Output

__all__ = ["check_maker", "check_variables", "output_of"]


def check_maker(adapter: str, make: Any, kinds: tuple[type, ...], right: str) -> None:
    """Raises UserError unless ``make`` is a function, and not a module that was made with it.

    Args:
      kinds: classes of modules, which can often be called themselves.
      right: what would be right, as an expression.
    """
    if isinstance(make, kinds) or not callable(make):
        raise UserError(
            f"{adapter} is given {in_words(make)}, but it takes a function that makes the module, "
            f"such as {right}."
        )


def output_of(returned: Any, library: str) -> Output:
    """The pair that a module returned.

    Raises:
      UserError: for anything else, such as logits alone.
    """
    if isinstance(returned, (tuple, list)) and len(returned) == 2:
        return Output(*returned)
    raise UserError(
        f"The {library} module returns {in_words(returned)}, but it must return the pair (logits, "
        "features): the outputs, and what the last layer makes them of."
    )


def check_variables(
    library: str, model: Model, variables: Mapping[str, Any], example: Any = None
) -> None:
    """Raises UserError unless variables, in Flax's form, are those of a module's model.

    Args:
      example: a batch of examples, or of their shapes, for a model that asks for one.
    """
    made = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), example)

    def shapes(tree: Any) -> dict[str, list[int]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): [*a.shape] for p, a in leaves}

    expected, result = shapes({"params": made.params, **made.model_state}), shapes(variables)
    for name in {**expected, **result}:
        if expected.get(name) != result.get(name):
            raise UserError(
                f"The variables are of another network than this {library} module: {name} is "
                f"{result.get(name, 'not there')}, but the module has "
                f"{expected.get(name, 'none such')}."
            )
