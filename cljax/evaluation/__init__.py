"""What is asked of trained networks: accuracy, readouts, inference of tasks."""

from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.again import evaluate
from cljax.evaluation.continuum import continuum_lower_bound
from cljax.evaluation.linear import ReadoutResult, readout

__all__ = ["Evaluation", "ReadoutResult", "continuum_lower_bound", "evaluate", "readout"]
