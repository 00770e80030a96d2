"""Exemplar policies by name and options, as in ``mnemonics:inner_steps=5,inner_lr=0.1``."""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from cljax.errors import UserError, check_known, in_words
from cljax.memory.mnemonics import Mnemonics
from cljax.memory.mnemonics_released import MnemonicsReleased
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.selection import SELECTIONS
from cljax.options import options_of

__all__ = ["POLICIES", "Policy", "named"]

# A name of ``POLICIES``, with options after a colon; or a policy as an object.
Policy: TypeAlias = str | ExemplarPolicy

POLICIES: Mapping[str, ExemplarPolicy] = MappingProxyType(
    {**SELECTIONS, **{policy.name: policy for policy in (Mnemonics(), MnemonicsReleased())}}
)


def named(policy: Policy) -> ExemplarPolicy:
    """A policy by its name and options, or one as an object as it is.

    Raises:
      UserError: for an unknown name or option.
    """
    if isinstance(policy, ExemplarPolicy):
        return policy
    if not isinstance(policy, str):
        raise UserError(
            f"exemplars is {in_words(policy)}, but it must be the name of a policy, such as "
            "herding, or an ExemplarPolicy, such as cljax.memory.Herding()."
        )
    name, _, rest = policy.partition(":")
    check_known("exemplar policy", name, POLICIES)
    if not rest:
        return POLICIES[name]
    takes, options = {option.name: option.type for option in options_of(POLICIES[name])}, {}
    for part in rest.split(","):
        option, equals, value = part.partition("=")
        if not equals or option not in takes:
            known = ", ".join(takes) or "none"
            raise UserError(
                f"The exemplar policy {policy} has '{part}', but its options are name=value with "
                f"the names {known}."
            )
        options[option] = _value(option, value, takes[option])
    return POLICIES[name].replace(**options)


def _value(option: str, text: str, annotation: Any) -> Any:
    """``text`` as one of the types of ``annotation``."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    words: dict[str, Any] = {"true": True, "false": False} if bool in kinds else {}
    if type(None) in kinds:
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
    raise UserError(f"The exemplars' {option} is {text}, but it must be {' or '.join(right)}.")
