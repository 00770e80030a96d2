"""Results of experiments: what Markdown and JSON say, and the tables made from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cljax import stats
from cljax.methods import METHODS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
RESULTS = FOLDER / "results"
NAMES = sorted({path.stem for path in RESULTS.glob("*.md")} - {"reliability"})


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Modules of experiments, which import each other by their plain names."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(
        **{name: import_module(name) for name in ("common", "markdown_results", "systems_table")}
    )
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in (
            sys.modules[name].__file__ or ""
        ):
            del sys.modules[name]


def exact(text: str) -> Decimal:
    """A number with the digits that are printed."""
    return Decimal(text)


def agrees(shown: Any, stored: Any) -> bool:
    """Whether what Markdown shows is what JSON stores, rounded as printed."""
    if isinstance(shown, Decimal):
        if isinstance(stored, dict):
            stored = stored.get("mean", stored.get("published"))
        half = Decimal(5).scaleb(shown.as_tuple().exponent - 1)  # type: ignore[operator]
        return abs(shown - Decimal(repr(stored))) <= half * Decimal("1.000001")
    if isinstance(shown, dict):
        return all(agrees(value, stored.get(name)) for name, value in shown.items())
    if isinstance(shown, list):
        return len(shown) == len(stored) and all(map(agrees, shown, stored))
    return shown == stored


def holds(scripts: Any, path: Path) -> None:
    """Each table of a Markdown file is that of the JSON file beside it."""
    stored = json.loads(path.with_suffix(".json").read_text("utf-8"))["tables"]
    shown = list(scripts.markdown_results.tables(path, exact))
    assert [(t["title"], t["columns"]) for t in shown] == [
        (t["title"], t["columns"]) for t in stored
    ]
    for ours, theirs in zip(shown, stored, strict=True):
        for row, other in zip(ours["rows"], theirs["rows"], strict=True):
            assert list(row) == list(other)
            wrong = [name for name in row if not agrees(row[name], other[name])]
            assert not wrong, (ours["title"], row, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_of_a_markdown_file_are_those_of_its_json_file(scripts, name: str) -> None:
    holds(scripts, RESULTS / f"{name}.md")


@pytest.mark.parametrize("name", NAMES)
def test_a_json_file_names_its_experiment_and_its_numbers_stand_in_the_text(name: str) -> None:
    text = (RESULTS / f"{name}.md").read_text("utf-8")
    stored = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert stored["experiment"] == name
    assert text.startswith(f"# {stored['title']}\n")
    assert f"`{stored['command']}`" in " ".join(text.split())
    for value in stored["numbers"].values():
        assert any(f"{value:.{digits}f}" in text for digits in (1, 2)), value


def report_of(common: Any) -> Any:
    """A report with each kind of cell."""
    summary = {"mean": 0.5, "std": 0.0707, "ci95": [-0.135, 1.135], "values": [0.45, 0.55]}
    lost = {"mean": 0.5, "std": None, "ci95": None, "values": [None, 0.5]}
    pair = stats.paired([0.75, 0.77, 0.76], [0.70, 0.73, 0.70])
    rows = [
        ["one", common.metric(summary), common.number(None), common.difference(pair), 3],
        ["two", common.metric(lost), common.number(1234.5678), common.of_each([1.0, 2.5]), "-"],
        ["3", common.metric(None), common.counted(3, 7), common.percent(-0.1234, "+.2f"), None],
        ["", common.metric(None, absent="-"), common.over_repeats([3.14, 1.0, 2.0]), "x: y", ""],
        ["f", common.spread([0.1, 0.3], "std", 100), common.number(3e-7, ".3g"), "", "*"],
    ]
    columns = ["name", "RA", "second", "third", "fourth"]
    parts = ["## Part", "", common.Table(columns, rows), "", "Twice 21 is 42.50.", "",
             common.Table(["a"], [[common.number(5.0, ".0f", " %")]])]  # fmt: skip
    return common.Report("Title", "python experiments/x.py", ": about.", parts, {"twice": 42.5})


def test_markdown_and_json_are_made_from_the_same_cells(scripts, tmp_path: Path) -> None:
    out = tmp_path / "x.md"
    scripts.common.write(out, report_of(scripts.common))
    holds(scripts, out)
    stored = json.loads(out.with_suffix(".json").read_text("utf-8"))
    first = stored["tables"][0]["rows"]
    values = first[0]["RA"].pop("values")
    assert values == pytest.approx([45, 55])
    assert first[0]["RA"] == pytest.approx({"mean": 50, "low": -13.5, "high": 113.5, "std": 7.07})
    assert first[1]["RA"]["diverged"] == 1 and first[1]["RA"]["values"] == [None, 50]
    assert [row["name"] for row in first] == ["one", "two", 3, None, "f"]
    assert first[3]["second"] == {"median": 2.0, "min": 1.0, "max": 3.14}
    assert stored["numbers"] == {"twice": 42.5}
    assert stored["machine"]["cores"] >= 1
    assert "| one | 50.00 [-13.50, 113.50] | - | +5.00 [2.52, 7.48] | 3 |" in out.read_text()


def test_a_reading_is_kept_and_tables_can_be_added(scripts, tmp_path: Path) -> None:
    common, out = scripts.common, tmp_path / "x.md"
    out.write_text("# Old\n\n## Reading\n\n- By hand.\n")
    common.write(out, report_of(common))
    assert out.read_text().endswith("\n\n## Reading\n\n- By hand.\n")
    more = ["## More", "", common.Table(["b"], [[common.number(1.5)]])]
    common.add(out, common.Report("Title", "python y.py", ".", more))
    assert out.read_text().endswith("| 1.50 |\n\n## Reading\n\n- By hand.\n")
    holds(scripts, out)
    assert len(json.loads(out.with_suffix(".json").read_text())["tables"]) == 3


def test_a_json_file_is_read_back_from_markdown(scripts, tmp_path: Path) -> None:
    out = tmp_path / "x.md"
    scripts.common.write(out, report_of(scripts.common))
    found = scripts.markdown_results.converted(out)
    assert found["command"] == "python experiments/x.py" and found["numbers"] == {"twice": 42.5}
    out.with_suffix(".json").write_text(scripts.common.as_json(found))
    holds(scripts, out)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-", None),
        ("70 %", 70),
        ("4.42e-05", 4.42e-05),
        ("64.31 ± 0.33 (1 diverged)", {"mean": 64.31, "std": 0.33, "diverged": 1}),
        ("[-1.50, +2.00]", {"low": -1.5, "high": 2}),
        ("1.43 (params 0.36, penalty 1.08)", {"total": 1.43, "params": 0.36, "penalty": 1.08}),
        ("57.96 ± 1.33, -1.72: undecided, not accepted; one of our runs: 54.1 to 60",
         {"published": 57.96, "published_std": 1.33, "difference": -1.72, "verdict": "undecided",
          "accepted": False, "run_low": 54.1, "run_high": 60}),
        ("97.95: no-update -37.75 different, task-aware +0.94 equivalent",
         {"published": 97.95, "protocols": {
             "no-update": {"difference": -37.75, "verdict": "different"},
             "task-aware": {"difference": 0.94, "verdict": "equivalent"}}}),
        ("lr=0.1, 5 glances", "lr=0.1, 5 glances"),
    ],
)  # fmt: skip
def test_a_cell_is_read_as_what_it_says(scripts, text: str, value: Any) -> None:
    assert scripts.markdown_results.cell_value(text) == value


def test_columns_of_one_name_are_refused(scripts, tmp_path: Path) -> None:
    common = scripts.common
    parts = [common.Table(["p", "p"], [[1, 2]])]
    with pytest.raises(ValueError, match="one name"):
        common.write(tmp_path / "x.md", common.Report("T", "c", ".", parts))


def test_stored_arrays_are_read_back_only_for_their_identity(scripts, tmp_path: Path) -> None:
    path, calls = tmp_path / "a" / "b.npz", []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"RA": np.arange(3.0)}

    for identity in ("one", "one", "two"):
        found = scripts.common.recorded(path, identity, compute)
        assert found["RA"].tolist() == [0, 1, 2]
    assert len(calls) == 2


def test_items_come_back_in_their_order_from_threads(scripts) -> None:
    assert scripts.common.over_seeds(lambda i: i**2, range(7)) == [i**2 for i in range(7)]


def test_readme_and_guide_say_what_the_results_say(scripts) -> None:
    tables = scripts.systems_table
    for file in tables.PLACES:
        now = file.read_text("utf-8")
        assert tables.replaced(now, file) == now, "run python experiments/systems_table.py"


def test_every_method_stands_in_the_table_of_systems_once(scripts) -> None:
    named = [name for row in scripts.systems_table.SYSTEMS for name in row[0].split()]
    assert sorted(named) == sorted(METHODS)


def test_a_number_and_its_verdict_come_from_the_files(scripts, tmp_path: Path) -> None:
    common, tables = scripts.common, scripts.systems_table

    def write(name: str, columns: list[str], rows: list[list[str]]) -> None:
        path = tmp_path / f"{name}.md"
        parts = [common.Table(columns, rows)]
        command = "python x.py --recipe cpu_small"
        common.write(path, common.Report("T", command, ".", parts))
        path.with_suffix(".json").write_text(
            common.as_json(scripts.markdown_results.converted(path))
        )

    head = ["stream", "method", "RA", "RA of published, difference"]
    write("lamaml_table1", head, [
        ["s", "er", "70.00 [69.00, 71.00]", "71.00 ± 0.50, -1.00: undecided, accepted"],
        ["s", "mer", "60.00 [59.00, 61.00]", "71.00 ± 0.50, -11.00: different, not accepted"],
        ["s", "gem", "60.00 [59.00, 61.00]", "-"],
    ])  # fmt: skip
    write("permuted_mnist", ["method", "RA", "paper"], [["si", "93.70 [93.09, 94.32]", "0.95"]])
    write("mnemonics_table2", ["row"], [["LUCIR"]])
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


def test_a_missing_number_of_the_table_of_speed_is_named(scripts) -> None:
    tables = scripts.systems_table
    results = {"experiment": "x", "numbers": {}, "tables": [{"rows": [{"run": "a", "s": 1.5}]}]}
    assert tables.picked(results, tables.Pick("s", {"run": "a"})) == 1.5
    with pytest.raises(SystemExit, match="x.json has no"):
        tables.picked(results, tables.Pick("s", {"run": "b"}))
