"""``pages``: a page of Markdown for each public module, and one with all of them.

A name is documented where it is defined; a module that only gathers it links there. The pages of
modules stay out of the tree at the side, which Sphinx would write into every page again: some two
hundred of them take it minutes. They are reached from the first page, from each other, by the index
and by search.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from cljax.options import Options, documentation
from cljax.site.docstrings import first_line, markdown
from cljax.site.names import foreign, is_function, text_of

__all__ = ["link", "pages"]

_LONGEST = 60  # characters of a value that is shown
_NAME = re.compile(r"(?<![\w.\"'])[A-Za-z_]\w*(?![\w.\"'])")  # in a type; not words of a text


def pages(modules: Sequence[ModuleType]) -> dict[str, str]:
    """Path -> Markdown, ``reference/index.md`` first."""
    by_name = {module.__name__: module for module in modules}
    made = {"reference/index.md": _index(modules)}
    return made | {f"reference/{name}.md": _page(name, by_name) for name in by_name}


def link(module: str, name: str, shown: str) -> str:
    """A reference to a documented name, which may be shown by another one."""
    return f"{{py:obj}}`{shown} <{module}.{name}>`"


def _index(modules: Sequence[ModuleType]) -> str:
    root = modules[0]
    rooms = [m for m in modules if m.__name__.count(".") == 1]
    lines = [
        "# Reference", "", "Every public name, where it is defined. What a user types stands in",
        f"[{root.__name__}]({root.__name__}.md); the rooms below are for those who build on the",
        "pieces. The search box finds names and words.", "",
    ]  # fmt: skip
    lines += _table(rooms)
    return "\n".join(lines) + "\n"


def _table(modules: Sequence[ModuleType]) -> list[str]:
    rows = [
        f"| [{m.__name__}]({m.__name__}.md) | {first_line(text_of(m)).replace('|', ' ')} |"
        for m in modules
    ]
    return ["| module | what it is |", "| --- | --- |", *rows]


def _page(name: str, modules: Mapping[str, ModuleType]) -> str:
    module = modules[name]
    inner = [
        other
        for path, other in modules.items()
        if path.startswith(f"{name}.") and "." not in path[len(name) + 1 :]
    ]
    lines = [
        "---", "orphan: true", "---", "", f"# {name}", "", _way(name), "",
        f":::{{py:module}} {name}", ":::", "", markdown(text_of(module)), "",
    ]  # fmt: skip
    gathered, defined = [], []
    for each in getattr(module, "__all__", ()):
        thing = getattr(module, each)
        home = home_of(thing, each, modules)
        if home not in (None, (name, each)):
            gathered.append(f"| {link(*home, each)} | {_first(thing)} |")
        elif not inspect.ismodule(thing):
            defined += [*_entry(each, thing, modules), ""]
    if gathered:
        lines += ["## Gathered here", "", "| name | what it is |", "| --- | --- |", *gathered, ""]
    if defined:
        lines += ["## Names", "", *defined]
    if inner and name.count("."):
        lines += ["## Modules", "", *_table(inner)]
    return "\n".join(lines) + "\n"


def _way(name: str) -> str:
    """Links to the modules that a module is in."""
    parts = name.split(".")
    above = [".".join(parts[:i]) for i in range(1, len(parts))]
    links = ["[Reference](index.md)", *(f"[{module}]({module}.md)" for module in above)]
    return " / ".join(links)


def home_of(thing: Any, name: str, modules: Mapping[str, ModuleType]) -> tuple[str, str] | None:
    """The public module that defines a thing, and its name there, if one does.

    What does not know its module, such as a type's alias, is at home in the innermost one that
    names it.
    """
    home, own = str(getattr(thing, "__module__", "")), str(getattr(thing, "__name__", name))
    if home in modules and _names(modules[home], own, thing):
        return home, own
    holders = [path for path, module in modules.items() if _names(module, name, thing)]
    return (max(holders, key=lambda path: path.count(".")), name) if holders else None


def _names(module: ModuleType, name: str, thing: Any) -> bool:
    return name in getattr(module, "__all__", ()) and getattr(module, name, None) is thing


def _first(thing: Any) -> str:
    documented = inspect.isclass(thing) or inspect.ismodule(thing) or is_function(thing)
    return first_line(text_of(thing)).replace("|", " ") if documented else ""


def _entry(name: str, thing: Any, modules: Mapping[str, ModuleType]) -> Iterator[str]:
    elsewhere = foreign(thing, next(iter(modules)))
    if elsewhere:
        yield from [f":::{{py:data}} {name}", "", f"`{elsewhere}`", ":::"]
    elif inspect.isclass(thing):
        yield from _class(name, thing, modules)
    elif is_function(thing):
        shown = _signature(thing, modules)
        yield from [f":::{{py:function}} {name}{shown}", "", markdown(text_of(thing)), ":::"]
    else:
        shown = repr(thing)
        shown = f" = {shown}" if len(shown) <= _LONGEST and " at 0x" not in shown else ""
        yield from [f":::{{py:data}} {name}", "", f"`{name}{shown}`" if shown else "", ":::"]


def _class(name: str, thing: type, modules: Mapping[str, ModuleType]) -> Iterator[str]:
    is_options = issubclass(thing, Options)
    shown = "" if is_options else _signature(thing, modules)
    yield from [f"::::{{py:class}} {name}{shown}", "", markdown(text_of(thing)), ""]
    if is_options:
        texts = documentation(thing)
        for field in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ():
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            default = default if " at 0x" not in default else ""
            said = markdown(texts.get(field.name, "")).replace("\n", " ")
            yield f"- `{field.name}: {field.type}{default}`{f' {said}' if said else ''}"
        yield ""
    for own, value in vars(thing).items():
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if own.startswith("_") or not text_of(value):
            continue
        if isinstance(value, property):
            yield f":::{{py:property}} {own}"
        elif inspect.isfunction(value):
            yield f":::{{py:method}} {own}{_signature(value, modules)}"
        else:
            continue
        yield from ["", markdown(text_of(value)), ":::", ""]
    yield "::::"


def _signature(thing: Any, modules: Mapping[str, ModuleType]) -> str:
    """Parameters and result; names of ours in their types refer to where they are defined."""
    from sphinx.util.inspect import stringify_signature

    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # of what is not written in Python
        return "()"
    names = vars(sys.modules.get(getattr(thing, "__module__", None) or "", object))

    def named(match: re.Match[str]) -> str:
        home = home_of(names[match[0]], match[0], modules) if match[0] in names else None
        return f"~{home[0]}.{home[1]}" if home else match[0]

    def led(annotation: Any) -> Any:
        annotation = getattr(annotation, "__forward_arg__", annotation)  # of a named tuple
        return _NAME.sub(named, annotation) if isinstance(annotation, str) else annotation

    parameters = [p.replace(annotation=led(p.annotation)) for p in signature.parameters.values()]
    if parameters and parameters[0].name == "self":
        del parameters[0]
    signature = signature.replace(
        parameters=parameters, return_annotation=led(signature.return_annotation)
    )
    return stringify_signature(signature, unqualified_typehints=True).replace("\n", " ")
