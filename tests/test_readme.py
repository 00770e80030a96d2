"""Python blocks of the README and of the guides run as they stand, each by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "README.md", *sorted((ROOT / "notebooks" / "guides").glob("*.md")))
BLOCKS = [
    pytest.param(code, id=f"{file.stem}-{i}")
    for file in FILES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", file.read_text("utf-8"), re.DOTALL))
]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("code", BLOCKS)
def test_block(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = compile(code, "README.md", "exec", dont_inherit=True)
    exec(compiled, {"__name__": "__main__"})  # noqa: S102


def test_a_newcomer_reads_at_most_two_hundred_lines() -> None:
    assert len(FILES[0].read_text("utf-8").splitlines()) <= 200


@pytest.mark.parametrize(
    "file", [*FILES, ROOT / ".github" / "CONTRIBUTING.md"], ids=lambda file: file.stem
)
def test_links_lead_to_files(file: Path) -> None:
    links = LINK.findall(file.read_text("utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []
