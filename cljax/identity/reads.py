"""Which names of its module a piece of code reads, and what it reads that no value tells."""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

__all__ = ["Reads", "imported", "outside", "reads_of"]

# Built-in functions whose results no source or value tells.
_OUTSIDE = frozenset({"open", "eval", "exec", "globals", "vars", "input", "__import__"})
# The same of modules: everything, or but for what is made of a seed that the code holds.
_OF_MODULES: Mapping[str, frozenset[str] | None] = {
    "random": frozenset({"Random"}),
    "numpy.random": frozenset(
        {"default_rng", "Generator", "RandomState", "SeedSequence", "PCG64", "Philox", "MT19937"}
    ),
    "secrets": frozenset(),
    "uuid": frozenset(),
    "time": frozenset({"sleep", "struct_time"}),
}
_FILES = frozenset({
    "load", "loadtxt", "genfromtxt", "fromfile", "memmap", "environ", "getenv", "import_module",
    "open", "argv", "modules", "stdin",
})  # fmt: skip
_WITH_FILES = frozenset(
    {"numpy", "jax.numpy", "os", "io", "sys", "pickle", "json", "importlib", "joblib"}
)
_OF_PATHS = frozenset({"read_text", "read_bytes"})  # asked of anything
_CLOCKS = frozenset({"now", "utcnow", "today"})  # asked of a class of datetime


class Reads(NamedTuple):
    """``chains`` such as ("RATE",) or ("settings", "rate"); ``imports`` (module, level, names).

    ``files``: the attributes by which it reads files, whatever they are asked of.
    """

    chains: tuple[tuple[str, ...], ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    files: tuple[str, ...]


@functools.lru_cache(4096)
def reads_of(code: types.CodeType) -> Reads:
    """The globals that code and the code inside it name, sorted, with the attributes asked of them.

    Names alone are read off the code; nothing depends on how it was compiled.
    """
    chains: set[tuple[str, ...]] = set()
    imports: set[tuple[str, int, tuple[str, ...]]] = set()
    files: set[str] = set()
    for own in _inside(code):
        files |= _OF_PATHS & set(own.co_names)
        chain: tuple[str, ...] = ()
        before: list[Any] = [0, None]
        for step in dis.get_instructions(own):
            if chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                chain = (*chain, step.argval)
                continue
            if chain:
                chains.add(chain)
            chain = (step.argval,) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
            if step.opname == "IMPORT_NAME":
                level, names = before
                imports.add((step.argval, level or 0, tuple(names or ())))
            before = [before[1], step.argval]
        if chain:
            chains.add(chain)
    return Reads(tuple(sorted(chains)), tuple(sorted(imports)), tuple(sorted(files)))


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _inside(constant)


def outside(chain: tuple[str, ...], base: Any) -> str | None:
    """What a chain asks for that no value tells, such as "open" or "numpy.random.normal".

    Args:
      base: the value of the chain's first name: a module, or a built-in function.
    """
    if isinstance(base, types.BuiltinFunctionType):
        if base.__module__ == "time":  # from time import time
            return None if base.__name__ == "sleep" else f"time.{base.__name__}"
        from_files = base.__module__ in ("builtins", "io", "_io") and base.__name__ in _OUTSIDE
        return chain[0] if from_files else None
    asked = chain[1] if len(chain) > 1 else ""
    if isinstance(base, type) and base.__module__ == "datetime":
        return ".".join(chain) if asked in _CLOCKS else None
    if isinstance(base, PurePath):
        return ".".join(chain[:2]) if asked == "open" else None
    if isinstance(base, types.FunctionType):  # from numpy import load
        path = f"{base.__module__}.{base.__name__}"
        return path if base.__module__ in _WITH_FILES and base.__name__ in _FILES else None
    if not isinstance(base, types.ModuleType):
        return None
    path = ".".join([base.__name__, *chain[1:]])
    for module, harmless in _OF_MODULES.items():
        if path.startswith(f"{module}."):
            first = path[len(module) + 1 :].partition(".")[0]
            return None if harmless and first in harmless else path
    if base.__name__ == "datetime" and not _CLOCKS.isdisjoint(chain[2:3]):
        return path
    return path if base.__name__ in _WITH_FILES and asked in _FILES else None


def imported(name: str, level: int, package: str | None) -> types.ModuleType | None:
    """The module that an import inside a function gives; None if it cannot be had."""
    try:
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        return sys.modules.get(full) or importlib.import_module(full)
    except Exception:  # noqa: BLE001, whatever a module's own code raises
        return None
