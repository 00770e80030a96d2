"""Factories made of other factories, with signatures and documentation as if written by hand.

Help texts and command-line flags are read off a factory's signature and docstring, so what is
made here is a first-class method: nothing of it is written twice.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from cljax.options import Options, options_of
from cljax.options import real_options as real_fields
from cljax.types import Method

__all__ = [
    "arranged",
    "dress",
    "flat_options",
    "known_options",
    "name_of",
    "real_options",
    "remade",
    "variant",
    "with_part",
]


def variant(
    factory: Callable[..., Any],
    name: str,
    summary: str,
    *,
    fixed: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Callable[..., Any]:
    """A named method or penalty: ``factory`` with other defaults and, in ``fixed``, kept values.

    The variant shows the signature and the arguments' documentation of ``factory``, less what
    is fixed, so that help texts and command-line flags are right without being written twice.
    """
    fixed = dict(fixed or {})
    signature = inspect.signature(factory, eval_str=True)
    parameters = [
        p.replace(default=defaults.get(p.name, p.default))
        for p in signature.parameters.values()
        if p.name not in fixed
    ]

    def make(*args: Any, **options: Any) -> Any:
        bound = make.__signature__.bind(*args, **options)  # type: ignore[attr-defined]
        made = factory(**{**defaults, **bound.arguments, **fixed})
        shown = {k: v for k, v in made.options.items() if k not in fixed}
        made = made._replace(name=name, options=shown)
        return made._replace(make=make) if isinstance(made, Method) else made

    documentation = inspect.getdoc(factory) or ""
    for argument in fixed:
        documentation = re.sub(rf"\n  {argument}:.*(\n    .*)*", "", documentation)
    documentation = summary + "".join(documentation.partition("\n")[1:])  # none under -OO
    dress(make, name, factory, signature.replace(parameters=parameters), documentation)
    return make


def with_part(
    carrier: Callable[..., Method],
    name: str,
    keyword: str,
    part: Callable[..., Any],
    **defaults: Any,
) -> Callable[..., Method]:
    """A named method that is ``carrier(keyword=part(...))``, with the options of both.

    Args:
      carrier: a factory with ``keyword``, such as ``penalty`` or ``objective``.
      part: a factory of that; its documentation's summary and arguments come first.
      **defaults: other defaults of the carrier's options.
    """
    of_part = inspect.signature(part, eval_str=True).parameters
    of_carrier = inspect.signature(carrier, eval_str=True)
    strange = set(defaults) - (set(of_carrier.parameters) - {keyword})
    if strange:
        raise TypeError(f"{carrier.__name__} has no options {sorted(strange)}")
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in of_part.values()]
    parameters += [
        p.replace(default=defaults.get(p.name, p.default))
        for p in of_carrier.parameters.values()
        if p.name != keyword
    ]
    signature = of_carrier.replace(parameters=parameters)

    def make(**options: Any) -> Method:
        bound = signature.bind(**options)
        bound.apply_defaults()
        own = {k: v for k, v in bound.arguments.items() if k in of_part}
        rest = {k: v for k, v in bound.arguments.items() if k not in of_part}
        method = carrier(**{keyword: part(**own)}, **rest)
        return method._replace(name=name, options=dict(bound.arguments), make=make)

    own, rest = (inspect.getdoc(factory) or "" for factory in (part, carrier))
    arguments = re.search(r"Args:\n((?:  .*\n?)*)", rest)
    kept = re.sub(
        rf"^  {keyword}:.*(\n    .*)*\n?", "", arguments[1] if arguments else "", flags=re.M
    )
    documentation = re.sub(r"(Args:\n(?:  .*\n?)*)", lambda m: m[1] + kept, own, count=1)
    dress(make, name, carrier, signature, documentation)
    return make


def dress(
    make: Callable[..., Any],
    name: str,
    factory: Callable[..., Any],
    signature: inspect.Signature,
    documentation: str,
) -> None:
    """Gives a made factory the looks of one written by hand."""
    make.__name__ = make.__qualname__ = name.replace("-", "_")
    make.__module__ = factory.__module__
    make.__doc__ = documentation
    make.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    make.__signature__ = signature  # type: ignore[attr-defined]


def flat_options(method: Any) -> Mapping[str, Any]:
    """The options by name, with those of the options that it holds."""
    if isinstance(method, Options):
        return {option.name: option.value for option in options_of(method)}
    return method.options


def known_options(factory: Any) -> set[str]:
    """The names of the options of a method to be."""
    if isinstance(factory, Options):
        return set(flat_options(factory))
    return set(inspect.signature(factory).parameters)


def name_of(factory: Any) -> str:
    """What a method to be is called."""
    if isinstance(factory, Options):
        return str(factory.name)  # type: ignore[attr-defined]
    return getattr(factory, "__name__", "custom")


def arranged(method: Any, stream: Any) -> Any:
    """The stream as the method sees it."""
    return stream if method.arrange is None else method.arrange(stream)


def remade(method: Any, changes: Mapping[str, Any]) -> Any:
    """The method with other values of its options."""
    if not changes:
        return method
    if isinstance(method, Options):
        return method.replace(**changes)
    return method if method.make is None else method.make(**{**method.options, **changes})


def real_options(method: Any) -> tuple[str, ...]:
    """The method's options that may be traced: annotated as arrays, and now a single number.

    None of a method that was changed after it was made, since making it again would undo that.
    """
    if isinstance(method, Options):
        return real_fields(method)
    if method.make is None or not _unchanged(method, method.make):
        return ()
    names = []
    for parameter in inspect.signature(method.make, eval_str=True).parameters.values():
        value = method.options.get(parameter.name)
        number = value is not None and not isinstance(value, (bool, str)) and np.ndim(value) == 0
        if number and jax.Array in typing.get_args(parameter.annotation):
            names.append(parameter.name)
    return tuple(names)


def _unchanged(method: Method, make: Callable[..., Method]) -> bool:
    if set(method.options) != set(inspect.signature(make).parameters):
        return False
    again = make(**method.options)
    code = lambda function: getattr(function, "__code__", function)
    same = code(again.bind) is code(method.bind) and code(again.arrange) is code(method.arrange)
    return same and again.name == method.name
