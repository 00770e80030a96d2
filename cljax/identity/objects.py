"""What an object or a class holds that makes it what it is, less what Python or a library adds."""

from __future__ import annotations

import functools
import io
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cljax.identity.sources import package_of

__all__ = ["generated", "made_by_python", "slots_of", "state_of"]

# Of classes: what Python and its generators of classes make of the rest.
_MADE = frozenset({
    "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__",
    "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
    "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__slots__",
    "__static_attributes__", "__weakref__", "_abc_impl",
})  # fmt: skip
_RANDOM = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)
# Of a module of Flax Linen: what it keeps of itself once it is made, bound or inside another.
_OF_LINEN = frozenset({
    "_compact_name_scope_modules", "_id", "_parent_ref", "_state", "parent", "scope",
})  # fmt: skip


class _Named(NamedTuple):
    field: int


_DESCRIPTORS = (
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType,
    type(_Named.field),
)  # fmt: skip


def made_by_python(name: str, entry: Any) -> bool:
    """Whether an entry of a class's namespace is what Python makes of the rest of its body."""
    return name in _MADE or isinstance(entry, _DESCRIPTORS)


def generated(code: types.CodeType, module: str) -> bool:
    """Whether a dataclass or named tuple made a function from its fields, which stand beside it."""
    of_tuple = module.startswith("namedtuple_")
    return code.co_filename == "<string>" and (
        of_tuple or code.co_qualname.startswith("__create_fn__.")
    )


def state_of(value: Any) -> dict[str, Any] | None:
    """An object's attributes; None where it holds more than those, or changes by being used."""
    kind = type(value)
    if isinstance(value, (io.IOBase, Iterator, types.CoroutineType, *_RANDOM)):
        return None
    if issubclass(kind, sys.modules["random"].Random if "random" in sys.modules else ()):
        return None
    slots = list(slots_of(kind))
    # As ``object.__reduce_ex__`` asks whether a C structure lies behind an object.
    known = object.__basicsize__ + 8 * len(slots)
    known += 8 * (kind.__dictoffset__ > 0) + 8 * (kind.__weakrefoffset__ > 0)
    if kind.__basicsize__ > known or kind.__itemsize__:
        return None
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= {
        name: entry
        for name, entry in getattr(value, "__dict__", {}).items()
        if not isinstance(getattr(kind, name, None), functools.cached_property)
    }
    fields = getattr(kind, "__dataclass_fields__", None)
    makers = {".".join(base.__module__.split(".")[:2]) for base in kind.__mro__}
    if "flax.linen" in makers:  # also holds where it is bound
        return {key: held[key] for key in held.keys() - _OF_LINEN}
    if "flax.nnx" in makers:  # also holds under which trace it was made
        return {key: held[key] for key in held.keys() - {"_pytree__state", "_trace_state"}}
    if fields is not None and package_of(kind.__module__) is not None:
        return {name: held[name] for name in fields if name in held}
    return held


def slots_of(kind: type) -> Iterator[str]:
    """The attributes that a class and its bases keep in slots, as they are stored."""
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name
