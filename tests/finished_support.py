"""A finished run of every method of the contract table, each trained once for all tests."""

from __future__ import annotations

import functools

import contract_support
import incremental_support
import support
import transfer_support

import cljax

NAMES = sorted(contract_support.CASES)


def stream_of(name):
    """A small stream of three tasks (two for what practises on held-out classes)."""
    if name in contract_support.HELD:
        return transfer_support.stream(pretrain=3, steps=3)
    if name in contract_support.MULTI_HEAD:
        return incremental_support.stream(per_class=12, multi_head=True, scenario="task")
    if name in contract_support.CLASS_INCREMENTAL:
        return incremental_support.stream(per_class=12)
    return support.stream()


def options_of(name, **options):
    net = "mlp:5:cosine" if name in contract_support.COSINE else "mlp:5"
    return {"batch_size": 8, "net": net, "seeds": [3], "entries": "diagonal-last", **options}


def method_of(name):
    """Continua of three rows, which divide no task's tests."""
    return contract_support.make(name, **({"continuum": 3} if name == "itaml" else {}))


@functools.cache
def finished(name):
    """A run of a method on its stream, in memory."""
    return cljax.run(method_of(name), stream_of(name), **options_of(name))
