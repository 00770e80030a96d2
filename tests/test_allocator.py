"""Freed memory stays in the process where the C library has a word for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
import cljax
took = cljax.runtime.keep_freed_memory() if {keep} else False
def churn():
    np.ones(8_000_000)
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    churn()
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took, count = done.stdout.split()
    return took == "True", int(count)


def test_blocks_are_used_again_without_asking_the_kernel():
    took, kept = faults(True)
    if not took:
        pytest.skip("the C library has no mallopt")
    assert kept < 0.1 * faults(False)[1]
