"""Reads the tables of a Markdown file of results, and writes the JSON file that belongs to it.

    python experiments/markdown_results.py experiments/results/NAME.md ...

For results whose script wrote Markdown alone, or whose Markdown was put together by hand; a script
that runs now writes both itself. Numbers are rounded as printed, and ``source`` says so;
``numbers`` of an existing JSON file are kept. The format is that of ``common.py``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import NUMBER, READING, as_json, as_number

__all__ = ["cell_value", "converted", "tables"]

_N = f"({NUMBER})"
_LOST = r"(?: \((\d+) diverged\))?"
_Number = Callable[[str], Any]
# Forms of cells, and the names of their numbers.
_FORMS = [
    (rf"{_N}{_LOST}", ("mean", "diverged")),
    (rf"{_N} \[{_N}, {_N}\]{_LOST}", ("mean", "low", "high", "diverged")),
    (rf"\[{_N}, {_N}\]", ("low", "high")),
    (rf"{_N} ± {_N}{_LOST}", ("mean", "std", "diverged")),
    (rf"{_N} \({_N} to {_N}\)", ("median", "min", "max")),
    (rf"{_N} to {_N}", ("min", "max")),
    (rf"{_N} of {_N}", ("count", "of")),
]
_BESIDE = re.compile(
    rf"{_N}(?: ± {_N})?, {_N}: (equivalent|different|undecided), ((?:not )?accepted)"
    rf"(?:; one of our runs: {_N} to {_N})?"
)
_PROTOCOL = re.compile(rf"([a-z-]+) {_N} (equivalent|different|undecided)")


def cell_value(text: str, number: _Number = as_number) -> Any:
    """What a cell of a Markdown table says, in the form of the JSON file.

    Args:
      number: makes a number of its text.
    """
    if text in ("", "-"):
        return None
    if re.fullmatch(rf"{_N}(?: %)?", text):
        return number(text.removesuffix(" %"))
    for pattern, names in _FORMS:
        if found := re.fullmatch(pattern, text):
            values = zip(names, found.groups(), strict=True)
            return {name: number(value) for name, value in values if value is not None}
    for between in (", ", " / "):
        if re.fullmatch(rf"{_N}(?:{between}{_N})+", text):
            return [number(value) for value in text.split(between)]
    if found := re.fullmatch(rf"{_N} \(((?:\w+ {_N}(?:, )?)+)\)", text):
        parts = (part.split(" ") for part in found[2].split(", "))
        return {"total": number(found[1]), **{name: number(size) for name, size in parts}}
    return _beside(text, number)


def _beside(text: str, number: _Number) -> Any:
    """A published number and the verdict beside it; any other text as it is."""
    if found := _BESIDE.fullmatch(text):
        published, std, difference, verdict, accepted, low, high = found.groups()
        value = {"published": number(published)}
        value |= {} if std is None else {"published_std": number(std)}
        value |= {"difference": number(difference), "verdict": verdict}
        value["accepted"] = accepted == "accepted"
        return value if low is None else {**value, "run_low": number(low), "run_high": number(high)}
    published, colon, rest = text.partition(": ")
    protocols = _PROTOCOL.findall(rest)
    if colon and protocols and re.fullmatch(_N, published):
        return {
            "published": number(published),
            "protocols": {
                name: {"difference": number(value), "verdict": verdict}
                for name, value, verdict in protocols
            },
        }
    return text


def tables(path: Path, number: _Number = as_number) -> Iterator[dict[str, Any]]:
    """The tables of a Markdown file above its Reading, in the form of the JSON file."""
    title, rows = "", []
    for line in [*path.read_text("utf-8").partition(READING)[0].splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
            continue
        if rows:
            columns, _, *body = rows
            values = ([cell_value(text, number) for text in row] for row in body)
            found = [dict(zip(columns, row, strict=True)) for row in values]
            yield {"title": title, "columns": columns, "rows": found}
            rows = []
        if line.startswith(("# ", "## ")):
            title = line.lstrip("# ")


def converted(path: Path) -> dict[str, Any]:
    """The content of the JSON file that belongs to a Markdown file."""
    text, json_path = path.read_text("utf-8"), path.with_suffix(".json")
    command = re.search(r"Made by\s+`(.*?)`", text, re.DOTALL)
    if command is None:
        raise SystemExit(f"{path} has no sentence 'Made by `COMMAND`'.")
    known = json.loads(json_path.read_text("utf-8")) if json_path.exists() else {}
    return {
        "experiment": path.stem,
        "title": text.partition("\n")[0].removeprefix("# "),
        "command": " ".join(command[1].split()),
        "commit": None,
        "machine": None,
        "source": f"read from {path.name}, rounded as printed",
        "numbers": known.get("numbers", {}),
        "tables": list(tables(path)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="Markdown files of results")
    for path in parser.parse_args().files:
        path.with_suffix(".json").write_text(as_json(converted(path)), "utf-8")
        print(path.with_suffix(".json"))


if __name__ == "__main__":
    main()
