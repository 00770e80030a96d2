"""``build``: the site in a folder, or a sentence about what is wrong with it.

Public names without a docstring, links and references that lead nowhere and whatever else Sphinx
warns of end the build, and nothing is written.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cljax.errors import UserError, check_path
from cljax.site import gallery, names, reference
from cljax.site.pages import collect, find, first_page, repository
from cljax.version import __version__

__all__ = ["build", "options_of", "run_sphinx"]

_SECONDS = 3600  # a notebook's cell may take


def build(
    folder: str | Path,
    source: str | Path | None = None,
    *,
    execute: bool = False,
    package: str = "cljax",
) -> tuple[Path, bool]:
    """Writes the site into a folder; its first page, and whether guides and notebooks are in it.

    Args:
      source: a checkout, which guides and notebooks are taken from; None: the current folder, or
        the one that holds the package. Without any the site is the gallery and the reference.
      execute: run the notebooks anew instead of showing their stored outputs.
      package: what the reference is of.

    Raises:
      UserError: for a public name without a docstring, a link that leads nowhere, where Sphinx is
        not there, or if the folder cannot be written.
    """
    check_path(folder=folder)
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to write the site into.")
    modules = names.modules_of(importlib.import_module(package))
    names.check_documented(modules)
    _check_sphinx()
    root = find() if source is None else Path(source).expanduser()
    if root is not None and not (root / "notebooks" / "guides").is_dir():
        raise UserError(f"{root} is no checkout of cljax: it has no folder notebooks/guides.")
    address = repository(root) if root else ""
    checkout = collect(root, address) if root else None
    files: dict[str, bytes] = dict(checkout.files) if checkout else {}
    files |= {path: text.encode() for path, text in reference.pages(modules).items()}
    files |= gallery.gallery(checkout)
    files["index.md"] = first_page(checkout)
    with tempfile.TemporaryDirectory() as work:
        for path, content in files.items():
            place = Path(work) / "source" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        run_sphinx(Path(work), options_of(address, execute=execute))
        try:
            shutil.copytree(Path(work) / "html", folder, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{folder} cannot be written: {reason}.") from error
    return folder / "index.html", checkout is not None


def _check_sphinx() -> None:
    try:
        for name in ("sphinx", "myst_nb", "furo"):
            importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"The site is made by Sphinx, and {name} is not installed; pip install 'cljax[docs]'."
        ) from None


def options_of(address: str, *, execute: bool) -> dict[str, Any]:
    """What a ``conf.py`` would say."""
    return {
        "project": "cljax",
        "version": __version__,
        "release": __version__,
        "extensions": ["myst_nb"],
        "nitpicky": True,
        # Types in signatures are of many packages; what our own pages refer to is ``py:obj``.
        "nitpick_ignore_regex": [("py:(class|exc|data|attr|meth|func)", ".*")],
        "myst_enable_extensions": ["amsmath", "colon_fence", "dollarmath"],
        "myst_heading_anchors": 3,
        "nb_execution_mode": "force" if execute else "off",
        "nb_execution_timeout": _SECONDS,
        "nb_execution_raise_on_error": True,
        "nb_output_stderr": "remove",  # lines of progress
        "html_theme": "furo",
        "html_title": f"cljax {__version__}",
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_theme_options": {
            "footer_icons": [{"name": "Source", "url": address, "html": "Source", "class": ""}]
            if address
            else []
        },
        "add_module_names": False,
        "maximum_signature_line_length": 88,
        "toc_object_entries_show_parents": "hide",
    }


def run_sphinx(work: Path, options: dict[str, Any]) -> None:
    """Builds ``work/source`` into ``work/html``.

    Raises:
      UserError: with the first warning, if Sphinx has any.
    """
    from myst_nb.core.execute.base import ExecutionError
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    nocolor()
    warnings = io.StringIO()
    try:
        # What docutils registers is global; the second of two builds would warn of it.
        with contextlib.redirect_stdout(io.StringIO()), patch_docutils(), docutils_namespace():
            app = Sphinx(
                work / "source", None, work / "html", work / "trees", "html",
                confoverrides=options, status=None, warning=warnings,
            )  # fmt: skip
            app.build()
    except SphinxError as error:
        raise UserError(f"Sphinx could not make the site: {error}.") from error
    except ExecutionError as error:
        last = str(error.__cause__ or "").strip().rpartition("\n")[2]
        raise UserError(f"{Path(str(error)).name} did not run to its end: {last}.") from error
    said = [line for line in warnings.getvalue().splitlines() if line.strip()]
    if said:
        first = re.sub(r"\x1b\[[0-9;]*m", "", said[0]).replace(f"{work / 'source'}/", "")
        raise UserError(f"The site is not whole: {first} ({len(said)} in all).")
