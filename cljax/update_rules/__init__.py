"""Learned update rules: gates on every weight's gradient, and how they are trained."""

from cljax.update_rules.gate import Gate, learned_step, learned_update, lstm_gate, multipliers

__all__ = ["Gate", "learned_step", "learned_update", "lstm_gate", "multipliers"]
