"""The site: every public name has a docstring, every link leads somewhere, and it is built."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

import cljax
from cljax.cli import command
from cljax.errors import UserError
from cljax.methods import METHODS
from cljax.site import build, docstrings, gallery, make, names, pages, reference

ROOT = Path(__file__).parents[1]

SOURCE = {
    "__init__": '"""A package."""\n__all__ = []\n',
    "good": (
        '"""A module."""\n'
        "from typing import Literal, NamedTuple\n"
        "from fractions import Fraction\n"
        "__all__ = ['Fraction', 'Kind', 'Point', 'SIZE', 'f']\n"
        "Kind = Literal['a', 'b']\nSIZE = 3\n"
        "class Point(NamedTuple):\n"
        '    """A point."""\n    x: int\n'
        "    @property\n    def far(self):\n"
        '        """Whether it is far."""\n        return self.x > 1\n'
        'def f():\n    """Does."""\n'
        "def not_named():\n    pass\n"
    ),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of the modules given, by name."""

    def make(name, **modules):
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        for module, text in {**SOURCE, **modules}.items():
            (folder / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(folder.parent)
        return name

    yield make
    for name in [name for name in sys.modules if name.startswith("documented_")]:
        del sys.modules[name]


def test_every_public_name_of_ours_is_documented():
    assert names.undocumented(names.modules_of(cljax)) == []


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("", ""),
        ('"""M."""\n__all__ = ["f"]\ndef f():\n    pass\n', ".f"),
        ('"""M."""\n__all__ = ["C"]\nclass C:\n    pass\n', ".C"),
        ('"""M."""\n__all__ = ["C"]\nclass C:\n    """C."""\n    def m(self):\n        pass\n',
         ".C.m"),
        ('"""M."""\nfrom typing import NamedTuple\n__all__ = ["C"]\nclass C(NamedTuple):\n'
         "    x: int\n", ".C"),
        ('"""M."""\nimport functools\n__all__ = ["p"]\np = functools.partial(print)\n', ".p"),
    ],
)  # fmt: skip
def test_what_has_no_docstring_is_named_and_refused(module, missing, package, tmp_path):
    name = package("documented_badly", bad=module)
    with pytest.raises(UserError, match=rf"Without a docstring: {name}\.bad{missing}; write"):
        build(tmp_path / "out", package=name)
    assert not (tmp_path / "out").exists()


def test_private_modules_names_constants_and_fields_need_none(package):
    pytest.importorskip("sphinx")
    name = package("documented_well", _private="def f():\n    pass\n")
    modules = names.modules_of(__import__(name))
    names.check_documented(modules)
    made = reference.pages(modules)
    page = made[f"reference/{name}.good.md"]
    assert f"| [{name}.good]({name}.good.md) | A module |" in made["reference/index.md"]
    assert "Whether it is far." in page and ":::{py:function} f()" in page
    assert ":::{py:data} Fraction\n\n`fractions.Fraction`\n:::" in page  # of another package
    assert "not_named" not in page and f"reference/{name}._private.md" not in made


def test_a_docstring_becomes_markdown():
    said = docstrings.markdown(
        """Adds <B> of ``x[i]``, as a * b * c.

            update:  a \\* b

        Args:
          x: leaves [B],
            any dtype.
          **options: others.
        Returns:
          The sum.
        Example:
          >>> 1 + 1
          2
        """
    )
    for part in (
        r"Adds \<B> of `x[i]`, as a \* b \* c.",
        "```text\nupdate:  a \\* b\n```",
        "- `x`: leaves \\[B\\], any dtype.\n- `**options`: others.",
        "**Returns** The sum.",
        "```pycon\n>>> 1 + 1\n2\n```",
    ):
        assert part in said, said
    assert docstrings.first_line("Replay (Chaudhry et al. 2019). More.") == (
        "Replay (Chaudhry et al. 2019)"
    )


@pytest.fixture
def checkout(tmp_path):
    """A small checkout: a README, a guide, and a notebook that names a paper."""

    def make_(guide="# Guide\n", text="arXiv:2007.13904"):
        folder = tmp_path / "checkout"
        (folder / "notebooks" / "guides").mkdir(parents=True)
        (folder / "cljax").mkdir()
        (folder / "experiments.md").write_text("# Results\n")
        (folder / "pyproject.toml").write_text(
            '[project]\nurls = { Repository = "https://x.org/y" }\n'
        )
        (folder / "README.md").write_text("# Title\n\n[a](notebooks/guides/guide.md)\n")
        (folder / "CHANGELOG.md").write_text("# Changelog\n")
        (folder / "notebooks" / "guides" / "guide.md").write_text(guide)
        picture = {"output_type": "display_data", "data": {"image/png": "QUJD"}, "metadata": {}}
        cells = [
            {"cell_type": "markdown", "source": [f"# N\n\n{text}"], "metadata": {}, "id": "a"},
            {"cell_type": "code", "source": ["cljax.ER(lr=0.1)"], "outputs": [picture],
             "execution_count": 1, "metadata": {}, "id": "b"},
        ]  # fmt: skip
        (folder / "notebooks" / "n.ipynb").write_text(
            json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        return folder

    return make_


def test_links_stay_among_pages_and_lead_to_the_repository_otherwise(checkout):
    folder = checkout("[a](../n.ipynb) [b](../../experiments.md#x) [c](../../README.md) "
                      "[d](https://z.org)\n\n```python\nf[0](nowhere)\n```\n")  # fmt: skip
    made = pages.collect(folder, pages.repository(folder))
    assert made.files["notebooks/guides/guide.md"].decode() == (
        "[a](../n.ipynb) [b](https://x.org/y/blob/main/experiments.md#x) [c](../../index.md) "
        "[d](https://z.org)\n\n```python\nf[0](nowhere)\n```\n"
    )
    assert made.guides == ("notebooks/guides/guide.md",)
    assert made.notebooks == ("notebooks/n.ipynb",)


@pytest.mark.parametrize("where", ["guide", "text"])
def test_a_link_to_no_file_ends_the_build(checkout, where):
    folder = checkout(**{where: "# T\n\n[a](missing.md)\n"})
    with pytest.raises(UserError, match=r"A link leads nowhere: \S+ to missing\.md; 1 in all\."):
        pages.collect(folder, "https://x.org/y")


def test_the_gallery_shows_every_method_with_its_papers_and_notebooks(checkout):
    folder = checkout("# G\n\n`hat`\n")
    made = gallery.gallery(pages.collect(folder, "https://x.org/y"))
    page = made["gallery.md"].decode()
    for name in METHODS:
        assert f"(method-{name})=" in page and f"[{name}](#method-{name})" in page
    parts = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    for family in ("lamaml, cmaml, sync-lamaml", "er"):  # by its paper, by its class
        assert "**Notebooks** [](notebooks/n.ipynb)" in parts[family]
    assert "arxiv.org/abs/2007.13904" in parts["lamaml, cmaml, sync-lamaml"]
    assert "**Guides** [](notebooks/guides/guide.md)" in parts["hat"]
    assert "Serrà" in parts["hat"] and "```text\n" in parts["er"]
    assert made["pictures/n.png"] == b"ABC"
    assert "**Notebooks**" not in gallery.gallery(None)["gallery.md"].decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "cljax docs needs one folder to write into"),
        (["--source", "x"], "cljax docs needs one folder to write into"),
        (["out", "--sauce", "x"], "--source"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(arguments, said, capsys):
    with pytest.raises(SystemExit) as done:
        command.main(["docs", *arguments])
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_a_source_that_is_no_checkout_is_refused(tmp_path):
    pytest.importorskip("myst_nb")
    with pytest.raises(UserError, match="is no checkout of cljax"):
        build(tmp_path / "out", tmp_path)


def test_without_sphinx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sphinx", None)
    with pytest.raises(UserError, match=r"sphinx is not installed; pip install 'cljax\[docs\]'"):
        build(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["[a](other.md)", "[a](#nowhere)", "{py:obj}`cljax.nothing`", "![a](none.png)"]
)
def test_what_sphinx_does_not_find_ends_the_build(text, tmp_path):
    pytest.importorskip("myst_nb")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text(f"# Title\n\n{text}\n")
    with pytest.raises(UserError, match=r"The site is not whole: index\.md:3: WARNING: .* in all"):
        make.run_sphinx(tmp_path, make.options_of("", execute=False))


@pytest.mark.slow
def test_notebooks_are_run_when_asked_and_one_that_fails_ends_the_build(checkout, tmp_path):
    pytest.importorskip("myst_nb")
    notebook = json.loads((checkout() / "notebooks" / "n.ipynb").read_text())
    notebook["metadata"] = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# T\n\n[](n.ipynb)\n\n```{toctree}\nn\n```\n")
    for code in ("print(6 * 7)", "1 / 0"):
        notebook["cells"][1]["source"] = [code]
        (tmp_path / "source" / "n.ipynb").write_text(json.dumps(notebook))
        if code == "1 / 0":
            with pytest.raises(UserError, match=r"^n\.ipynb did not run .* division by zero\.$"):
                make.run_sphinx(tmp_path, make.options_of("", execute=True))
        else:
            make.run_sphinx(tmp_path, make.options_of("", execute=True))
            assert re.search(r"\b42\b", (tmp_path / "html" / "n.html").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of this checkout, built once."""
    pytest.importorskip("myst_nb")
    folder = tmp_path_factory.mktemp("site")
    page, whole = build(folder, ROOT)
    assert whole and page == folder / "index.html"
    return folder


@pytest.mark.slow
def test_every_module_guide_and_notebook_has_a_page(site):
    index = (site / "genindex.html").read_text()
    for module in names.modules_of(cljax):
        assert (site / "reference" / f"{module.__name__}.html").exists()
        assert f"module-{module.__name__}" in index
    for path in (ROOT / "notebooks").rglob("*.*"):
        if path.suffix in (".md", ".ipynb") and "checkpoint" not in path.name:
            assert (site / path.relative_to(ROOT).with_suffix(".html")).exists()
    page = (site / "reference" / "cljax.memory.reservoir.html").read_text()
    assert "Algorithm R" in page and 'id="cljax.memory.reservoir.sample"' in page
    assert "<img" in (site / "notebooks" / "01_quickstart.html").read_text()
    assert "reservoir" in (site / "searchindex.js").read_text()


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_a_place_in_it(site):
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for link in re.findall(r'<(?:a|img)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            target, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            place = (path.parent / target.partition("?")[0]).resolve() if target else path
            there = place.exists() and (not anchor or place not in ids or anchor in ids[place])
            broken += [] if there else [(path.name, link)]
    assert not broken
