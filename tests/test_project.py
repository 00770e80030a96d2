"""What stands around the package: one address, workflows that name what is there, lower bounds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "notebooks").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted(path for path in (ROOT / ".github").rglob("*") if path.is_file()),
]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML = sorted((ROOT / ".github").rglob("*.yml"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_the_repository_has_one_address(path: Path):
    address = PROJECT["urls"]["Repository"].removeprefix("https://")
    others = re.findall(r"github\.com/[\w.-]+/cljax\b", path.read_text("utf-8"))
    colab = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)", path.read_text())
    assert set(others) <= {address}
    assert {f"github.com/{name}" for name in colab} <= {address}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_it_is_yaml_with_a_name_or_settings(path: Path):
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "blank_issues_enabled"} & read.keys()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_is_there(path: Path):
    text = path.read_text("utf-8")
    for name in re.findall(r"(?<![\w/])(?:\.ci|tests)/[\w./]+", text):
        assert (ROOT / name).exists(), name
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert extra in PROJECT["optional-dependencies"]
    for part in re.findall(r"\b(\d\d)_\b", text):
        assert list((ROOT / "notebooks").glob(f"{part}_*.ipynb"))


@pytest.mark.parametrize("package", ["jax", "flax"])
def test_the_oldest_version_is_that_of_colab(package: str):
    pins = (ROOT / ".ci" / "colab.txt").read_text("utf-8").splitlines()
    pinned = next(line for line in pins if line.startswith(f"{package}=="))
    assert pinned.replace("==", ">=") in PROJECT["dependencies"]
