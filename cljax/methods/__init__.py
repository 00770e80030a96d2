"""The methods, one module a family, as they are made by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cljax.errors import check_known
from cljax.method import Method
from cljax.methods.bic import bic
from cljax.methods.er import ER
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import fixed_rep
from cljax.methods.gem import AGEM, GEM
from cljax.methods.hat import HAT
from cljax.methods.icarl import icarl, lwf_exemplars
from cljax.methods.icarl_ti import icarl_ti
from cljax.methods.independent import Independent
from cljax.methods.itaml import itaml
from cljax.methods.joint import IID, Joint
from cljax.methods.laer import LaER
from cljax.methods.lamaml import CMAML, LaMAML, SyncLaMAML
from cljax.methods.lucir import lucir
from cljax.methods.mer import MER
from cljax.methods.metabgd import MetaBGD
from cljax.methods.multitask import Multitask
from cljax.methods.oml import OML
from cljax.methods.rep import Rep
from cljax.methods.replayed import oracle, replayed
from cljax.methods.reptile import fomaml, reptile
from cljax.methods.teacher import Teacher
from cljax.penalties import EWC, MAS, SI, LwF, OnlineEWC, RWalk

__all__ = ["CHECKED", "METHODS", "make"]

# A row a method: with its defaults, and how its update is checked: golden (a step-by-step trace of
# the authors' code), hand-checked (computed steps in the tests), or restated (known at second hand,
# steps computed).
_ROWS: tuple[tuple[Method, str], ...] = (
    (LaMAML(), "golden"),
    (CMAML(), "golden"),
    (SyncLaMAML(), "golden"),
    (LaER(), "golden"),
    (ER(), "golden"),
    (MER(), "golden"),
    (GEM(), "golden"),
    (AGEM(), "golden"),
    (MetaBGD(), "hand-checked"),
    (Independent(), "hand-checked"),
    (Teacher(), "hand-checked"),
    (HAT(), "hand-checked"),
    (OML(), "hand-checked"),
    (Rep(), "hand-checked"),
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
)
_OLD: Mapping[str, tuple[Callable[..., Any], str]] = {
    "itaml": (itaml, "golden"),
    "icarl": (icarl, "restated"),
    "bic": (bic, "restated"),
    "lwf-exemplars": (lwf_exemplars, "golden"),
    "lucir": (lucir, "golden"),
    "reptile": (reptile, "restated"),
    "fomaml": (fomaml, "restated"),
    "fixed-rep": (fixed_rep, "restated"),
    "replayed": (replayed, "restated"),
    "oracle": (oracle, "restated"),
    "icarl-ti": (icarl_ti, "hand-checked"),
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
