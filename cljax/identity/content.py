"""What a thing is, as plain JSON: equal for equal content, in every process and on every machine.

    content(value) -> Content(json, unknown, packages)

Numbers, texts and containers stand as they are, arrays by their SHA-256. A function or class of an
installed package is its name; one of the user's own is the SHA-256 of its source with what it was
given as data: defaults, closure, attributes and the globals that its code reads, and theirs. What
has no content that can be read (a generator, a compiled object, random state) is listed.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cljax.identity.objects import generated, made_by_python, slots_of, state_of
from cljax.identity.outside import (
    ASKED_OF_ANYTHING,
    given_from_outside,
    outside,
    outside_by_name,
)
from cljax.identity.reads import Imported, imported, reads_of
from cljax.identity.sources import Package, own_source, package_of

__all__ = ["Content", "content", "contents", "digest_of"]

_LONG = 64  # entries of a list that is written out; longer ones by their SHA-256
_MOST = 20_000  # things that one content may be made of
_BY_TEXT = (
    PurePath, range, slice, complex, datetime.date, datetime.time, datetime.timedelta,
    decimal.Decimal, fractions.Fraction, type(jax.tree.structure(0)), types.GenericAlias,
    types.UnionType,
)  # fmt: skip
_ARRAYS = (np.ndarray, np.memmap, np.ma.MaskedArray)
_CACHED = type(functools.cache(len))


class Content(NamedTuple):
    """What a thing is.

    Attributes:
      json: plain JSON.
      unknown: what of it cannot be told, such as ``closure.rng (a Generator)``; () if nothing.
      packages: the installed packages, beside Python and cljax, that it uses, by name.
      own: the modules of the user's own that its code is of.
    """

    json: Any
    unknown: tuple[str, ...] = ()
    packages: Mapping[str, Package] = {}
    own: tuple[str, ...] = ()


class _Walk(NamedTuple):
    """What one walk has met: things by identity, kept alive, and what it found on the way."""

    seen: dict[int, tuple[int, Any]]
    unknown: dict[str, None]
    packages: dict[str, Package]
    own: dict[str, None]


def content(value: Any) -> Content:
    """What ``value`` is; see the module."""
    result = contents({"": value})
    return result._replace(json=result.json[""])


def contents(parts: Mapping[str, Any]) -> Content:
    """What several things are that make one, by name; an empty mapping stays one.

    Parts that are dicts are named entry by entry, in the order in which they stand.
    """
    walk = _Walk({}, {}, {}, {})

    def of(name: str, part: Any) -> Any:
        try:
            return _of(part, name, walk)
        except RecursionError:
            return _untold(name, "nested too deeply", walk)

    made = {
        name: {key: of(_join(name, key), entry) for key, entry in part.items()}
        if type(part) is dict and name
        else of(name, part)
        for name, part in parts.items()
    }
    return Content(made, tuple(walk.unknown), walk.packages, tuple(sorted(walk.own)))


def digest_of(made: Any) -> str:
    """SHA-256 of plain JSON."""
    text = json.dumps(made, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _of(value: Any, path: str, walk: _Walk) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return _of_array(value, path, walk)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, np.dtype):
        return {"dtype": str(value)}
    if isinstance(value, _BY_TEXT) or type(value).__module__ == "typing":
        return {type(value).__name__: str(value)}
    if isinstance(value, re.Pattern):
        return {"pattern": str(value.pattern), "flags": value.flags}
    if value is Ellipsis or value is NotImplemented:
        return {"constant": str(value)}
    named = _named(value, path, walk)
    if named is not None:
        return named
    if isinstance(value, (tuple, frozenset)):  # whether equal ones are one object is chance
        return _of_object(value, path, walk)
    if id(value) in walk.seen:
        return {"again": walk.seen[id(value)][0]}
    walk.seen[id(value)] = (len(walk.seen), value)
    if len(walk.seen) > _MOST:
        return _untold(path, "too large to read", walk)
    return _of_object(value, path, walk)


def _of_object(value: Any, path: str, walk: _Walk) -> Any:
    """What is met once: a container, a piece of code, or an object with attributes."""
    told = getattr(type(value), "told_by", None)  # of cljax's own types: a checksum of all of it
    if isinstance(told, types.FunctionType) and told.__module__.startswith("cljax."):
        brief = told(value)
        if brief is not None:
            return brief
    if isinstance(value, enum.Enum):
        return {"enum": _of(type(value), path, walk), "is": value.name}
    if isinstance(value, types.ModuleType):
        return _of_module(value, path, walk)
    if isinstance(value, type):
        return _of_class(value, path, walk)
    if isinstance(value, types.FunctionType):
        return _of_function(value, path, walk)
    if isinstance(value, types.MethodType):
        owner = _of(value.__self__, _join(path, "self"), walk)
        return {"method": _of(value.__func__, path, walk), "of": owner}
    if isinstance(value, functools.partial):
        return _of_partial(value, path, walk)
    if isinstance(value, (staticmethod, classmethod)):
        return {type(value).__name__: _of(value.__func__, path, walk)}
    if isinstance(value, property):
        parts = [_of(part, path, walk) for part in (value.fget, value.fset, value.fdel)]
        return {"property": parts}
    if isinstance(value, functools.cached_property):
        return {"cached_property": _of(value.func, path, walk)}
    if isinstance(value, types.CellType):
        return {"cell": _of(value.cell_contents, path, walk)} if _filled(value) else "unbound"
    if isinstance(value, Mapping):
        return _of_mapping(value, path, walk)
    if isinstance(value, (set, frozenset)):
        parts = [_of(entry, _join(path, "entry"), walk) for entry in value]
        own = type(value) not in (set, frozenset)
        kind = {"of": _of(type(value), path, walk), **_beside(value, path, walk)} if own else {}
        return {**kind, "set": sorted(parts, key=digest_of)}
    if isinstance(value, (list, tuple, collections.deque)):
        return _of_sequence(value, path, walk)
    return _of_instance(value, path, walk)


def _of_array(value: Any, path: str, walk: _Walk) -> Any:
    if isinstance(value, Tracer):
        return _untold(path, "a traced value", walk)
    try:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            impl, data = str(jax.random.key_impl(value)), jax.random.key_data(value)
            return {"key": impl, "is": _of_array(data, path, walk)}
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001, deleted, or on other machines
        return _untold(path, f"an array that cannot be read: {error}", walk)
    weak = {"weak": True} if getattr(value, "weak_type", False) else {}
    if array.dtype.hasobject:
        return {"objects": _of(array.tolist(), path, walk), "shape": list(array.shape)}
    if isinstance(value, np.ma.MaskedArray):
        weak = {"mask": _of_array(np.ma.getmaskarray(value), path, walk)}
    by = {"jax": True} if isinstance(value, jax.Array) else {}  # NumPy's arithmetic is another
    if isinstance(value, np.ndarray) and type(value) not in _ARRAYS:  # as that of a matrix is
        by = {"array": _of(type(value), path, walk), **_beside(value, path, walk)}
    described = {"dtype": str(array.dtype), "shape": list(array.shape), **by, **weak}
    if array.ndim == 0 and array.dtype.kind in "biuf" and bool(np.isfinite(array)):
        return {**described, "value": array.item()}
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {**described, "sha256": hashlib.sha256(flat.data).hexdigest()}


def _of_mapping(value: Mapping[Any, Any], path: str, walk: _Walk) -> Any:
    plain = type(value) in (dict, types.MappingProxyType)
    kind = {} if plain else {"mapping": _of(type(value), path, walk), **_beside(value, path, walk)}
    if all(type(key) is str for key in value):
        made: Any = {key: _of(entry, _join(path, key), walk) for key, entry in value.items()}
        names = list(value)
        if kind or names != sorted(names) or set(names) & {"again", "order"}:
            made = {**kind, "order": names, "entries": made}
        return made
    pairs = [
        [_of(key, path, walk), _of(entry, _join(path, str(key)), walk)]
        for key, entry in value.items()
    ]
    return {**kind, "pairs": pairs}


def _of_sequence(value: Sequence[Any], path: str, walk: _Walk) -> Any:
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and isinstance(fields, tuple):
        made = {name: _of(getattr(value, name), _join(path, name), walk) for name in fields}
        kind = {"tuple": _of(type(value), path, walk), **_beside(value, path, walk)}
        return {**kind, "fields": made}
    made = [_of(entry, _join(path, str(i)), walk) for i, entry in enumerate(value)]
    if len(made) > _LONG:
        made = [{"entries": len(made), "sha256": digest_of(made)}]
    if type(value) is list:
        return made
    if type(value) is tuple:
        return {"tuple": made}
    return {"sequence": _of(type(value), path, walk), **_beside(value, path, walk), "entries": made}


def _beside(value: Any, path: str, walk: _Walk) -> dict[str, Any]:
    """What a container of a class of its own holds beside its entries."""
    attributes = dict(getattr(value, "__dict__", {}))
    if package_of(type(value).__module__) is None:
        attributes |= {
            name: getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name)
        }
    for name in ("default_factory", "maxlen"):  # of a defaultdict, of a deque
        if isinstance(value, (collections.defaultdict, collections.deque)) and hasattr(value, name):
            attributes[name] = getattr(value, name)
    made = {key: _of(entry, _join(path, key), walk) for key, entry in sorted(attributes.items())}
    return {"attributes": made} if made else {}


def _of_partial(value: functools.partial[Any], path: str, walk: _Walk) -> Any:
    kind = {} if type(value) is functools.partial else {"of": _of(type(value), path, walk)}
    return {
        **kind,
        "partial": _of(value.func, path, walk),
        "arguments": _of(list(value.args), _join(path, "arguments"), walk),
        "keywords": _of(dict(value.keywords), _join(path, "keywords"), walk),
    }


def _of_function(value: types.FunctionType, path: str, walk: _Walk) -> Any:
    """A Python function; its own module and name, not those that a decorator copied onto it."""
    code, scope = value.__code__, value.__globals__
    module = str(scope.get("__name__"))
    name = f"{module}:{code.co_qualname}"
    if name == "functools:singledispatch.<locals>.wrapper":  # less what it remembers
        return {"function": name, "registry": _of(vars(value)["registry"], path, walk)}
    own = not generated(code, module) and _own(module, walk)
    made: dict[str, Any] = {"function": name}
    if own:
        result = own_source(code, scope)
        if result is None:
            return _untold(path, f"the function {name}, whose source is not there", walk)
        made |= {"source": result.sha256, "ends": list(result.ends)}
    cells = dict(zip(code.co_freevars, value.__closure__ or (), strict=True))
    parts = {
        "defaults": list(value.__defaults__ or ()),
        "keywords": dict(value.__kwdefaults__ or {}),
        "attributes": {
            key: entry
            for key, entry in sorted(value.__dict__.items())
            if not key.startswith("__") or key == "__wrapped__"
        },
    }
    made["closure"] = {
        key: _of(cell.cell_contents, _join(path, f"closure.{key}"), walk) if _filled(cell) else None
        for key, cell in sorted(cells.items())
    }
    for part, values in parts.items():
        made[part] = _of(values, _join(path, part), walk) if values else None
    if own:
        made["globals"] = _of_globals(code, scope, path, walk)
        _note_held(value, cells, path, walk)
    return {key: entry for key, entry in made.items() if entry}


def _of_globals(
    code: types.CodeType, scope: Mapping[str, Any], path: str, walk: _Walk
) -> dict[str, Any]:
    """The globals that code reads, by name; of the user's modules what is asked of them."""
    made: dict[str, Any] = {}
    builtins = scope.get("__builtins__", {})
    builtins = builtins if isinstance(builtins, dict) else vars(builtins)
    reads = reads_of(code)
    for name in reads.files:
        _note(name, path, walk)
    for chain in reads.chains:
        first = chain[0]
        if first not in scope:
            if first in builtins:
                _note(outside(chain, builtins[first]), path, walk)
            continue
        value = scope[first]
        _note(outside(chain, value), path, walk)
        name, rest = first, chain[1:]
        # What the code asks of a module of the user's, and no more of it.
        while isinstance(value, types.ModuleType) and rest and rest[0] in vars(value):
            if not _own(value.__name__, walk):
                break
            value, name, rest = getattr(value, rest[0]), f"{name}.{rest[0]}", rest[1:]
        if name not in made:
            made[name] = _of(value, _join(path, name), walk)
    for module, level, names in reads.imports:
        value = _import(module, level, scope, path, walk)
        for name in names if value is not None else ():
            made[f"{module}.{name}"] = _of(getattr(value, name, None), _join(path, name), walk)
        if value is not None and not names:
            made[module] = _of(value, _join(path, module), walk)
    for start, asked in reads.asked:
        _note(_outside_import(start, asked, scope), path, walk)
    return made


def _import(
    module: str, level: int, scope: Mapping[str, Any], path: str, walk: _Walk
) -> types.ModuleType | None:
    """The module of the user's that code imports as it runs; None for a package's, by its name."""
    if not level and not _own(module, walk):
        return None
    result = imported(module, level, scope.get("__package__"))
    if result is None:
        _untold(_join(path, module), "a module that cannot be imported", walk)
    return result


def _outside_import(
    start: Imported, asked: tuple[str, ...], scope: Mapping[str, Any]
) -> str | None:
    """What code asks for of what it imports as it runs; no package is imported to find it."""
    names = (*start.names, *asked)
    if start.level or package_of(start.module) is None:
        result = imported(start.module, start.level, scope.get("__package__"))
    else:
        result = sys.modules.get(start.module)
    if result is not None:
        return outside((start.module, *names), result)
    return None if start.level else outside_by_name(start.module, names)


def _note_held(
    value: types.FunctionType, cells: Mapping[str, types.CellType], path: str, walk: _Walk
) -> None:
    """Notes what code asks of its closure and of its arguments' defaults."""
    code, defaults = value.__code__, value.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    held = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    held |= value.__kwdefaults__ or {}
    held |= {name: cell.cell_contents for name, cell in cells.items() if _filled(cell)}
    for name, *asked in reads_of(code).held:
        if name in held:
            _note(outside((name, *asked), held[name]), path, walk)
        elif name != "self" or len(asked) > 1:
            _note(next((one for one in asked if one in ASKED_OF_ANYTHING), None), path, walk)


def _note(asked: str | None, path: str, walk: _Walk) -> None:
    if asked is not None:
        _untold(_join(path, asked), "what it gives stands in no source", walk)


def _of_module(value: types.ModuleType, path: str, walk: _Walk) -> Any:
    made = {}
    for name, entry in sorted(vars(value).items()):
        if not name.startswith("__"):
            made[name] = _of(entry, _join(path, name), walk)
    return {"module": value.__name__, "values": made}


def _of_class(value: type, path: str, walk: _Walk) -> Any:
    """A class that no name tells, with its bases and everything that its body left."""
    made = {}
    for key, entry in sorted(vars(value).items()):
        if made_by_python(key, entry):
            continue
        if key == "__dataclass_fields__":
            made[key] = [
                [field.name, str(field.type), _of(field.default_factory, _join(path, key), walk)]
                for field in entry.values()
            ]
            continue
        made[key] = _of(entry, _join(path, key), walk)
    bases = [_of(base, path, walk) for base in value.__bases__]
    name = f"{value.__module__}:{value.__qualname__}"
    kind = {} if package_of(type(value).__module__) else {"of": _of(type(value), path, walk)}
    return {"class": name, **kind, "bases": bases, "attributes": made}


def _of_instance(value: Any, path: str, walk: _Walk) -> Any:
    """An object by its class and attributes, if it has nothing else."""
    kind = type(value)
    if isinstance(value, types.BuiltinFunctionType):
        return _of_builtin(value, path, walk)
    if isinstance(value, logging.Logger):
        return {"logger": value.name}
    state, wrapped = state_of(value), getattr(value, "__wrapped__", None)
    if state is None and wrapped is not None and not _own(kind.__module__, walk):
        if isinstance(value, _CACHED):
            return _untold(path, "it keeps earlier results", walk)
        # What jax.jit makes of a function.
        return {"wrapped": _of(wrapped, path, walk), "by": f"{kind.__module__}:{kind.__qualname__}"}
    if state is None:
        article = "an" if kind.__name__[:1] in "AEIOUaeiou" else "a"
        return _untold(path, f"{article} {kind.__name__}", walk)
    made = {key: _of(entry, _join(path, key), walk) for key, entry in sorted(state.items())}
    return {"object": _of(kind, path, walk), "attributes": made}


def _of_builtin(value: types.BuiltinFunctionType, path: str, walk: _Walk) -> Any:
    owner = value.__self__
    if owner is None or isinstance(owner, (types.ModuleType, type)):
        home = "__module__" if isinstance(owner, type) else "__name__"
        module = value.__module__ or getattr(owner, home, "builtins")
        if not _own(module, walk):
            if given_from_outside(f"{module}.{value.__qualname__}"):
                return _untold_value(f"{module}.{value.__qualname__}", path, walk)
            return {"function": f"{module}:{value.__qualname__}"}
        return _untold(path, f"the compiled function {value.__qualname__}", walk)
    return {"method": value.__name__, "of": _of(owner, _join(path, "self"), walk)}


def _named(value: Any, path: str, walk: _Walk) -> Any:
    """An installed package's own object, such as ``jax.nn.relu``, by where it is found."""
    if isinstance(value, types.ModuleType):
        return None if _own(value.__name__, walk) else {"module": value.__name__}
    if isinstance(value, type(os.environ)):
        return _untold_value("os.environ", path, walk)
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module not in sys.modules:
        return None
    result: Any = sys.modules[module]
    for part in name.split("."):
        result = getattr(result, part, None)
    if result is not value or _own(module, walk):
        return None
    if given_from_outside(f"{module}.{name}"):
        return _untold_value(f"{module}.{name}", path, walk)
    kind = {types.FunctionType: "function", type: "class"}.get(type(value), "object")
    return {kind: f"{module}:{name}"}


def _own(module: str, walk: _Walk) -> bool:
    """Whether a module is the user's; the packages of others are noted."""
    package = package_of(module)
    if package is None:
        walk.own[module] = None
    elif package.name not in ("python", "cljax"):
        walk.packages[package.name] = package
    return package is None


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _untold_value(result: str, path: str, walk: _Walk) -> Any:
    return _untold(path, f"{result}: what it gives stands in no source", walk)


def _untold(path: str, what: str, walk: _Walk) -> Any:
    walk.unknown[f"{path} ({what})" if path else what] = None
    return {"unknown": what}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
