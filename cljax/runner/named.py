"""The names that give a run again, by which a folder alone resumes it and predicts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cljax import resolve
from cljax.errors import UserError
from cljax.method import Method
from cljax.methods import METHODS
from cljax.recipes import Recipe
from cljax.runner.config import plain
from cljax.runner.parts import is_named, net_name
from cljax.streams.base import Stream
from cljax.streams.options import StreamSource
from cljax.types import Net

__all__ = ["begun_as", "by_names"]


def by_names(
    what: Recipe | Method | str,
    stream: Stream | StreamSource | str | None,
    recipe: Recipe,
    net: Net | str,
) -> dict[str, Any] | None:
    """The fields of a recipe that is this run; None where no names say what it was begun with.

    An object of the library has a name: a method and a stream with the options in which they differ
    from those of theirs, a network with its widths.

    Args:
      recipe: the run's; for a method that is an object it says no options.
    """
    if isinstance(stream, Stream) or not (isinstance(net, str) or is_named(net)):
        return None
    if isinstance(what, Method):
        options = _options_by_name(what)
        if options is None:
            return None
        named = stream if isinstance(stream, str) else recipe.stream
        recipe = Recipe(what.name, named, method_options=options)
    if isinstance(stream, StreamSource):
        recipe = recipe.on(stream)
    fields = begun_as(recipe, net if isinstance(net, str) else net_name(net))
    if fields is None or not isinstance(stream, StreamSource):
        return fields
    source = resolve.stream_source(fields["stream"])
    return fields if source.replace(**fields["stream_options"]) == stream else None


def begun_as(recipe: Recipe, net: str) -> dict[str, Any] | None:
    """The recipe's fields, if JSON can hold them without loss."""
    fields = {**dataclasses.asdict(recipe), "net": net}
    try:
        simple = json.loads(json.dumps(fields))
    except TypeError:
        return None
    return simple


def _options_by_name(method: Method) -> dict[str, Any] | None:
    """Those that make the method again from its name; None where none do."""
    default = METHODS.get(method.name)
    if default is None or type(default) is not type(method):
        return None
    recorded, usual = plain(method.recorded), plain(default.recorded)
    options = {name: value for name, value in recorded.items() if value != usual.get(name)}
    try:
        again = resolve.method(method.name, **json.loads(json.dumps(options)))
    except (UserError, TypeError):
        return None
    return options if plain(again.recorded) == recorded else None
