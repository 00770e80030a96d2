"""Learned update rules: gates on every weight's gradient, and how they are trained."""

from cljax.update_rules import shipped
from cljax.update_rules.gate import Gate, learned_step, learned_update, lstm_gate, multipliers
from cljax.update_rules.shipped import load, provenance

__all__ = [
    "Gate", "learned_step", "learned_update", "load", "lstm_gate", "multipliers", "provenance",
    "shipped",
]  # fmt: skip
