"""Freed memory stays in the process where the C library has a word for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import threading
import numpy as np
import cljax
took = cljax.runtime.keep_freed_memory({options}) if {keep} else False
def churn():
    np.ones({size}_000_000)
def measured():
    global count
    churn()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        churn()
    count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
thread = threading.Thread(target=measured) if {size} > 8 else None
thread.start() or thread.join() if thread else measured()
print(took, count)
"""


def faults(keep, options="", size=8):
    command = [sys.executable, "-c", PROGRAM.format(keep=keep, options=options, size=size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took, count = done.stdout.split()
    return took == "True", int(count)


def test_blocks_are_used_again_without_asking_the_kernel():
    took, kept = faults(True)
    if not took:
        pytest.skip("the C library has no mallopt")
    assert kept < 0.1 * faults(False)[1]


def test_so_are_large_blocks_of_threads_where_that_is_asked():
    took, kept = faults(True, "large=True", size=20)
    if not took:
        pytest.skip("the C library has no mallopt")
    assert kept < 0.1 * faults(True, size=20)[1]
