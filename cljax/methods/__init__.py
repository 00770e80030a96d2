"""The methods, one module a family, as they are made by their names on the command line."""

from __future__ import annotations

from typing import Any

from cljax.errors import check_known
from cljax.method import Method
from cljax.methods.bic import BiC
from cljax.methods.der import DER, DERpp
from cljax.methods.er import ER
from cljax.methods.er_ace import ERACE
from cljax.methods.fecam import FeCAM
from cljax.methods.finetune import SGD, Finetune, Online
from cljax.methods.fixed_rep import FixedRep
from cljax.methods.gdumb import GDumb
from cljax.methods.gem import AGEM, GEM
from cljax.methods.groups.descent import DescentOptions, PenaltyOptions
from cljax.methods.groups.exemplars import ExemplarOptions
from cljax.methods.groups.replay import OfferOptions, ReplayOptions
from cljax.methods.hat import HAT
from cljax.methods.icarl import ICaRL, LwFExemplars
from cljax.methods.icarl_ti import ICaRLTI
from cljax.methods.independent import Independent
from cljax.methods.itaml import ITAML
from cljax.methods.joint import IID, Joint
from cljax.methods.laer import LaER
from cljax.methods.lamaml import CMAML, LaMAML, SyncLaMAML
from cljax.methods.lucir import LUCIR
from cljax.methods.mer import MER
from cljax.methods.metabgd import MetaBGD
from cljax.methods.mir import MIR
from cljax.methods.multitask import Multitask
from cljax.methods.ncm import NCM
from cljax.methods.oml import OML
from cljax.methods.ranpac import RanPAC
from cljax.methods.rep import Rep
from cljax.methods.replayed import Oracle, Replayed
from cljax.methods.reptile import FOMAML, Reptile
from cljax.methods.slda import SLDA
from cljax.methods.teacher import Teacher
from cljax.penalties import EWC, MAS, SI, LwF, OnlineEWC, RWalk

__all__ = [
    "CHECKED", "DescentOptions", "ExemplarOptions", "METHODS", "OfferOptions", "PenaltyOptions",
    "ReplayOptions", "make",
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
    (ERACE(), "golden"),
    (MIR(), "hand-checked"),
    (GDumb(), "hand-checked"),
    (DER(), "golden"),
    (DERpp(), "golden"),
    (NCM(), "hand-checked"),
    (SLDA(), "hand-checked"),
    (RanPAC(), "hand-checked"),
    (FeCAM(), "hand-checked"),
    (MER(), "golden"),
    (GEM(), "golden"),
    (AGEM(), "golden"),
    (ITAML(), "golden"),
    (MetaBGD(), "hand-checked"),
    (ICaRL(), "restated"),
    (BiC(), "restated"),
    (LwFExemplars(), "golden"),
    (LUCIR(), "golden"),
    (Reptile(), "restated"),
    (FOMAML(), "restated"),
    (FixedRep(), "restated"),
    (Replayed(), "restated"),
    (Oracle(), "restated"),
    (Teacher(), "hand-checked"),
    (Multitask(), "hand-checked"),
    (HAT(), "hand-checked"),
    (OML(), "hand-checked"),
    (Rep(), "hand-checked"),
    (ICaRLTI(), "hand-checked"),
    (Independent(), "hand-checked"),
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

METHODS = {method.name: method for method, _ in _ROWS}
CHECKED = {method.name: checked for method, checked in _ROWS}


def make(name: str, **options: Any) -> Method:
    """A method by its name on the command line, with other options than its defaults.

    Raises:
      UserError: for an unknown name or option, or a value that is none.
    """
    check_known("method", name, METHODS)
    return METHODS[name].replace(**options)
