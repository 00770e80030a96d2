"""``write``: the API reference, one page a module, made by pdoc from docstrings.

    undocumented(modules)  public names without a docstring; while there is one, nothing is written
    index.html             all modules with their first sentence; search goes over everything

Public is what a module names in ``__all__``, with the methods of its classes, and every module
whose name has no underscore in front. The command is ``cljax docs OUT``; it needs the extra
``docs``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from cljax.errors import UserError, check_path
from cljax.runner.artefacts import write_bytes

__all__ = ["modules_of", "undocumented", "write"]

_SHOWN = 5  # names in a complaint
_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #1a1a1a; } table { border-collapse: collapse; } a { color: #00507d; }
td { padding: .2rem 1rem .2rem 0; vertical-align: top; border-bottom: 1px solid #ddd; }
td:first-child { font-family: monospace; white-space: nowrap; }"""


def modules_of(package: ModuleType) -> list[ModuleType]:
    """A package and all public modules in it, imported, in order of their names."""
    names = [package.__name__]
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            names.append(found.name)
    return [importlib.import_module(name) for name in sorted(names)]


def undocumented(modules: Iterable[ModuleType]) -> list[str]:
    """Full names of public modules, functions, classes and methods that have no docstring.

    Constants, aliases of types and fields need none.
    """
    return [name for module in modules for name in _missing(module)]


def _missing(module: ModuleType) -> Iterator[str]:
    if not _text(module):
        yield module.__name__
    for name in getattr(module, "__all__", ()):
        thing, full = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            # What NamedTuple and dataclass make of the fields is no documentation.
            if not _text(thing) or _text(thing).startswith(f"{thing.__name__}("):
                yield full
            yield from (f"{full}.{own}" for own in _undocumented_methods(thing))
        elif _is_function(thing) and not _text(thing):
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
    return any(_text(getattr(base, name)) for base in thing.__mro__ if name in vars(base))


def _is_function(thing: Any) -> bool:
    return isinstance(thing, functools.partial) or inspect.isroutine(inspect.unwrap(thing))


def _text(thing: Any) -> str:
    """An object's own docstring, not that of its class."""
    text = getattr(thing, "__doc__", None) or ""
    inherited = isinstance(thing, functools.partial) and text == functools.partial.__doc__
    return "" if inherited else text


def write(folder: str | Path, package: str = "cljax") -> Path:
    """Writes the reference of a package into a folder, and returns its first page.

    Raises:
      UserError: for a public name without a docstring, where pdoc is not there, or if the folder
        cannot be written.
    """
    check_path(folder=folder)
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to write the reference into.")
    modules = modules_of(importlib.import_module(package))
    names = undocumented(modules)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"Without a docstring: {', '.join(names[:_SHOWN])}{more}; write one for every public "
            "name."
        )
    try:
        from pdoc import doc, render
    except ImportError:
        raise UserError(
            "The reference is made by pdoc, which is not installed; pip install 'cljax[docs]'."
        ) from None
    render.configure(docformat="google", show_source=False)
    # Not ``pdoc.pdoc``, which passes over modules that a package's ``__all__`` does not name.
    pages = {module.__name__: doc.Module(module) for module in modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # annotations that pdoc cannot evaluate stay as they stand
        files = {
            _place(name): _linked(render.html_module(page, pages), name)
            for name, page in pages.items()
        }
    files |= {"search.js": render.search_index(pages), "index.html": _index(modules)}
    try:
        for name, text in files.items():
            write_bytes(folder / name, text.encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder / "index.html"


def _place(module: str) -> str:
    """A module's page, as pdoc links to it."""
    return f"{module.replace('.', '/')}.html"


def _linked(page: str, module: str) -> str:
    """The page with a way back to the index."""
    up, begin = "../" * module.count("."), '<nav class="pdoc">'
    link = f'<a class="pdoc-button module-list-button" href="{up}index.html">All modules</a>'
    return page.replace(begin, f"{begin}\n{link}", 1)


def _index(modules: list[ModuleType]) -> str:
    """A page with all modules, and what each is in a line."""
    rows = []
    for module in modules:
        name, line = module.__name__, _text(module).strip().partition("\n")[0].replace("``", "")
        link = f'<a href="{_place(name)}">{name}</a>'
        rows.append(f"<tr><td>{link}</td><td>{escape(line)}</td></tr>")
    title = f"{modules[0].__name__} {getattr(modules[0], '__version__', '')}".strip()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}: reference</h1><table>"
        f"{''.join(rows)}</table></body></html>\n"
    )
