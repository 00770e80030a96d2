"""Flags of the command line, parsed by tyro; its complaints become one sentence each."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from cljax.errors import UserError, check_known

__all__ = ["parse"]

_WORDS = {int: "a whole number", float: "a number", str: "a word", type(None): "None"}


def parse(
    program: str,
    fields: dict[str, tuple[Any, Any, str]],
    arguments: list[str],
    hints: Mapping[str, str] = MappingProxyType({}),
    groups: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Parses flags with tyro; its boxes of errors become one sentence.

    Args:
      fields: name -> (type, default, help).
      hints: by name, what ``--help`` says of a default instead of its value.
      groups: title -> names of the flags that ``--help`` shows below it; of all flags, or empty.
    """
    if not arguments:  # a tenth of a second less
        return {name: default for name, (_, default, _) in fields.items()}
    import tyro

    flags = {f"--{name.replace('_', '-')}" for name in fields} | {"--help"}
    flags |= {
        f"--no-{name.replace('_', '-')}" for name, field in fields.items() if field[0] is bool
    }
    for argument in arguments:
        if argument.startswith("--"):
            check_known("flag", argument.partition("=")[0].replace("_", "-"), flags)
    each = {
        name: (
            name,
            Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=hints.get(name))],
            dataclasses.field(default=default),
        )
        for name, (kind, default, text) in fields.items()
    }
    made = _dataclass([each[name] for name in each if not groups] or _nested(each, groups))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                made, prog=program, args=arguments,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes),
            )  # fmt: skip
    except SystemExit as done:
        if not done.code:
            raise
        raise UserError(_sentence(errors.getvalue(), program, fields)) from None
    parts = [getattr(parsed, f"group_{i}") for i in range(len(groups))] or [parsed]
    result = {name: value for part in parts for name, value in vars(part).items()}
    return {name: result[name] for name in fields}


def _nested(each: Mapping[str, Any], groups: Mapping[str, Collection[str]]) -> list[Any]:
    """The fields of a dataclass that holds one for each group: tyro shows these by themselves."""
    import tyro

    inner = {
        title: _dataclass([field for name, field in each.items() if name in names])
        for title, names in groups.items()
    }
    return [
        (f"group_{i}", Annotated[kind, tyro.conf.arg(name=title)],
         dataclasses.field(default_factory=kind))
        for i, (title, kind) in enumerate(inner.items())
    ]  # fmt: skip


def _dataclass(fields: list[Any]) -> Any:
    made = dataclasses.make_dataclass("Flags", fields)
    made.__doc__ = " "
    return made


def _sentence(text: str, program: str, fields: Mapping[str, tuple[Any, Any, str]]) -> str:
    """The first complaint in tyro's box, as a sentence about the flag and its value."""
    lines = [re.sub(r"[│╭╰─╮╯]+|-{3,}", " ", line).strip() for line in text.splitlines()]
    words = " ".join(line for line in lines if line)
    see = f"see `{program} --help`."
    result = re.search(r"(?:Error parsing|for argument) '?(--[\w-]+)", words)
    if result is None:
        strange = re.search(r"Unrecognized options: (.*?)(?: For full| Perhaps|$)", words)
        if strange is not None:
            return f"{strange[1].strip()} is neither a flag nor the value of one; {see}"
        first = re.split(r" (?:For full helptext|Perhaps you meant|in )", words)[0]
        return f"{first.strip().rstrip('.')}; {see}"
    flag = result[1]
    name = flag[2:].replace("-", "_")
    right = _right(fields[name][0] if name in fields else bool)
    if re.search(r"Expected \d+ values", words):
        return f"{flag} needs a value, {right}; {see}"
    value = re.search(
        r"invalid choice ('.*?') for|(?:from|arguments:) \[(.*?)\]|: ('.*?')(?: |$)", words
    )
    parts = () if value is None else value.groups()
    wrong = next((part for part in parts if part is not None), "something else")
    return f"{flag} is {wrong}, but it must be {right}; {see}"


def _right(kind: Any) -> str:
    """What a flag of a type may be, in words."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_right(part) for part in typing.get_args(kind)))
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) is tuple:
        return f"{_right(typing.get_args(kind)[0]).removeprefix('a ')}s, such as 10 20"
    return _WORDS.get(kind, "True or False")
