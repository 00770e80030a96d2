"""The reference: every public name has a docstring, and what has none is refused."""

from __future__ import annotations

import sys

import pytest

import cljax
from cljax.cli import command, reference
from cljax.errors import UserError

SOURCE = {
    "__init__": '"""A package."""\n__all__ = []\n',
    "good": (
        '"""A module."""\n'
        "from typing import Literal, NamedTuple\n"
        "__all__ = ['Kind', 'Point', 'SIZE', 'f']\n"
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
    assert reference.undocumented(reference.modules_of(cljax)) == []


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
        reference.write(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_private_modules_names_constants_and_fields_need_none(package, tmp_path):
    pytest.importorskip("pdoc")
    name = package("documented_well", _private="def f():\n    pass\n")
    page = reference.write(tmp_path / "out", name)
    assert f'<a href="{name}/good.html">{name}.good</a></td><td>A module.' in page.read_text()
    text = (tmp_path / "out" / name / "good.html").read_text()
    assert "Whether it is far." in text and "not_named" not in text
    assert not (tmp_path / "out" / name / "_private.html").exists()


def test_the_command_needs_a_folder(capsys):
    with pytest.raises(SystemExit) as done:
        command.main(["docs"])
    assert done.value.code == 2
    assert "cljax docs needs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_reference_of_cljax_is_written(tmp_path, capsys):
    pytest.importorskip("pdoc")
    with pytest.raises(SystemExit) as done:
        command.main(["docs", str(tmp_path / "api")])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "api" / "index.html")
    page = (tmp_path / "api" / "cljax" / "memory" / "reservoir.html").read_text()
    assert "Algorithm R" in page and "sample" in page and 'href="../../index.html"' in page
    links = (tmp_path / "api" / "index.html").read_text()
    for module in reference.modules_of(cljax):
        assert f">{module.__name__}</a>" in links
        assert (tmp_path / "api" / f"{module.__name__.replace('.', '/')}.html").exists()
