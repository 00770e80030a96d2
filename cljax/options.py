"""Options as data: frozen dataclasses that check themselves, and pytrees of their real values.

    class Momentum(Options):
        lr: Rate = 0.1
        "Step size."
        nesterov: bool = False
        "Look ahead."

A subclass is made a keyword-only, frozen dataclass and a pytree. Its leaves are the fields whose
type is marked as a leaf (``Real``, ``Rate``, ...) and those that hold other options; everything
else is part of the tree's structure. So ``jax.jit``, ``jax.vmap`` and ``jax.grad`` take options as
an argument: a stacked one is a sweep, and its gradient is again one of the same class.

Options are checked when they are made by hand, not when JAX rebuilds them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypeVar,
    dataclass_transform,
)

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import GetAttrKey

from cljax.errors import (
    UserError,
    check_above_zero,
    check_counts,
    check_finite,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    check_share,
    in_words,
)

__all__ = [
    "Bound", "Check", "Count", "Leaf", "Natural", "Option", "Options", "Positive", "Rate", "Real",
    "Share", "StaticRate", "StaticShare", "added_later", "check_single", "documentation", "flat",
    "named", "options_of", "outline", "positional", "real_options",
]  # fmt: skip


class Leaf:
    """Marks a type whose values are leaves: traced, swept, batched and differentiated."""


class Check(NamedTuple):
    """Marks a type with its check: ``check(**{name: value})`` raises UserError, or passes."""

    check: Callable[..., None]

    def __repr__(self) -> str:  # without an address: a run is known by its classes' annotations too
        return f"Check({getattr(self.check, '__name__', '...')})"


# Leaves: any number, at least 0, above 0, from 0 to 1.
Real: TypeAlias = Annotated[float, Leaf, Check(check_finite)]
Rate: TypeAlias = Annotated[float, Leaf, Check(check_rate)]
Positive: TypeAlias = Annotated[float, Leaf, Check(check_above_zero)]
Share: TypeAlias = Annotated[float, Leaf, Check(check_share)]
# Numbers that a program is compiled for: at least 0, above 0, from 0 to 1; whole from 1, from 0.
StaticRate: TypeAlias = Annotated[float, Check(check_rate)]
Bound: TypeAlias = Annotated[float, Check(check_above_zero)]
StaticShare: TypeAlias = Annotated[float, Check(check_share)]
Count: TypeAlias = Annotated[int, Check(check_positive)]
Natural: TypeAlias = Annotated[int, Check(check_counts)]


def positional(*, default: Any, kw_only: Literal[False] = False) -> Any:
    """A field that may be given without its name, such as the strength of a penalty."""
    return dataclasses.field(default=default, kw_only=kw_only)


def added_later(*, default: Any) -> Any:
    """A field that a run's config leaves out at its default, so that adding it changes no hash."""
    return dataclasses.field(default=default, metadata={"later": True})


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(dataclasses.field, positional, added_later),
)
class Options:
    """What options have in common; see the module.

    ``kind`` is the class's name on the command line: its own in small letters, unless the class
    statement gives one, as in ``class ER(Method, name="er")``.
    """

    kind: ClassVar[str] = "options"

    def __init_subclass__(cls, name: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", cls.__name__)
        cls.kind = "-".join(words).lower() if name is None else name
        written = cls.__doc__
        dataclasses.dataclass(frozen=True, kw_only=True, repr=False)(cls)
        cls.__doc__ = written  # where there is none, a dataclass makes one of its fields
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda made: _flatten(made, lambda name, part: (GetAttrKey(name), part)),
            functools.partial(_unflatten, cls),
            lambda made: _flatten(made, lambda name, part: part),
        )

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            _check(name, value, kind)
        self.check()

    def check(self) -> None:
        """Raises UserError for values that do not fit each other; each alone is checked before."""

    def __repr__(self) -> str:
        """The options that differ from their defaults, as a call that gives them."""
        changed = (
            f"{field.name}={_shown(getattr(self, field.name))}"
            for field in _fields(self)
            if not _same(getattr(self, field.name), field.default)
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    @property
    def summary(self) -> str:
        """What it is, in a line; empty where docstrings are left out."""
        return (inspect.getdoc(type(self)) or "").partition("\n")[0]

    @property
    def options(self) -> Mapping[str, Any]:
        """The fields' values by name, in order."""
        return {field.name: getattr(self, field.name) for field in _fields(self)}

    @property
    def recorded(self) -> Mapping[str, Any]:
        """``options`` for a run's config: less those ``added_later`` that are at their defaults."""
        at_default = {
            field.name
            for field in _fields(self)
            if field.metadata.get("later") and _same(getattr(self, field.name), field.default)
        }
        return {name: value for name, value in self.options.items() if name not in at_default}

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, of its own options or of those that it holds.

        So ``Finetune(penalty=EWC()).replace(lr=0.1, strength=10.0)`` changes both.

        Raises:
          UserError: for a name that is no option, or a value that is none.
        """
        known, own = {option.name: option.holder for option in _values(self)}, {}
        for name, value in changes.items():
            if name not in self.options:
                check_known(f"option of {self.kind}", name, known)
            holder = None if name in self.options else known[name]
            if holder is None:
                own[name] = value
            else:
                own[holder] = own.get(holder, getattr(self, holder)).replace(**{name: value})
        return dataclasses.replace(self, **own)  # type: ignore[type-var]


class _Kind(NamedTuple):
    """What a field's type says of its values."""

    leaf: bool  # a leaf, or options of its own
    none: bool  # None is one of the values
    choices: tuple[Any, ...]  # of a Literal that is all there is beside None
    listed: bool  # a tuple, given as one or as a list
    checks: tuple[Callable[..., None], ...]


def _fields(made: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(made)


@functools.cache
def _kinds(cls: type) -> Mapping[str, _Kind]:
    """The fields of a class by name; types are read when the first object is made."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(cls)}


def _kind(hint: Any) -> _Kind:
    parts = list(_members(hint))
    marks = [mark for part in parts for mark in getattr(part, "__metadata__", ())]
    types_ = [part.__origin__ if hasattr(part, "__metadata__") else part for part in parts]
    own = any(isinstance(part, type) and issubclass(part, Options) for part in types_)
    none = types.NoneType in types_
    rest = [part for part in types_ if part is not types.NoneType]
    literal = len(rest) == 1 and typing.get_origin(rest[0]) is typing.Literal
    checks = tuple(mark.check for mark in marks if isinstance(mark, Check))
    checks += (check_flag,) if rest == [bool] else ()
    listed = bool(rest) and all(typing.get_origin(part) is tuple for part in rest)
    choices = typing.get_args(rest[0]) if literal else ()
    return _Kind(Leaf in marks or own, none, choices, listed, checks)


def _members(hint: Any) -> Iterator[Any]:
    """The members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _members(part)
    else:
        yield hint


def _check(name: str, value: Any, kind: _Kind) -> None:
    if value is None and kind.none:
        return
    if kind.choices:
        check_known(name, value, kind.choices)
    if kind.listed and not isinstance(value, tuple):
        raise UserError(f"{name} is {in_words(value)}, but it must be a list.")
    if kind.leaf and isinstance(value, (np.ndarray, jax.Array)) and np.ndim(value):
        lanes = [] if isinstance(value, Tracer) else np.asarray(value).flat
        for one in lanes:  # a value for each of several lanes
            _check(name, one, kind)
        return
    for check in kind.checks:
        check(**{name: value})


class _Rest(tuple[tuple[str, Any], ...]):
    """What of options is no leaf: (name, value) in order, part of the structure of their tree.

    Values that cannot be compared, such as arrays, are equal to themselves alone.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Rest)
            and len(self) == len(other)
            and all(a == b and _same(x, y) for (a, x), (b, y) in zip(self, other, strict=True))
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple((name, _hash(value)) for name, value in self))


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    """A value as part of a ``repr``: arrays by type and shape, functions by name."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and np.ndim(value):
        return f"<{value.dtype}{list(value.shape)}>"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)


def _hash(value: Any) -> int:
    try:
        return hash(value)
    except TypeError:
        return 0


def _flatten(made: Options, child: Callable[[str, Any], Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Its leaves, and the rest by name; a word in the place of a leaf belongs to the rest."""
    values = {name: getattr(made, name) for name in _kinds(type(made))}
    marked = (name for name, kind in _kinds(type(made)).items() if kind.leaf)
    leaves = [name for name in marked if not isinstance(values[name], str)]
    rest = _Rest((name, value) for name, value in values.items() if name not in leaves)
    return [child(name, values[name]) for name in leaves], rest


def _unflatten(cls: type, static: tuple[Any, ...], children: Iterable[Any]) -> Any:
    """As JAX asks for it: with tracers or anything else as leaves, so without checks."""
    made, leaves, rest = object.__new__(cls), iter(children), dict(static)
    for name in _kinds(cls):
        object.__setattr__(made, name, rest[name] if name in rest else next(leaves))
    return made


class Option(NamedTuple):
    """A field as a flag may show it: ``help`` is the docstring below it.

    ``holder`` is the field that holds the options which it is one of; None: it is their own.
    """

    name: str
    type: Any
    value: Any
    help: str
    leaf: bool
    holder: str | None = None


class _Value(NamedTuple):
    """An ``Option`` without what only flags show; it is a field of ``of``."""

    name: str
    value: Any
    leaf: bool
    of: Options
    holder: str | None


def _values(made: Options) -> list[_Value]:
    """The values of an object's options, then those of the options that it holds."""
    direct, inner = [], []
    for name, kind in _kinds(type(made)).items():
        value = getattr(made, name)
        if isinstance(value, Options):
            inner += [option._replace(holder=name) for option in _values(value)]
        else:
            direct.append(_Value(name, value, kind.leaf, made, None))
    names = {option.name for option in direct}
    return direct + [option for option in inner if option.name not in names]


def options_of(made: Options) -> list[Option]:
    """The options of an object, then those of the options that it holds, without their holders."""
    return [
        Option(name, _hints(type(of))[name], value, documentation(type(of)).get(name, ""), leaf, by)
        for name, value, leaf, of, by in _values(made)
    ]


def flat(made: Options) -> dict[str, Any]:
    """The values of ``options_of`` by name."""
    return {option.name: option.value for option in _values(made)}


def check_single(made: Options) -> None:
    """Raises UserError for leaves that hold a value for each of several lanes."""
    for option in _values(made):
        if option.leaf and np.ndim(option.value):
            raise UserError(
                f"{option.name} is {in_words(option.value)}, but a run takes a single number; "
                "cljax.sweep runs several."
            )


def real_options(made: Options) -> tuple[str, ...]:
    """The names of leaves that now hold a number, which may be another without recompilation."""
    return tuple(
        option.name
        for option in _values(made)
        if option.leaf and option.value is not None and not isinstance(option.value, str)
    )


def outline(made: Options) -> dict[str, Any]:
    """What a program is compiled for: the values by name, a mark in the place of real numbers.

    Options that are held stand inside their holder, so that none hides another of its name.
    """
    result: dict[str, Any] = {}
    for name, kind in _kinds(type(made)).items():
        value = getattr(made, name)
        if isinstance(value, Options):
            value = {"kind": value.kind, "options": outline(value)}
        elif kind.leaf and value is not None and not isinstance(value, str):
            value = {"real": True}
        result[name] = value
    return result


_Made = TypeVar("_Made", bound=Options)


def named(text: str, known: Mapping[str, _Made], what: str) -> _Made:
    """Options by their name and values, as in ``mnemonics:inner_steps=5,inner_lr=0.1``.

    Args:
      known: options with their defaults, by name.
      what: they are, in errors.

    Raises:
      UserError: for an unknown name or option, or a value that is none.
    """
    name, _, rest = text.partition(":")
    check_known(what, name, known)
    if not rest:
        return known[name]
    takes, values = {option.name: option.type for option in options_of(known[name])}, {}
    for part in rest.split(","):
        option, equals, value = part.partition("=")
        if not equals or option not in takes:
            names = ", ".join(takes) or "none"
            raise UserError(
                f"The {what} {text} has '{part}', but its options are name=value with the names "
                f"{names}."
            )
        values[option] = _read(what, option, value, takes[option])
    return known[name].replace(**values)


def name_in(known: Mapping[str, Options], made: Any) -> str | None:
    """The text by which ``named`` gives an object of ``known`` again; None where none does."""
    default = known.get(made.kind) if isinstance(made, Options) else None
    if default is None or type(made) is not type(default):
        return None
    words: dict[Any, str] = {True: "true", False: "false", None: "none"}
    own = [
        f"{name}={words[value] if value is None or isinstance(value, bool) else value}"
        for name, value in made.options.items()
        if not _same(value, default.options[name])
    ]
    text = ":".join([made.kind, *([",".join(own)] if own else [])])
    try:
        return text if _same(named(text, known, made.kind), made) else None
    except UserError:  # a value that a text does not hold
        return None


def _read(what: str, option: str, text: str, annotation: Any) -> Any:
    """``text`` as one of the types of ``annotation``."""
    kinds = tuple(_members(annotation))
    words: dict[str, Any] = {"true": True, "false": False} if bool in kinds else {}
    if types.NoneType in kinds:
        words["none"] = None
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
    choices = [c for kind in kinds for c in typing.get_args(kind) if isinstance(c, str)]
    if choices:
        check_known(option, text, choices)
        return text
    right = ["a whole number"] * (int in kinds) + ["a number"] * (float in kinds) + list(words)
    raise UserError(f"The {what}'s {option} is {text}, but it must be {' or '.join(right)}.")


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def documentation(cls: type) -> Mapping[str, str]:
    """Field -> the docstring below it, in the class or in one that it is made of."""
    result: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not Options and issubclass(base, Options):
            result |= _docstrings(base)
    return result


@functools.cache
def _docstrings(cls: type) -> Mapping[str, str]:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # where no source is there
        return {}
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
