"""Public names of a package: what the reference shows, and which of them lack a docstring.

Public is what a module names in ``__all__``, with the methods of its classes, and every module
whose name has no underscore in front.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from cljax.errors import UserError

__all__ = ["check_documented", "foreign", "is_function", "modules_of", "text_of", "undocumented"]

_SHOWN = 5  # names in a complaint


def modules_of(package: ModuleType) -> list[ModuleType]:
    """A package and all public modules in it, imported, in order of their names."""
    names = [package.__name__]
    for result in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(part.startswith("_") for part in result.name.split(".")):
            names.append(result.name)
    return [importlib.import_module(name) for name in sorted(names)]


def check_documented(modules: Iterable[ModuleType]) -> None:
    """Raises UserError for public names without a docstring."""
    names = undocumented(modules)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"Without a docstring: {', '.join(names[:_SHOWN])}{more}; write one for every public "
            "name."
        )


def undocumented(modules: Iterable[ModuleType]) -> list[str]:
    """Full names of public modules, functions, classes and methods that have no docstring.

    Constants, aliases of types, fields and what is another package's need none.
    """
    return [name for module in modules for name in _missing(module)]


def _missing(module: ModuleType) -> Iterator[str]:
    if not text_of(module):
        yield module.__name__
    for name in getattr(module, "__all__", ()):
        thing, full = getattr(module, name), f"{module.__name__}.{name}"
        if foreign(thing, module.__name__.partition(".")[0]):
            continue
        if inspect.isclass(thing):
            # What NamedTuple and dataclass make of the fields is no documentation.
            if not text_of(thing) or text_of(thing).startswith(f"{thing.__name__}("):
                yield full
            yield from (f"{full}.{own}" for own in _undocumented_methods(thing))
        elif is_function(thing) and not text_of(thing):
            yield full


def _undocumented_methods(thing: type) -> Iterator[str]:
    fields = getattr(thing, "__annotations__", {})
    for name, value in vars(thing).items():
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        own = isinstance(value, property) or inspect.isfunction(value)
        if own and not name.startswith("_") and name not in fields and not _told(thing, name):
            yield name


def _told(thing: type, name: str) -> bool:
    """Whether a method is documented, here or where a base class says what it is for."""
    return any(text_of(getattr(base, name)) for base in thing.__mro__ if name in vars(base))


def foreign(thing: Any, package: str) -> str:
    """The full name of a class or function of another package; empty for ours and for values."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""
    home = thing.__module__ or package
    return "" if home.partition(".")[0] == package else f"{home}.{thing.__qualname__}"


def is_function(thing: Any) -> bool:
    """Whether a thing is a function, also one that is compiled, wrapped or partly applied."""
    return isinstance(thing, functools.partial) or inspect.isroutine(inspect.unwrap(thing))


def text_of(thing: Any) -> str:
    """An object's own docstring, not that of its class."""
    text = getattr(thing, "__doc__", None) or ""
    inherited = isinstance(thing, functools.partial) and text == functools.partial.__doc__
    return "" if inherited else text
