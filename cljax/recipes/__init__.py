"""Recipes: everything that a published row needs, keyed (method, stream, source, variant)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cljax.errors import UserError, check_known, check_text, given

__all__ = ["Recipe", "default", "recipe", "recipes"]


@dataclass(frozen=True)
class Recipe:
    """A run to be: printable, editable with ``replace``, and part of the run's config.

    Attributes:
      method, stream, net: names on the command line.
      source, variant: the table it aims at and whose values it takes.
      method_options, stream_options: keyword arguments of the factories.
      batch_size: examples an update. epochs: passes over each task.
      entries: of the accuracy matrix: "diagonal-last", "lower" or "full".
      status: published, or default, with what that means.
      notes: deviations.
      tuning: how values were chosen, if a sweep or a comparison did; see ``cljax.sweep.tuning``.
    """

    method: str
    stream: str
    net: str = "mlp:100,100"
    source: str = ""
    variant: str = ""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 10
    epochs: int = 1
    entries: str = "lower"
    status: str = "default, untuned"
    notes: str = ""
    tuning: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """SOURCE:VARIANT, as ``--recipe`` takes it, or that these are defaults."""
        if self.source:
            return f"{self.source}:{self.variant}"
        return "default, untuned" if self.tuning is None else "tuned"

    def replace(self, **changes: Any) -> Recipe:
        """A copy with fields changed; other names are options of the stream or the method."""
        from cljax.resolve import options_of, stream_factory

        fields = {f.name for f in dataclasses.fields(self)}
        streams = {option.name for option in options_of(stream_factory(self.stream))}
        own = {name: value for name, value in changes.items() if name in fields}
        of_stream = {n: v for n, v in changes.items() if n not in fields and n in streams}
        of_method = {n: v for n, v in changes.items() if n not in fields and n not in streams}
        if of_stream:
            own["stream_options"] = {**self.stream_options, **of_stream}
        if of_method:
            own["method_options"] = {**self.method_options, **of_method}
        return dataclasses.replace(self, **own)


def recipes() -> tuple[Recipe, ...]:
    """All recipes, the first of a (method, stream) pair being its default."""
    from cljax.recipes import itaml, lamaml, lamaml_table3, mer, mnemonics, teacher

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
        from cljax.methods import METHODS
        from cljax.streams import STREAMS

        for kind, name, known in (("method", method, METHODS), ("stream", stream, STREAMS)):
            if ":" not in name:  # else it is of one's own
                check_known(kind, name.removesuffix("[sample]"), known)
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
