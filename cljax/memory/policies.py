"""Exemplar policies by name and options, as in ``mnemonics:inner_steps=5,inner_lr=0.1``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from cljax import options
from cljax.errors import UserError, in_words
from cljax.memory.mnemonics import Mnemonics
from cljax.memory.mnemonics_released import MnemonicsReleased
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.selection import SELECTIONS

__all__ = ["POLICIES", "Policy", "called", "named"]

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
    return options.named(policy, POLICIES, "exemplar policy")


def called(policy: Policy) -> Policy:
    """The name of a policy of the library, by which ``named`` gives it again; others as they are.

    So an object and its name are one in a run's config.
    """
    name = options.name_in(POLICIES, policy)
    return policy if name is None else name
