"""``collect``: README, guides and notebooks of a checkout, with links that lead somewhere.

A link to another page stays; one to a picture brings it along; one to any other file of the
checkout leads to the repository; one to no file is a mistake. The README is the first page.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cljax.errors import UserError

__all__ = ["Checkout", "collect", "find", "first_page", "picture_of", "repository"]

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_PICTURES = (".png", ".svg", ".jpg")
_ALONE = """# cljax

[All methods](gallery.md) and [every public name](reference/index.md). The guides and notebooks come
with a checkout, and this was made without one.
"""


class Checkout(NamedTuple):
    """What the site takes from a checkout, by its path in the site's source."""

    files: Mapping[str, bytes]
    guides: tuple[str, ...] = ()
    notebooks: tuple[str, ...] = ()


def repository(root: Path) -> str:
    """The address of the project's repository, as the checkout states it."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"]


def find() -> Path | None:
    """The checkout that is the current folder or holds the package, if one does."""
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "notebooks" / "guides").is_dir() and (folder / "cljax").is_dir():
            return folder
    return None


def collect(root: Path, address: str) -> Checkout:
    """The pages of a checkout.

    Args:
      root: its folder.
      address: of the repository, which links to files that are no pages lead to.

    Raises:
      UserError: for links to files that are not there.
    """
    guides = _ordered(root)
    notebooks = tuple(sorted(f"notebooks/{p.name}" for p in (root / "notebooks").glob("*.ipynb")))
    pages = ("README.md", "CHANGELOG.md", *guides, *notebooks)
    files: dict[str, bytes] = {}
    missing: list[str] = []
    for page in pages:

        def led(target: str, page: str = page) -> str:
            path = os.path.normpath(os.path.join(os.path.dirname(page), target)).replace("\\", "/")
            if not (root / path).exists():
                missing.append(f"{page} to {target}")
            elif path == "README.md":
                return os.path.relpath("index.md", os.path.dirname(page) or ".")
            elif path in pages:
                return target
            elif path.endswith(_PICTURES):
                files[path] = (root / path).read_bytes()
                return target
            kind = "tree" if (root / path).is_dir() else "blob"
            return f"{address}/{kind}/main/{path}"

        text = (root / page).read_text("utf-8")
        make = _notebook if page.endswith(".ipynb") else _relinked
        files["index.md" if page == "README.md" else page] = make(text, led).encode()
    if missing:
        raise UserError(f"A link leads nowhere: {missing[0]}; {len(missing)} in all.")
    return Checkout(files, guides, notebooks)


def first_page(checkout: Checkout | None) -> bytes:
    """The first page: the README or, without a checkout, a title; then what there is."""
    if checkout is None:
        text, guides, notebooks, rest = _ALONE, (), (), ()
    else:
        text = checkout.files["index.md"].decode()
        guides, notebooks, rest = checkout.guides, checkout.notebooks, ("CHANGELOG",)
    parts = {
        "Guides": guides,
        "Notebooks": notebooks,
        "Methods and names": ("gallery", "reference/index", *rest),
    }
    trees = [
        "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {title}\n:maxdepth: 2\n", *entries, "```"])
        for title, entries in parts.items()
        if entries
    ]
    return "\n\n".join([text, *trees, ""]).encode()


def picture_of(notebook: bytes) -> bytes | None:
    """The last picture among a notebook's outputs, as PNG."""
    pictures = [
        output["data"]["image/png"]
        for cell in json.loads(notebook)["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    return base64.b64decode("".join(pictures[-1])) if pictures else None


def _ordered(root: Path) -> tuple[str, ...]:
    """The guides in the order of the README's links, then those that it does not name."""
    named = [link[1].strip("/") for link in _LINK.findall((root / "README.md").read_text("utf-8"))]
    all_ = sorted(f"notebooks/guides/{p.name}" for p in (root / "notebooks/guides").glob("*.md"))
    first = [name for name in dict.fromkeys(named) if name in all_]
    return (*first, *(name for name in all_ if name not in first))


def _relinked(text: str, led: Callable[[str], str]) -> str:
    parts = _FENCED.split(text)
    outside = [_LINK.sub(lambda result: _one(result, led), part) for part in parts[::2]]
    parts[::2] = outside
    return "".join(parts)


def _one(match: re.Match[str], led: Callable[[str], str]) -> str:
    begin, target, anchor = match[1], match[2], match[3] or ""
    if not target or ":" in target:
        return match[0]
    return f"{begin}{led(target)}{anchor})"


def _notebook(text: str, led: Callable[[str], str]) -> str:
    notebook: dict[str, Any] = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _relinked("".join(cell["source"]), led)
    return json.dumps(notebook)
