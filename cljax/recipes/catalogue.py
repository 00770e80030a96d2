"""Recipes by what they are for."""

from __future__ import annotations

from cljax.errors import UserError, check_known, check_text, given
from cljax.methods import METHODS
from cljax.recipes import itaml, lamaml, lamaml_table3, mer, mnemonics, teacher
from cljax.recipes.base import Recipe
from cljax.streams import STREAMS
from cljax.streams.catalogue import find

__all__ = ["default", "recipe", "recipes"]


def recipes() -> tuple[Recipe, ...]:
    """All recipes, the first of a (method, stream) pair being its default."""
    first = lamaml.RECIPES + lamaml_table3.RECIPES + mer.RECIPES
    return first + itaml.RECIPES + mnemonics.RECIPES + teacher.RECIPES


def default(method: str, stream: str) -> Recipe:
    """The recipe of the paper whose table holds the pair, else library defaults, untuned.

    Args:
      stream: its name; the mark of a smaller part, as in ``mnist-rotations[sample]``, is left out.
    """
    pair = stream.removesuffix("[sample]")
    for candidate in recipes():
        if (candidate.method, candidate.stream) == (method, pair):
            return candidate
    return Recipe(method, stream)


def recipe(
    method: str, stream: str, source: str | None = None, variant: str | None = None
) -> Recipe:
    """A recipe by what it is for.

    Args:
      source: a table such as ``lamaml-table1``, or the start of one; None: the pair's default.
      variant: ``reference`` (the authors' code) or ``paper`` (the printed values); iTAML's are
        ``tuned``, ``released`` and ``paper``; mnemonics' stand in ``cljax.recipes.mnemonics``.

    Raises:
      UserError: if there is no such recipe, with those that there are, or no such pair.
    """
    check_text(method=method, stream=stream, **given(source=source, variant=variant))
    if source is None and variant is None:
        pair = stream.removesuffix("[sample]")
        if ":" not in method:  # else it is of one's own
            check_known("method", method, METHODS)
        if ":" not in stream and find(pair) is None:
            check_known("stream", pair, STREAMS)
        return default(method, stream)
    pair = [r for r in recipes() if (r.method, r.stream) == (method, stream)]
    fitting = [
        r
        for r in pair
        if (source is None or r.source == source or r.source.startswith(f"{source}-"))
        and (variant is None or r.variant == variant)
    ]
    if not fitting:
        asked = ":".join(part for part in (source, variant) if part)
        known = ", ".join(r.name for r in pair) or "none, so it runs on defaults"
        raise UserError(f"No recipe '{asked}' for {method} on {stream}; there is {known}.")
    return fitting[0]
