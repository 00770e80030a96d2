"""The README's Python blocks run as they stand."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cljax.methods import METHODS

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


@pytest.fixture(scope="module")
def tables():
    """The script that makes the README's tables."""
    path = README.parent / "experiments" / "systems_table.py"
    spec = importlib.util.spec_from_file_location("systems_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["systems_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["systems_table"]


def test_the_tables_are_what_the_results_say(tables) -> None:
    now = README.read_text("utf-8")
    assert tables.replaced(now) == now, "run python experiments/systems_table.py"


def test_every_method_stands_in_the_table_of_systems_once(tables) -> None:
    named = [name for row in tables.SYSTEMS for name in row[0].split()]
    assert sorted(named) == sorted(METHODS)


def test_a_number_and_its_verdict_come_from_the_files(tables, tmp_path) -> None:
    head = "| stream | method | RA | RA of published, difference |\n| --- | --- | --- | --- |\n"
    (tmp_path / "lamaml_table1.md").write_text(
        f"# T\n\n{head}"
        "| s | er | 70.00 [69.00, 71.00] | 71.00 ± 0.50, -1.00: undecided, accepted |\n"
        "| s | mer | 60.00 [59.00, 61.00] | 71.00 ± 0.50, -11.00: different, not accepted |\n"
        "| s | gem | 60.00 [59.00, 61.00] | - |\n"
    )
    (tmp_path / "permuted_mnist.md").write_text(
        "| method | RA | paper |\n| --- | --- | --- |\n| si | 93.70 [93.09, 94.32] | 0.95 |\n"
    )
    (tmp_path / "mnemonics_table2.md").write_text("Made by `python x.py --recipe cpu_small`\n")
    found = tables.lines(tmp_path)
    assert [(n.method, n.published, n.ours, n.verdict) for n in found] == [
        ("er", "71.00 ± 0.50", "70.00 [69.00, 71.00]", "undecided, accepted"),
        ("mer", "71.00 ± 0.50", "60.00 [59.00, 61.00]", "different, not accepted"),
        ("si", "95", "93.70 [93.09, 94.32]", "-"),
    ]
    told = lambda *names: tables.status(list(names), found, tables.in_small(tmp_path))
    assert told("er", "mer").endswith("lamaml_table1.md): 1 of 2")
    assert told("si").endswith("permuted_mnist.md): no verdict")
    assert told("lucir").endswith("mnemonics_table2.md): in small")
    assert told("gem") == "-"
