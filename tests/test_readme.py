"""The README's Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_block(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (40, 6), dtype=np.uint8)
    y, task = np.arange(40) % 4, np.repeat([0, 1], 20)
    scope = {"x": x, "y": y, "task": task, "x_test": x, "y_test": y, "task_test": task}
    compiled = compile("import cljax\n" + code, "README.md", "exec", dont_inherit=True)
    exec(compiled, scope)  # noqa: S102


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3
