"""The methods, one module a family, and their factories by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from cljax.types import Method

__all__ = ["CHECKED", "METHODS"]

# A line a method: its name, the module and the factory in it, and how its update is checked:
# golden (a step-by-step trace of the authors' code), hand-checked (computed steps in the tests),
# or restated (known at second hand, steps computed).
_LINES = """
lamaml         lamaml.lamaml             golden
cmaml          lamaml.cmaml              golden
sync-lamaml    lamaml.sync_lamaml        golden
la-er          laer.la_er                golden
er             er.er                     golden
mer            mer.mer                   golden
gem            gem.gem                   golden
agem           gem.agem                  golden
itaml          itaml.itaml               golden
meta-bgd       metabgd.meta_bgd          hand-checked
icarl          icarl.icarl               restated
bic            bic.bic                   restated
lwf-exemplars  icarl.lwf_exemplars       golden
lucir          lucir.lucir               golden
reptile        reptile.reptile           restated
fomaml         reptile.fomaml            restated
fixed-rep      fixed_rep.fixed_rep       restated
replayed       replayed.replayed         restated
oracle         replayed.oracle           restated
teacher        teacher.teacher           hand-checked
multitask      multitask.multitask       hand-checked
hat            hat.hat                   hand-checked
oml            oml.oml                   hand-checked
rep            rep.rep                   hand-checked
icarl-ti       icarl_ti.icarl_ti         hand-checked
independent    independent.independent   hand-checked
iid            joint.iid                 hand-checked
joint          joint.joint               hand-checked
finetune       finetune.finetune         hand-checked
online         finetune.online           hand-checked
sgd            finetune.sgd              hand-checked
ewc            finetune.ewc              hand-checked
online-ewc     finetune.online_ewc       restated
si             finetune.si               restated
mas            finetune.mas              restated
rwalk          finetune.rwalk            restated
lwf            finetune.lwf              restated
"""


def _factory(place: str) -> Callable[..., Method]:
    module, _, name = place.partition(".")
    return getattr(import_module(f"cljax.methods.{module}"), name)


_ROWS = [line.split() for line in _LINES.strip().splitlines()]
METHODS = {name: _factory(place) for name, place, _ in _ROWS}
CHECKED = {name: checked for name, _, checked in _ROWS}
