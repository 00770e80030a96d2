"""What no source or value tells: files, the environment, clocks, random state, the machine.

given_from_outside("numpy.load")   a dotted path of an installed package
path_of(np.load)   where a package's function or class is found
outside(("np", "load"), np)   what a name and the attributes asked of it ask for
"""

from __future__ import annotations

import itertools
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from cljax.identity.sources import package_of

__all__ = ["ASKED_OF_ANYTHING", "given_from_outside", "outside", "outside_by_name", "path_of"]

_EXCEPTIONS = frozenset({"CalledProcessError", "SubprocessError", "TimeoutExpired"})
_OF_OS = frozenset({
    "PathLike", "altsep", "curdir", "devnull", "error", "extsep", "fsdecode", "fsencode", "fspath",
    "linesep", "name", "pardir", "path", "pathsep", "sep", "stat_result", "strerror",
})  # fmt: skip
_OF_TEXTS = frozenset({
    "altsep", "basename", "commonpath", "commonprefix", "curdir", "dirname", "extsep", "isabs",
    "join", "normcase", "normpath", "pardir", "pathsep", "sep", "split", "splitdrive", "splitext",
})  # fmt: skip
# Modules of which everything is from outside but for these names: what is a function of what it is
# given, or is made of a seed that the code holds. The more special ones stand first.
_ALL_BUT: Mapping[str, frozenset[str]] = {
    "os.path": _OF_TEXTS, "posixpath": _OF_TEXTS, "ntpath": _OF_TEXTS, "genericpath": _OF_TEXTS,
    "os": _OF_OS, "posix": _OF_OS, "nt": _OF_OS,
    "random": frozenset({"Random"}),
    "numpy.random": frozenset(
        {"default_rng", "Generator", "RandomState", "SeedSequence", "PCG64", "Philox", "MT19937"}
    ),
    "secrets": frozenset({"compare_digest"}),
    "uuid": frozenset({"UUID", "uuid3", "uuid5"}),
    "time": frozenset({"sleep", "struct_time"}),
    "subprocess": _EXCEPTIONS | {"DEVNULL", "PIPE", "STDOUT"},
    "glob": frozenset({"escape", "has_magic", "translate"}),
    "importlib.resources": frozenset(), "platform": frozenset(), "socket": frozenset(),
    "tempfile": frozenset(), "shutil": frozenset(), "linecache": frozenset(),
    "fileinput": frozenset(), "getpass": frozenset(), "psutil": frozenset(), "sqlite3": frozenset(),
    "urllib.request": frozenset(), "http.client": frozenset(), "requests": frozenset(),
    "httpx": frozenset(),
}  # fmt: skip
# Modules, with those inside them, of which these names are.
_THESE: Mapping[str, frozenset[str]] = {
    "builtins": frozenset({"eval", "exec", "globals", "input", "vars", "__import__"}),
    "io": frozenset({"FileIO", "open_code"}), "_io": frozenset({"FileIO", "open_code"}),
    "sys": frozenset({
        "_getframe", "argv", "executable", "modules", "orig_argv", "path", "prefix", "stdin",
    }),
    "pathlib": frozenset({
        "absolute", "cwd", "exists", "expanduser", "glob", "group", "home", "is_dir", "is_file",
        "is_symlink", "iterdir", "lstat", "owner", "read_bytes", "read_text", "readlink", "resolve",
        "rglob", "samefile", "stat", "walk",
    }),
    "datetime": frozenset({"now", "today", "utcnow"}),
    "numpy": frozenset({"NpzFile", "DataSource", "fromregex"}),
    "importlib": frozenset({"import_module", "metadata", "reload"}),
    "pkgutil": frozenset({"get_data"}), "runpy": frozenset({"run_module", "run_path"}),
    "zipfile": frozenset({"ZipFile", "Path"}), "tarfile": frozenset({"TarFile"}),
    "gzip": frozenset({"GzipFile"}), "bz2": frozenset({"BZ2File"}), "lzma": frozenset({"LZMAFile"}),
    "h5py": frozenset({"File"}), "mmap": frozenset({"mmap"}), "ctypes": frozenset({"CDLL"}),
    "csv": frozenset({"DictReader", "reader"}),
    "equinox": frozenset({"tree_deserialise_leaves"}),
}  # fmt: skip
# Of any installed package, with whatever begins with ``read_``.
_READERS = frozenset({
    "fromfile", "genfromtxt", "imread", "loadmat", "loadtxt", "memmap", "mmread", "open",
    "open_memmap", "readsav",
})  # fmt: skip
_WITH_LOAD = frozenset({
    "cljax", "cloudpickle", "dill", "jax.numpy", "joblib", "json", "_json", "marshal", "numpy",
    "pickle", "_pickle", "tensorflow_datasets", "tomllib", "torch", "yaml",
})  # fmt: skip
# Attributes that ask for it, of whatever object they are asked.
ASKED_OF_ANYTHING = frozenset({
    "environ", "expanduser", "fromfile", "genfromtxt", "getenv", "imread", "is_dir", "is_file",
    "iterdir", "loadmat", "loadtxt", "open", "read_bytes", "read_csv", "read_text", "rglob",
})  # fmt: skip


def given_from_outside(path: str) -> bool:
    """Whether what a dotted path of an installed package names gives what no value tells."""
    if package_of(path) is None:
        return False
    for module, harmless in _ALL_BUT.items():
        if path.startswith(f"{module}."):
            return harmless.isdisjoint(path[len(module) + 1 :].split("."))
    parts = path.split(".")
    if not _READERS.isdisjoint(parts[1:]) or any(part.startswith("read_") for part in parts[1:]):
        return True
    if parts[-1] == "load" and ".".join(parts[:-1]) in _WITH_LOAD:
        return True
    return any(
        path.startswith(f"{module}.") and not names.isdisjoint(path[len(module) + 1 :].split("."))
        for module, names in _THESE.items()
    )


def path_of(value: Any) -> str | None:
    """The dotted path at which a function or class says that it is found; None for other things."""
    if isinstance(value, type(os.environ)):
        return "os.environ"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if isinstance(value, types.BuiltinFunctionType) and module is None:  # datetime.datetime.now
        module = getattr(value.__self__, "__module__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    return f"{module}.{name}"


def outside(chain: tuple[str, ...], base: Any) -> str | None:
    """What a chain asks for that no value tells, such as "open" or "numpy.random.normal".

    Nothing is imported: of a module that is not, the names alone tell.

    Args:
      chain: a name and the attributes asked of it, one of the other.
      base: the value of the chain's first name.
    """
    value, shown, left = base, chain[0], list(chain[1:])
    while True:
        if isinstance(value, types.ModuleType):
            if not left:
                return None
            shown, held = f"{value.__name__}.{left[0]}", vars(value)
            if given_from_outside(shown):
                return shown
            if left[0] not in held and shown not in sys.modules:
                return outside_by_name(value.__name__, left)
            value = held.get(left.pop(0), sys.modules.get(shown))
            continue
        path = path_of(value)
        if path is not None and given_from_outside(path):
            return shown if path.endswith(shown.rpartition(".")[2]) else path
        if isinstance(value, (type, PurePath)):
            kind = value if isinstance(value, type) else PurePath
            return outside_by_name(f"{kind.__module__}.{kind.__qualname__}", left)
        result = next((asked for asked in left if asked in ASKED_OF_ANYTHING), None)
        return result and f"{shown}.{result}"


def outside_by_name(path: str, asked: Sequence[str]) -> str | None:
    """The dotted path of what is from outside, of a path and what is asked of it one by one."""
    paths = itertools.accumulate(asked, lambda start, name: f"{start}.{name}", initial=path)
    return next((one for one in paths if given_from_outside(one)), None)
