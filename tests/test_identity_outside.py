"""What reads files, clocks, the environment or random state is no part of an identity: listed."""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import json
import linecache
import os
import pathlib
import sys
import time
from time import perf_counter

import jax
import numpy as np
import optax
import pytest

from cljax.identity.content import content

TABLE_FILE = pathlib.Path("table.txt")


def test_what_cannot_be_told_is_listed():
    rng = np.random.default_rng(0)
    numbers = iter([1, 2])

    def draws(x):
        return x + np.random.normal()

    def reads(x):
        return x * np.load("table.npy")

    compiled = jax.jit(lambda x: x).lower(1.0).compile()
    made = eval("lambda x: x")  # noqa: S307, code without a text
    for value in (
        lambda: rng,
        lambda: numbers,
        draws,
        reads,
        lambda: compiled,
        made,
        object().__new__,
    ):
        found = content(value)
        assert found.unknown or value is object().__new__, value
    seeded = content(lambda: np.random.default_rng(0).normal())
    assert not seeded.unknown


def test_what_is_read_from_outside_the_source_is_listed():
    table = pathlib.Path("table.txt")
    for value in (
        lambda: pathlib.Path("table.txt").read_text(),
        lambda name: name.read_bytes(),
        lambda: table.read_text(),
        lambda: TABLE_FILE.open(),
        lambda: io.open("table.txt"),  # noqa: UP020
        lambda: sys.argv[1],
        lambda: sys.modules["__main__"],
        lambda: time.time(),
        lambda: perf_counter(),
        lambda: datetime.datetime.now(),
    ):
        assert content(value).unknown, value
    assert not content(lambda: (sys.version, time.sleep(0), datetime.timedelta(1))).unknown


def import_as():
    import numpy as np

    return np.load("width.npy")


def import_inside():
    import numpy

    def inner():
        return lambda: numpy.lib.npyio.NpzFile("width.npz")

    return inner


def import_submodule():
    import os.path as where

    return where.getmtime("width.npy")


def import_dotted():
    import scipy.io

    return scipy.io.loadmat("width.mat")


def import_global():
    global never_bound
    import random as never_bound

    return never_bound.random()


def other_name():
    import os as o

    mine = o
    return mine.environ["WIDTH"]


def other_name_of_a_global():
    read = np.lib.npyio
    return read.NpzFile("width.npz")


def from_import(module, *names):
    """A function that imports names from a module and returns them."""
    lines = f"def f(x):\n    from {module} import {', '.join(names)}\n    return {names[-1]}(x)\n"
    return notebook(lines)["f"]


def whole_import(asked):
    """A function that imports a module and asks something of it."""
    module = asked.rpartition(".")[0]
    return notebook(f"def f(x):\n    import {module} as own\n    return own{asked[len(module) :]}")[
        "f"
    ]


def notebook(lines):
    """The names that lines of their own define, which can be read back as those of a cell can."""
    name = f"<own lines {hashlib.sha256(lines.encode()).hexdigest()[:8]}>"
    linecache.cache[name] = len(lines), None, lines.splitlines(True), name
    scope = {"__name__": "own_lines"}
    exec(compile(lines, name, "exec"), scope)  # noqa: S102
    return scope


def free(module):
    return lambda: module.load("width.npy")


FROM_OUTSIDE = {
    "import as": import_as, "import inside": import_inside, "of a submodule": import_submodule,
    "import of a dotted name": import_dotted, "import of a global": import_global,
    "another name": other_name, "another name of a global": other_name_of_a_global,
    "from os": from_import("os", "path", "environ"), "from time": from_import("time", "time"),
    "from numpy.random": from_import("numpy.random", "normal"),
    "from pathlib": lambda: pathlib.Path("f").open(), "path in a chain": lambda c: c.where.open(),
    "image": whole_import("PIL.Image.open"), "mat": from_import("scipy.io", "loadmat"),
    "module in a closure": free(np), "module in another's": free(json),
    "module as a default": lambda x, own=np: own.load(x),
    "module as a keyword": lambda x, *, own=np: own.genfromtxt(x),
    **{asked: whole_import(asked) for asked in (
        "random.random", "builtins.open", "os.environ", "os.popen", "os.getpid", "os.listdir",
        "subprocess.check_output", "glob.glob", "pickle.load", "platform.node", "uuid.uuid4",
        "importlib.import_module", "zipfile.ZipFile", "pathlib.Path.cwd", "os.path.exists",
    )},
    "value open": lambda x, read=open: read(x), "value in a closure": (lambda r: lambda: r())(open),
    "value getenv": [os.getenv], "value load": {"read": np.load}, "environment": os.environ,
    "partial": functools.partial(lambda read, c: read(), functools.partial(np.load, "w.npy")),
    "method of a path": pathlib.Path("f").read_text, "clock": datetime.datetime.now,
    "compiled": os.getpid, "class": np.lib.npyio.NpzFile, "in a class": type("K", (), {"r": open}),
}  # fmt: skip


@pytest.mark.parametrize("what", FROM_OUTSIDE)
def test_readers_of_the_outside_are_listed_however_they_are_reached(what):
    assert content({"it": FROM_OUTSIDE[what]}).unknown, what


def test_functions_with_more_names_than_a_byte_tells_are_read_alike():
    many = "".join(f"    a.n{i}\n" for i in range(300))
    lines = f"import numpy as np\ndef f(a):\n{many}    return np.load(a)\n"
    assert content(notebook(lines)["f"]).unknown == (
        "numpy.load (what it gives stands in no source)",
    )


def test_what_is_a_function_of_its_arguments_alone_is_told():
    class Gate:
        def open(self):
            return self.open

    def net(outputs):
        import os.path as where
        import subprocess
        import uuid
        from os import fspath, path
        from random import Random

        import numpy as np

        try:
            draws = np.random.default_rng(0), Random(0), np.random.RandomState(1)
        except subprocess.CalledProcessError:
            return None
        return where.join(fspath("a"), path.basename("b")), uuid.uuid5, draws, np.linalg.norm

    for value in (
        net, Gate, os.path.join, [os.fspath, np.random.default_rng, np.linalg.norm, time.sleep],
        functools.partial(np.dot, 1), lambda: jax.lax.scan, lambda: io.BytesIO(b""),
        lambda x, own=np: own.dot(x, x), pathlib.Path("f"), json.loads, np.float32, jax.nn.relu,
        optax.adam(1e-3),
    ):  # fmt: skip
        assert not content(value).unknown, value
