"""The architecture as a list: a room imports those above it in the list, and no other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cljax"
# Of the top level each module is a room of its own.
ROOMS = (
    "version", "errors", "stats", "metrics", "measures", "options", "types", "states", "tree",
    "keys", "optimizers", "nets", "losses", "objectives", "method", "penalty", "checks",
    "inner_loop", "implicit", "geometry", "storage", "data", "identity", "streams", "memory",
    "penalties", "update_rules", "methods", "evaluation", "engine", "resolve", "recipes",
    "references", "plot", "runner", "loggers", "sweep", "report", "runtime", "site", "cli",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("cljax", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """The modules of cljax that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in named}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


IMPORTS = [(name, other) for name, path in MODULES.items() for other in sorted(imports_of(path))]


def test_every_module_is_in_a_room():
    assert {room(name) for name in MODULES} - {"", "__main__"} == set(ROOMS)


def test_a_room_imports_those_above_it_alone():
    upward = {
        (name, other)
        for name, other in IMPORTS
        if room(name) in ROOMS
        and room(name) != room(other)
        and (room(other) not in ROOMS or ROOMS.index(room(other)) > ROOMS.index(room(name)))
    }
    assert not upward


@pytest.mark.parametrize("name", ROOMS)
def test_the_modules_of_a_room_import_each_other_in_one_direction(name):
    """Their package's own ``__init__`` gathers them, so none imports that."""
    left = {
        module: {other for inside, other in IMPORTS if inside == module and room(other) == name}
        for module in MODULES
        if room(module) == name
    }
    while free := {module for module, asks in left.items() if not asks & left.keys() - {module}}:
        left = {module: asks for module, asks in left.items() if module not in free}
    assert not left
