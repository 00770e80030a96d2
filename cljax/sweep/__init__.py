"""Sweeps: many settings and seeds as few compiled programs, a folder a lane.

    plan:   lanes (setting, seed), grouped by what needs a program of its own
    run:    one ``learn`` a group; a lane's folder is written when the lane ends
    merge:  a table with intervals, the best setting, a heat map

Real hyper-parameters are arguments of the compiled programs, so settings that differ only in
them share one; others are grouped. Lanes are compared on validation images of their seeds, never
on tests, and their seeds start at 1000, apart from those that runs report.
"""

from cljax.sweep.execute import run
from cljax.sweep.folders import Setting, Sweep, load, merge, status
from cljax.sweep.lanes import FIRST_SEED, Lane, grid, label
from cljax.sweep.layout import Plan, plan

__all__ = [
    "FIRST_SEED", "Lane", "Plan", "Setting", "Sweep", "grid", "label", "load", "merge", "plan",
    "run", "status",
]  # fmt: skip
