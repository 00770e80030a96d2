"""What adapters share: checks of the modules that they are given, in one sentence."""

from __future__ import annotations

from typing import Any

from cljax.errors import UserError, in_words
from cljax.types import Output

__all__ = ["check_maker", "output_of"]


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
