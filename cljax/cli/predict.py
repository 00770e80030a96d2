"""The command ``cljax predict``: labels of new images, by a finished run.

image,label,class,probability     a row an image
image,output_0,output_1,...       where targets are no classes: the network's outputs
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cljax.cli.compiled import FLAG, stored_programs
from cljax.cli.flags import parse
from cljax.cli.job import TRUST, set_precision
from cljax.errors import UserError, check_path

__all__ = ["main"]

_FLAGS: dict[str, tuple[Any, Any, str]] = {
    "out": (str | None, None, "FILE.csv of the labels; default: print them"),
    "seed": (int | None, None, "of the run, whose final state predicts; default its first one"),
    "task": (int | None, None, "number of the images' task, where the run must be told it"),
    "trust": TRUST,
    "compile_cache": FLAG,
}
_HEAD = ("image", "label", "class", "probability")


def main(arguments: list[str]) -> int:
    """Runs ``cljax predict`` and returns its exit code."""
    from cljax.runner import artefacts
    from cljax.runner.run import load

    names = [argument for argument in arguments[:2] if not argument.startswith("-")]
    if {"-h", "--help"} & set(arguments):
        names = ["DIR", "IMAGES"]
        arguments = [*names, "--help"]
    if len(names) < 2:
        raise UserError(
            "cljax predict needs DIR IMAGES: the folder of a finished run, and a picture, a folder "
            "of pictures or a .npy file."
        )
    flags = parse("cljax predict DIR IMAGES", _FLAGS, arguments[2:])
    check_path(images=names[1], **({} if flags["out"] is None else {"out": flags["out"]}))
    folder = artefacts.place(names[0])
    if (folder / "config.json").exists():
        set_precision(artefacts.config_of(folder)["precision"])
    run = load(folder, trust=flags["trust"])
    with stored_programs(flags["compile_cache"]):
        content = _labels(run, Path(names[1]).expanduser(), flags)
    if flags["out"] is None:
        print(content, end="")
        return 0
    out = Path(flags["out"]).expanduser()
    if out.is_dir():
        raise UserError(f"{out} cannot be written: it is a folder; name a file.")
    try:
        artefacts.write_bytes(out, content.encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    print(out)
    return 0


def _labels(run: Any, images: Path, flags: Mapping[str, Any]) -> str:
    """The table as CSV."""
    from cljax.data.pictured import read_pictures

    stream = run.made.stream
    result = read_pictures(images, stream.test_x.shape[1:], _resize(run))
    if result.left_out:
        print(
            f"cljax: {len(result.left_out)} files of {images} are no pictures by their names and "
            f"are left out, such as {result.left_out[0]}.",
            file=sys.stderr,
        )
    made = run.predict(result.x, flags["seed"], flags["task"])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    if not stream.labelled:
        table.writerow(("image", *(f"output_{k}" for k in range(stream.num_classes))))
        for name, outputs in zip(result.names, made.scores, strict=True):
            table.writerow((name, *map(str, outputs)))
        return text.getvalue()
    table.writerow(_HEAD)
    named = [] if stream.class_orders is not None else run.class_names(flags["seed"])
    likely = _probabilities(made.scores, run.config["evaluations"][0]["predictor"])
    for name, label, share in zip(result.names, made.labels, likely, strict=True):
        called = named[label] if label < len(named) else str(label)
        table.writerow((name, label, called, share))
    return text.getvalue()


def _probabilities(scores: np.ndarray, predictor: str) -> list[str]:
    """The softmax of each row's largest score; "" where scores are distances, not logits."""
    if predictor == "nearest-mean":
        return [""] * len(scores)
    if not len(scores):
        return []
    best = scores.max(axis=1, keepdims=True)
    return [f"{share:.6f}" for share in 1 / np.exp(scores - best).sum(axis=1)]


def _resize(run: Any) -> int | None:
    """How tests were resized, where the run's images were files of any size."""
    from cljax.resolve import stream_source
    from cljax.streams.folders import FolderOptions

    begun = run.config["begun_as"]
    source = stream_source(begun["stream"])
    if not isinstance(source, FolderOptions):
        return None
    return source.replace(**begun["stream_options"]).sizes[1]
