"""Runs the notebooks in full size and stores their outputs (extra ``test``).

python experiments/notebooks.py [NAME ...]     all, or those whose names begin so

A notebook is written when it has run to its end without a warning. Lines of progress, which a
notebook blanks out by itself, are not stored.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 3600  # a cell may take


def execute(path: Path) -> float:
    """Runs a notebook in a new kernel, stores it, and returns the seconds it took."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    began = time.perf_counter()
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()  # fmt: skip
    seconds = time.perf_counter() - began
    # What the kernel says of itself is another one with every machine.
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = stored(cell.outputs)
    path.write_text(nbformat.writes(notebook), "utf-8")
    return seconds


def stored(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell without progress, what was printed in a row as one."""
    made: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            lines = [line.rpartition("\r")[2] for line in output.text.split("\n")]
            if said := "\n".join(lines).strip():  # more than lines that were blanked out
                raise SystemExit(f"on standard error: {said}")
        elif output.output_type == "stream" and made and made[-1].output_type == "stream":
            made[-1].text += output.text
        else:
            made.append(output)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[""])
    names = tuple(parser.parse_args().names)
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem.startswith(names):
            print(f"{path.stem}: {execute(path):.0f} s", flush=True)


if __name__ == "__main__":
    main()
