"""``ExemplarPolicy``: how exemplars are chosen or learned, for any method that keeps them."""

from __future__ import annotations

from typing import Any

from cljax.memory import exemplars as store
from cljax.memory.exemplars import Budget
from cljax.options import Options
from cljax.types import Model, Phase, Spec

__all__ = ["ExemplarPolicy"]


class ExemplarPolicy(Options):
    """A frozen dataclass of its options; combines with any method whose state holds exemplars."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.kind

    def init(self, model: Model, spec: Spec, budget: Budget) -> Any:
        """What a method keeps in its state's field ``exemplars``: by default empty slots.

        It has the fields of ``cljax.memory.exemplars.Exemplars`` and may have others.
        """
        return store.init(store.stored(spec), budget.capacity)

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        """Phases that fill and refine that field, and read the state's ``params`` and
        ``model_state``."""
        raise NotImplementedError
