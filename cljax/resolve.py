"""Names of the command line to what they stand for: built-in, or ``package.module:attribute``."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import os
import re
import sys
import types as pytypes
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from cljax import options as fields
from cljax.checks import check_method
from cljax.errors import UserError, check_known, in_words
from cljax.memory.memories import MEMORIES
from cljax.memory.protocol import Memory
from cljax.method import Method
from cljax.methods import METHODS
from cljax.methods.groups.replay import ReplayOptions
from cljax.nets import NETS
from cljax.options import Options
from cljax.streams import STREAMS, Stream, StreamSource
from cljax.streams.base import check_stream
from cljax.streams.catalogue import entry_of, find
from cljax.types import Net

__all__ = [
    "Option", "called", "changed", "function", "is_code", "memory", "method", "net",
    "open_unlisted", "opened", "options_of", "stream", "stream_name", "stream_source",
]  # fmt: skip


# Options in a network's name -> keyword argument and value; any other word is an initialisation.
_WORDS: dict[str, tuple[str, Any]] = {
    "bfloat16": ("dtype", "bfloat16"),
    "no-head-bias": ("head_bias", False),
    "linear": ("head", "linear"),
    "cosine": ("head", "cosine"),
    "batch": ("norm", "batch"),
    "group": ("norm", "group"),
    "last-relu": ("last_relu", True),
    "no-last-relu": ("last_relu", False),
}


class Option(NamedTuple):
    """An option as a flag; ``help`` is the docstring below the field."""

    name: str
    type: Any
    default: Any
    help: str


def method(name: str, **options: Any) -> Method:
    """A method, for instance ``lamaml`` or ``my.module:Class``, with other options than defaults.

    Raises:
      UserError: for an unknown name or option, a value that is none, what is neither a method nor
        makes one, or any error of a user's own.
    """
    made: Any = _factory("method", name, METHODS)
    if not isinstance(made, Method):
        made = called(made, name)
        check_method(made)
    if type(made).__module__.startswith("cljax."):
        return changed(made, **options)
    return called(functools.partial(changed, made), name, **options)


def changed(made: Method, **options: Any) -> Method:
    """A method with other options, of which a memory may be named as ``memory`` takes it.

    Raises:
      UserError: for an unknown option, a value that is none, or what is no memory.
    """
    replays = any(isinstance(own, ReplayOptions) for own in (made, *made.options.values()))
    if replays and "memory" in options:
        options = {**options, "memory": memory(options["memory"])}
    return made.replace(**options)


def memory(name: Any) -> Any:
    """A memory of a user's own by ``package.module:Memory``; anything else is what it is.

    Options may follow after another colon, as in ``my.module:Fading:share=0.5``.

    Raises:
      UserError: for a module that cannot be imported, or what neither is nor makes a memory.
    """
    if not isinstance(name, str) or not is_code(name, memory=True):
        return name
    module, attribute, *values = name.split(":", 2)
    made: Any = _factory("memory", f"{module}:{attribute}", {})
    made = made if isinstance(made, Memory) else called(made, name)
    if not isinstance(made, Memory):
        raise UserError(
            f"The memory {name} is {in_words(made)}, but it must be a cljax.memory.Memory, or make "
            "one."
        )
    return fields.named(":".join([made.name, *values]), {made.name: made}, "memory")


def stream_source(name: str) -> Any:
    """What a stream is opened from: its options, such as those of ``mnist-rotations``.

    For ``my.module:attribute`` that is a ``StreamSource`` or its class, a ``Stream``, or a function
    that makes either.
    """
    made: Any = find(name) or _factory("stream", name, STREAMS)
    return called(made, name) if _is_class_of_sources(made) else made


def stream(name: str, **options: Any) -> Stream:
    """Opens a stream by its name, with other options than its defaults.

    Raises:
      UserError: for an unknown name or option, a value that is none, what is no stream and makes
        none, or any error of a user's own.
    """
    made = stream_source(name)
    known = {option.name for option in options_of(made)}
    for option in options:
        check_known(f"option of {name}", option, known)
    if not isinstance(made, (Stream, StreamSource)):
        made, options = called(made, name, **options), {}
    if isinstance(made, StreamSource):
        made = called(made.replace(**options).build, name)
    check_stream(made)
    return made


def opened(given: Stream | StreamSource | str) -> Stream:
    """A stream by its name, from its options, or as it is.

    Raises:
      UserError: as ``stream``.
    """
    if isinstance(given, str):
        return stream(given)
    made = called(given.build, type(given).__name__) if isinstance(given, StreamSource) else given
    check_stream(made)
    return made


def stream_name(given: Stream | StreamSource | str) -> str:
    """The name that recipes know a stream by.

    Raises:
      UserError: for what is no stream.
    """
    if isinstance(given, str):
        return given
    entry = entry_of(given) if isinstance(given, StreamSource) else None
    return opened(given).name if entry is None else entry.name


def open_unlisted(given: Any) -> Any:
    """What is given, but opened where it is a ``StreamSource`` that no name stands for."""
    unlisted = isinstance(given, StreamSource) and entry_of(given) is None
    return opened(given) if unlisted else given


def net(name: str) -> Net:
    """A network by name, widths and options, such as ``mlp:100,100``, or ``my.module:factory``.

    Options follow after colons, as in ``mlp:400,400:pytorch:no-head-bias`` and
    ``resnet18:cosine:bfloat16``, and widths of dense layers, as in ``cnn:20,20,20:40,40``; the
    ``__name__`` of every net of ``cljax.nets`` is such a name.

    Raises:
      UserError: for an unknown network, widths that are not whole numbers, or options that the
        network does not take.
    """
    kind, _, rest = name.partition(":")
    if is_code(name, net=True):
        return called(_factory("network", name, NETS), name)
    check_known("network", kind, NETS)
    widths, *words = rest.split(":")
    takes = inspect.signature(NETS[kind]).parameters
    if widths in _WORDS or "widths" not in takes:
        widths, words = "", [widths, *words]
    words = [word for word in words if word]
    if widths and not re.fullmatch(r"\d+(,\d+)*", widths):
        raise UserError(
            f"The network {name} has widths '{widths}', but they must be whole numbers, as in "
            "mlp:100,100."
        )
    sizes = [int(width) for width in widths.split(",")] if widths else []
    named = [(word, *_word(word)) for word in words]
    for word, option, _ in named:
        if option not in takes:
            raise UserError(f"The network {name} has '{word}', but {kind} does not take that.")
    return NETS[kind](*sizes, **{option: value for _, option, value in named})


def function(kind: str, name: Any) -> Any:
    """A function by ``package.module:function``; anything else is what it is.

    Raises:
      UserError: for a module that cannot be imported, or what is no function.
    """
    if not isinstance(name, str) or not is_code(name):
        return name
    return _factory(kind, name, {})


def called(factory: Callable[..., Any], name: str, **options: Any) -> Any:
    """What a factory makes; where one of a user's own fails, that is told as such.

    Raises:
      UserError: as the factory does, or for any error of a user's own.
    """
    try:
        return factory(**options)
    except UserError:
        raise
    except Exception as error:
        if (getattr(factory, "__module__", None) or "").startswith("cljax."):
            raise
        raise UserError(
            f"The factory {name} failed with {type(error).__name__}: {error}."
        ) from error


def is_code(name: str, *, net: bool = False, memory: bool = False) -> bool:
    """Whether a name of a method or a stream, a network or a memory, is ``package.module:factory``.

    What follows the name of a built-in network or memory are its options.
    """
    kind, _, rest = name.partition(":")
    if memory:
        return kind not in MEMORIES and rest != ""
    if not net:
        return ":" in name
    return kind not in NETS and rest != "" and not rest[0].isdigit()


def _word(word: str) -> tuple[str, Any]:
    """The keyword argument of a word in a network's name, and its value."""
    if re.fullmatch(r"\d+(,\d+)*", word):
        return "dense", [int(width) for width in word.split(",")]
    return _WORDS.get(word, ("init", word))


def options_of(made: Any) -> list[Option]:
    """The options of a method or a stream that can be flags, with their help texts.

    A function has its keyword arguments, without any.

    Raises:
      UserError: for one whose signature cannot be read.
    """
    if isinstance(made, Options):
        result = [(o.name, o.type, o.value, o.help) for o in fields.options_of(made)]
    else:
        result = [] if isinstance(made, Stream) else _keywords(made)
    options = []
    for name, annotation, default, help_text in result:
        kind = _flag_type(annotation)
        if kind is not None:
            options.append(
                Option(name, kind | None if default is None else kind, default, help_text)
            )
    return options


def _keywords(function: Any) -> list[tuple[str, Any, Any, str]]:
    """The keyword arguments of a user's own function: names, types and defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise UserError(f"The options of {in_words(function)} cannot be read: {error}.") from error
    return [
        (p.name, hints.get(p.name), p.default, "")
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    ]


def _flag_type(annotation: Any) -> Any:
    """An annotation without the types that no flag can give; None if nothing is left."""
    simple = (int, float, bool, str, type(None))
    if annotation in simple or typing.get_origin(annotation) is typing.Literal:
        return annotation
    if typing.get_origin(annotation) in (Sequence, tuple):
        part, *_ = typing.get_args(annotation)
        return tuple[part, ...] if part in (int, float) else None
    if typing.get_origin(annotation) in (typing.Union, pytypes.UnionType):
        types = [_flag_type(part) for part in typing.get_args(annotation) if part is not jax.Array]
        types = [part for part in types if part is not None]
        return functools.reduce(operator.or_, types) if set(types) - {type(None)} else None
    return None


def _factory(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or not is_code(name):
        check_known(kind, name, known)
        return known[name]
    module, _, attribute = name.partition(":")
    if module in known:
        raise UserError(
            f"The {kind} {name} says more than a name; a recipe's source and variant go into "
            "--recipe SOURCE:VARIANT, or cljax.recipe(method, stream, source, variant)."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"The {kind} {name} names the module {error.name}, which cannot be imported; run "
            "where it can be, or install it."
        ) from error
    except AttributeError as error:
        raise UserError(
            f"The {kind} {name} names '{attribute}', which the module {module} does not have."
        ) from error
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"The {kind} {name} names the module '{module}', which cannot be imported: {error}."
        ) from error
    if not callable(made) and not isinstance(made, (Memory, Method, Stream, StreamSource)):
        raise UserError(f"The {kind} {name} is {in_words(made)}, but it must be a function.")
    return made


def _is_class_of_sources(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, StreamSource)
