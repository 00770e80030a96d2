"""The methods, one module a family, as they are made by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cljax.errors import check_known
from cljax.method import Method
from cljax.methods.bic import BiC
from cljax.methods.er import ER
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import FixedRep
from cljax.methods.gem import agem, gem
from cljax.methods.groups.descent import DescentOptions, PenaltyOptions
from cljax.methods.groups.replay import OfferOptions, ReplayOptions
from cljax.methods.hat import hat
from cljax.methods.icarl import ICaRL, LwFExemplars
from cljax.methods.icarl_ti import ICaRLTI
from cljax.methods.independent import independent
from cljax.methods.itaml import ITAML
from cljax.methods.joint import IID, Joint
from cljax.methods.laer import LaER
from cljax.methods.lamaml import CMAML, LaMAML, SyncLaMAML
from cljax.methods.lucir import LUCIR
from cljax.methods.mer import mer
from cljax.methods.metabgd import meta_bgd
from cljax.methods.multitask import Multitask
from cljax.methods.oml import oml
from cljax.methods.rep import rep
from cljax.methods.replayed import Oracle, Replayed
from cljax.methods.reptile import FOMAML, Reptile
from cljax.methods.teacher import teacher
from cljax.penalties import EWC, MAS, SI, LwF, OnlineEWC, RWalk

__all__ = [
    "CHECKED", "DescentOptions", "METHODS", "OfferOptions", "PenaltyOptions", "ReplayOptions",
    "make",
]  # fmt: skip

# A row a method: with its defaults, and how its update is checked: golden (a step-by-step trace of
# the authors' code), hand-checked (computed steps in the tests), or restated (known at second hand,
# steps computed).
_ROWS: tuple[tuple[Method, str], ...] = (
    (LaMAML(), "golden"),
    (CMAML(), "golden"),
    (SyncLaMAML(), "golden"),
    (LaER(), "golden"),
    (ER(), "golden"),
    (Multitask(), "hand-checked"),
    (IID(), "hand-checked"),
    (Joint(), "hand-checked"),
    (Finetune(), "hand-checked"),
    (Online(), "hand-checked"),
    (SGD(), "hand-checked"),
    (Finetune(penalty=EWC()), "hand-checked"),
    (Finetune(penalty=OnlineEWC()), "restated"),
    (Finetune(penalty=SI()), "restated"),
    (Finetune(penalty=MAS()), "restated"),
    (Finetune(penalty=RWalk()), "restated"),
    (Finetune(penalty=LwF()), "restated"),
    (ICaRL(), "restated"),
    (BiC(), "restated"),
    (LwFExemplars(), "golden"),
    (LUCIR(), "golden"),
    (Replayed(), "restated"),
    (Oracle(), "restated"),
    (ITAML(), "golden"),
    (Reptile(), "restated"),
    (FOMAML(), "restated"),
    (FixedRep(), "restated"),
    (ICaRLTI(), "hand-checked"),
)
_OLD: Mapping[str, tuple[Callable[..., Any], str]] = {
    "mer": (mer, "golden"),
    "gem": (gem, "golden"),
    "agem": (agem, "golden"),
    "meta-bgd": (meta_bgd, "hand-checked"),
    "teacher": (teacher, "hand-checked"),
    "hat": (hat, "hand-checked"),
    "oml": (oml, "hand-checked"),
    "rep": (rep, "hand-checked"),
    "independent": (independent, "hand-checked"),
}

METHODS: dict[str, Any] = {method.name: method for method, _ in _ROWS}
METHODS |= {name: factory for name, (factory, _) in _OLD.items()}
CHECKED = {method.name: checked for method, checked in _ROWS}
CHECKED |= {name: checked for name, (_, checked) in _OLD.items()}


def make(name: str, **options: Any) -> Any:
    """A method by its name on the command line, with other options than its defaults.

    Raises:
      UserError: for an unknown name or option, or a value that is none.
    """
    check_known("method", name, METHODS)
    made = METHODS[name]
    return made.replace(**options) if isinstance(made, Method) else made(**options)
