"""Which names a piece of code reads: of its module, of what it imports as it runs, of its closure.

All of it is read off the code, so nothing depends on what was run.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cljax.identity.outside import ASKED_OF_ANYTHING

__all__ = ["Imported", "Reads", "imported", "reads_of"]

_BETWEEN = ("CACHE", "EXTENDED_ARG", "NOT_TAKEN", "PUSH_NULL")  # steps that tell nothing
_FROM_LOCALS = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_STORES = ("STORE_FAST", "STORE_DEREF", "STORE_NAME", "STORE_GLOBAL")
_FROM_MODULE = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


class Imported(NamedTuple):
    """What a name stands for that code imports as it runs, such as numpy or os.environ."""

    module: str
    level: int
    names: tuple[str, ...] = ()


class Reads(NamedTuple):
    """``chains`` such as ("RATE",) or ("settings", "rate"); ``imports`` (module, level, names).

    ``held``: the same chains from a name of the closure or of an argument. ``asked``: from what
    code imports as it runs, or gives another name. ``files``: attributes by which it reads files,
    whatever they are asked of.
    """

    chains: tuple[tuple[str, ...], ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    held: tuple[tuple[str, ...], ...]
    asked: tuple[tuple[Imported, tuple[str, ...]], ...]
    files: tuple[str, ...]


# What a name of a function stands for: what it imported, or a chain from a name of its module.
_Meaning = Imported | tuple[str, ...]
_Meanings = Mapping[str, frozenset[_Meaning]]


class _Found(NamedTuple):
    chains: set[tuple[str, ...]]
    imports: set[tuple[str, int, tuple[str, ...]]]
    held: set[tuple[str, ...]]
    asked: set[tuple[Imported, tuple[str, ...]]]
    files: set[str]


@functools.lru_cache(4096)
def reads_of(code: types.CodeType) -> Reads:
    """What code and the code inside it name, sorted, with the attributes asked of it.

    Names alone are read off the code; nothing depends on how it was compiled.
    """
    result = _Found(set(), set(), set(), set(), set())
    given = {*code.co_freevars, *code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    of_module: dict[str, frozenset[_Meaning]] = {}
    for own in _inside(code):  # ``global np; import numpy as np``
        of_module |= _bound(own, {}, ("STORE_GLOBAL",))
    _read(code, {}, of_module, frozenset(given), result)
    return Reads(
        tuple(sorted(result.chains)),
        tuple(sorted(result.imports)),
        tuple(sorted(result.held)),
        tuple(sorted(result.asked)),
        tuple(sorted(result.files)),
    )


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _inside(constant)


def _steps(code: types.CodeType) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.opname not in _BETWEEN]


def _name(step: dis.Instruction, kinds: tuple[str, ...]) -> str | None:
    """The name that a step loads or stores; of two at once, the last loaded or first stored."""
    if not step.opname.startswith(kinds):
        return None
    if isinstance(step.argval, str):
        return step.argval
    return step.argval[0 if step.opname.startswith("STORE_") else -1]


def _bound(code: types.CodeType, outer: _Meanings, kinds: tuple[str, ...]) -> _Meanings:
    """What the names stand for to which code assigns an import, or a chain of another name."""
    made: dict[str, frozenset[_Meaning]] = {}
    meant: frozenset[_Meaning] = frozenset()
    base, listed, before = Imported("", 0), None, [0, None]

    def of(name: str | None, local: bool) -> frozenset[_Meaning]:
        known = made.get(name or "", frozenset()) | outer.get(name or "", frozenset())
        return known if known or local or name is None else frozenset({(name,)})

    for step in _steps(code):
        if step.opname == "IMPORT_NAME":
            level, listed = before
            base = Imported(step.argval, level or 0)
            top = base if listed or level else Imported(step.argval.partition(".")[0], 0)
            meant = frozenset({top})
        elif step.opname == "IMPORT_FROM":  # of ``import a.b as c`` too
            meant = frozenset({base._replace(names=(step.argval,)) if listed else base})
        elif step.opname.startswith(_STORES):
            name = _name(step, kinds)
            if meant and name is not None:
                made[name] = made.get(name, frozenset()) | meant
            both = step.opname == "STORE_FAST_LOAD_FAST"
            meant = of(step.argval[1], True) if both else frozenset()
        elif step.opname in _ATTRIBUTES:
            meant = frozenset(
                one._replace(names=(*one.names, step.argval))
                if isinstance(one, Imported)
                else (*one, step.argval)
                for one in meant
            )
        elif step.opname not in ("SWAP", "POP_TOP"):  # which stand before a store
            local = not step.opname.startswith(_FROM_MODULE)
            meant = of(_name(step, (*_FROM_LOCALS, *_FROM_MODULE)), local)
        before = [before[1], step.argval]
    return made


def _read(
    code: types.CodeType,
    outer: _Meanings,
    of_module: _Meanings,
    given: frozenset[str],
    result: _Found,
) -> None:
    """Adds what code reads; ``outer`` is what the names around it stand for."""
    own = {**outer, **_bound(code, outer, _STORES[:3])}
    base: tuple[str, str] | None = None  # kind and name of what a chain begins with
    asked: list[str] = []
    before: list[Any] = [0, None]

    def end() -> None:
        kind, name = base or ("", "")
        attributes = tuple(asked)
        if kind == "module":
            result.chains.add((name, *attributes))
        meanings = (of_module if kind == "module" else own if kind else {}).get(name, ())
        for meaning in meanings:
            if isinstance(meaning, Imported):
                result.asked.add((meaning, attributes))
            elif attributes:
                result.chains.add((*meaning, *attributes))
        if kind == "local" and not meanings and name in given:
            result.held.add((name, *attributes))
        elif kind != "module" and not meanings:
            mine = {asked[0]} if name == "self" and asked else set()
            result.files.update((ASKED_OF_ANYTHING & set(attributes)) - mine)

    for step in _steps(code):
        if step.opname in _ATTRIBUTES:
            asked.append(step.argval)
            continue
        end()
        local, of_scope = _name(step, _FROM_LOCALS), _name(step, _FROM_MODULE)
        if local is not None and not isinstance(step.argval, str):  # two names in one step
            base = "local", step.argval[0]
            asked.clear()
            end()
        if step.opname == "STORE_FAST_LOAD_FAST":
            local = step.argval[1]
        if of_scope is not None and step.opname == "LOAD_NAME" and of_scope in own:
            local, of_scope = of_scope, None
        base = ("module", of_scope) if of_scope else ("local", local) if local else None
        asked.clear()
        if step.opname == "IMPORT_NAME":
            level, names = before
            result.imports.add((step.argval, level or 0, tuple(names or ())))
        before = [before[1], step.argval]
    end()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            taken = {*constant.co_varnames, *constant.co_cellvars}
            inner = {name: meaning for name, meaning in own.items() if name not in taken}
            _read(constant, inner, of_module, given - taken, result)


def imported(name: str, level: int, package: str | None) -> types.ModuleType | None:
    """The module that an import inside a function gives; None if it cannot be had."""
    try:
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        return sys.modules.get(full) or importlib.import_module(full)
    except Exception:  # noqa: BLE001, whatever a module's own code raises
        return None
