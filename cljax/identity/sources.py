"""Where code comes from: an installed package, or a source text of the user's own.

Code of installed packages is told by its name and the package's version; code of the user's own by
the SHA-256 of its module's file or, where there is none (a notebook, a prompt), of its own lines.
"""

from __future__ import annotations
import __future__

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import linecache
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Package", "Source", "own_source", "package_of"]


class Package(NamedTuple):
    """An installed package, as far as code is told by its name.

    ``files`` is "" for a release from an index, which its version tells; else the SHA-256 of the
    files that pip recorded, for one that was installed from a folder or a repository.
    """

    name: str
    version: str
    files: str = ""


class Source(NamedTuple):
    """The SHA-256 of a source text, and where in it code ends: line and column."""

    sha256: str
    ends: tuple[int, int]


class _Compiled(NamedTuple):
    """A source text's SHA-256, its lines, and every piece of code in it."""

    sha256: str
    lines: tuple[str, ...]
    codes: frozenset[types.CodeType]


def package_of(module: str) -> Package | None:
    """The installed package that a module belongs to; None for the user's own modules."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__" and _standard(top):
        return Package("python", ".".join(map(str, sys.version_info[:3])))
    if top == "cljax":
        return Package("cljax", _version("cljax"))
    return _package(top)


def _standard(top: str) -> bool:
    """Whether a module with a name of the standard library lies there, and is not the user's."""
    module = sys.modules.get(top)
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    origin = origin or getattr(module, "__file__", None) or _found_at(top)
    if origin in (None, "built-in", "frozen"):
        return True
    return any(origin.startswith(folder + os.sep) for folder in _standard_folders())


@functools.cache
def _standard_folders() -> tuple[str, ...]:
    home = os.path.dirname(os.__file__)
    return sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), home


def _found_at(top: str) -> str | None:
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None
    return None if spec is None else spec.origin


@functools.cache
def _package(top: str) -> Package | None:
    folder = _installed_in(top)
    if folder is None:
        return None
    for name in (top, top.replace("_", "-")):
        try:
            result = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return _described(result)
    for listed in sorted(Path(folder).glob("*.dist-info/top_level.txt")):  # dm-haiku holds haiku
        if top in listed.read_text("utf-8", "replace").split():
            return _described(metadata.Distribution.at(listed.parent))
    return None


def _installed_in(top: str) -> str | None:
    """The folder of installed packages that holds a module, if one does."""
    module = sys.modules.get(top)
    try:
        spec = module.__spec__ if module is not None else importlib.util.find_spec(top)
    except (ValueError, ImportError, AttributeError):
        return None
    if spec is None:
        return None
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    for folder in _site_folders():
        if any(place and place.startswith(folder + os.sep) for place in places):
            return folder
    return None


@functools.cache
def _site_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return tuple(sorted(folders, key=len, reverse=True))


def _described(distribution: metadata.Distribution) -> Package:
    name, version = distribution.metadata["Name"], distribution.version
    if distribution.read_text("direct_url.json") is None:
        return Package(name, version)
    lines = sorted((distribution.read_text("RECORD") or "").splitlines())
    code = [line for line in lines if line.split(",")[0].endswith((".py", ".so", ".pyd"))]
    return Package(name, version, hashlib.sha256("\n".join(code).encode()).hexdigest())


@functools.cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def own_source(code: types.CodeType, scope: Mapping[str, Any]) -> Source | None:
    """The text that code of the user's was compiled from.

    That is its module's file; where the module has none (a notebook, a prompt), the lines of the
    code itself. Where code ends tells two functions of one line apart. None where there is no
    text, or the text is no longer what was compiled (a file that was edited after its import), or
    the code says no columns and its line holds several functions.

    Args:
      scope: the globals of the function that runs the code.
    """
    path, ends = scope.get("__file__"), max(_ends(code), default=(code.co_firstlineno, 0))
    if isinstance(path, str) and _same_file(code.co_filename, path):
        result = _of_file(path)
        # An import hook (pytest's, a type checker's) compiles another tree than the file's.
        hooked = type(scope.get("__loader__")) not in (
            importlib.machinery.SourceFileLoader, type(None),
        )  # fmt: skip
        if result is None or not (hooked or code in result.codes) or _one_of_many(code, result):
            return None
        return Source(result.sha256, ends)
    lines = linecache.getlines(code.co_filename, dict(scope))
    result = _compiled("".join(lines)) if lines else None
    if result is None or code not in result.codes or _one_of_many(code, result):
        return None
    first = code.co_firstlineno - 1
    own = "".join(result.lines[first : ends[0]])
    return Source(hashlib.sha256(own.encode()).hexdigest(), (ends[0] - first, ends[1]))


def _one_of_many(code: types.CodeType, result: _Compiled) -> bool:
    """Whether code without columns (``python -X no_debug_ranges``) shares its line and name."""
    if any(column is not None for _, _, _, column in code.co_positions()):
        return False
    told = (code.co_firstlineno, code.co_name, code.co_flags)
    return sum((c.co_firstlineno, c.co_name, c.co_flags) == told for c in result.codes) > 1


def _same_file(a: str, b: str) -> bool:
    """Whether two paths of one program name one file; it may have changed its folder since."""
    if a == b or b.endswith(os.sep + a):
        return True
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _of_file(path: str) -> _Compiled | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return _read(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(256)
def _read(path: str, changed_ns: int, size: int) -> _Compiled | None:
    try:
        return _compiled(importlib.util.decode_source(Path(path).read_bytes()))
    except (OSError, UnicodeError, SyntaxError):
        return None


@functools.lru_cache(64)
def _compiled(text: str) -> _Compiled | None:
    """A text with the code in it, however its parts were compiled; None if it does not compile."""
    # A notebook's cells may await at their top, and import annotations for later cells.
    codes: set[types.CodeType] = set()
    for more in (0, __future__.annotations.compiler_flag):
        try:
            codes.update(
                _codes(
                    compile(
                        text, "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | more, dont_inherit=True
                    )
                )
            )
        except (SyntaxError, ValueError):
            return None
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return _Compiled(sha256, tuple(text.splitlines(keepends=True)), frozenset(codes))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _ends(code: types.CodeType) -> Iterator[tuple[int, int]]:
    for own in _codes(code):
        for _, line, _, column in own.co_positions():
            if line is not None:
                yield line, column or 0
