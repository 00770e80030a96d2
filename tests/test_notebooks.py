"""The notebooks: valid, explained, free of this machine's traces; and they run (slow)."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"][
    "Repository"
]
FIRST = f"""if not __import__("importlib.util").util.find_spec("cljax"):
    %pip install -q git+{REPOSITORY}
__import__("cljax.runtime").runtime.check()"""
# Meta-training over many weights at once, and lanes under vmap; the others take tiny steps one
# after another, which a CPU does as fast.
ON_GPU = {"06_learned_rule", "08_scaling"}
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_quickstart", "02_lamaml_inside", "03_new_method", "04_itaml_continuum", "05_mnemonics",
    "06_learned_rule", "07_own_loop", "08_scaling",
]  # fmt: skip
LARGEST = 300_000  # bytes, outputs included
ABSOLUTE = re.compile(r"(?<![\w.:/<~])/\w+/[\w.-]|site-packages")  # a path of a machine

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, nbformat.NO_CONVERT)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[str]:
    """What a cell says, and what its outputs do, pictures left out."""
    said = [cell.source]
    for output in cell.get("outputs", ()):
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
        said.append(json.dumps([output.get("text", ""), data]))
    return said


def test_all_are_there():
    assert [path.stem for path in PATHS] == NAMES


@each
def test_it_is_valid_and_small(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert path.stat().st_size < LARGEST
    for cell in code(notebook):
        ast.parse(re.sub(r"^( *)%.*", r"\1pass", cell.source, flags=re.MULTILINE))


@each
def test_every_name_that_it_imports_is_there(path: Path):
    # The cells themselves run in the slow suite alone.
    tree = ast.parse(
        "\n".join(TransformerManager().transform_cell(c.source) for c in code(read(path)))
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cljax"):
            exec(ast.unparse(node), {})  # noqa: S102


@each
def test_the_first_code_cell_installs_what_is_missing_and_says_what_jax_sees(path: Path):
    # The last notebook makes devices before.
    first = code(read(path))[0].source
    assert first == FIRST if path.stem != NAMES[-1] else first.endswith(f"\n{FIRST}")
    assert sum("CLJAX_SMOKE" in cell.source for cell in read(path).cells) == 1


@pytest.mark.parametrize("missing", [True, False])
def test_the_first_cell_calls_pip_only_where_cljax_is_missing(missing, monkeypatch, capsys):
    called = []
    shell = SimpleNamespace(run_line_magic=lambda *line: called.append(line))
    there = importlib.util.find_spec("cljax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if missing else there)
    monkeypatch.setattr("cljax.runtime.accelerator", lambda: "")
    exec(TransformerManager().transform_cell(FIRST), {"get_ipython": lambda: shell})  # noqa: S102
    assert called == [("pip", f"install -q git+{REPOSITORY}")] * missing
    assert capsys.readouterr().out.startswith("cljax ")


@each
def test_a_badge_below_the_title_opens_it_in_colab(path: Path):
    title, _, badge, *_ = read(path).cells[0].source.splitlines()
    owner = REPOSITORY.removeprefix("https://github.com/")
    assert title.startswith("# ") and badge == (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{owner}/blob/main/notebooks/{path.name})"
    )


@each
def test_those_that_gain_from_a_gpu_ask_for_one(path: Path):
    assert (read(path).metadata.get("accelerator") == "GPU") == (path.stem in ON_GPU)


def test_the_first_picture_is_in_the_third_code_cell():
    cells = code(read(PATHS[0]))
    kinds = [{kind for output in cell.outputs for kind in output.get("data", ())} for cell in cells]
    assert "image/png" in kinds[2]


@each
def test_no_output_is_an_error_or_names_this_machine(path: Path):
    for cell in read(path).cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
        for text in texts(cell):
            found = ABSOLUTE.search(text)
            assert found is None, f"{found[0] if found else ''} in cell {cell.id}"


@each
def test_every_figure_is_stored_as_a_picture(path: Path):
    for cell in code(read(path)):
        shown = [output.get("data", {}) for output in cell.outputs]
        for data in shown:
            assert "image/png" in data or "<Figure" not in data.get("text/plain", ""), cell.id


@each
def test_it_was_run_from_top_to_bottom_or_not_at_all(path: Path):
    cells = code(read(path))
    counts = [cell.execution_count for cell in cells]
    if any(cell.outputs for cell in cells) or any(counts):
        assert counts == list(range(1, len(cells) + 1))


@each
def test_what_is_printed_is_explained_in_the_next_text(path: Path):
    cells = read(path).cells
    for i, cell in enumerate(cells):
        if any(output.output_type == "stream" for output in cell.get("outputs", ())):
            # A cell that only draws may stand between.
            after = cells[i + 1 : i + 3]
            assert any(other.cell_type == "markdown" for other in after), cell.id


@pytest.mark.slow
@each
def test_it_runs_in_smoke_size(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLJAX_SMOKE", "1")
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)  # the shipped sample must do
    notebook = read(path)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    said = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in said)


def test_progress_is_not_stored_and_anything_else_on_standard_error_is_refused():
    spec = importlib.util.spec_from_file_location("runs", ROOT / "experiments" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stream = lambda name, text: nbformat.v4.new_output("stream", name=name, text=text)
    progress = [stream("stderr", "\rcompiling   \r"), stream("stderr", "\r            \r")]
    printed = [stream("stdout", "a\n"), stream("stdout", "b\n")]
    assert script.stored([*progress, *printed]) == [stream("stdout", "a\nb\n")]
    with pytest.raises(SystemExit, match="on standard error: a warning"):
        script.stored([stream("stderr", "\r   \ra warning\n")])


def test_paths_of_a_machine_are_found():
    for text in ("in /" + "some/where", 'File "/' + 'a/b.py"', "lib/site-packages"):
        assert ABSOLUTE.search(text)
    for text in ("https://a.org/b/c", "and/or", "1 / 2 / 3", "runs/a/b", "~/x/y"):
        assert not ABSOLUTE.search(text), text
