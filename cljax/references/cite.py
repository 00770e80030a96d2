"""``bibtex``: what to cite for a method, a stream or a run, from ``citations.json``.

A run cites its method, penalty, exemplars and memory, the source of its recipe, the stream's
protocol and the images.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from cljax.errors import check_known
from cljax.methods import METHODS
from cljax.streams import STREAMS

__all__ = [
    "bibtex", "citations", "keys_of", "keys_of_config", "keys_of_method", "keys_of_stream",
]  # fmt: skip


_KINDS = ("methods", "penalties", "exemplars", "memories")


@functools.cache
def citations() -> Mapping[str, Any]:
    """The data: ``entries`` by key, and keys by method, penalty, exemplars, images and so on."""
    return json.loads(
        resources.files("cljax.references").joinpath("citations.json").read_text("utf-8")
    )


def bibtex(keys: Iterable[str]) -> str:
    """Entries as BibTeX, each once, in order.

    Raises:
      UserError: for an unknown key.
    """
    entries, texts = citations()["entries"], []
    for key in dict.fromkeys(keys):
        check_known("citation", key, entries)
        fields = {name: value for name, value in entries[key].items() if name != "type"}
        if "eprint" in fields:
            fields["archiveprefix"] = "arXiv"
        width = max(map(len, fields))
        lines = [f"  {name:<{width}} = {{{value}}}," for name, value in fields.items()]
        texts.append("\n".join([f"@{entries[key]['type']}{{{key},", *lines, "}"]))
    return "\n\n".join(texts)


def keys_of(name: str) -> list[str]:
    """Keys for a name of the command line.

    Raises:
      UserError: if it is none.
    """
    known = citations()
    if any(name in known[kind] for kind in _KINDS):
        return keys_of_method(name)
    check_known("method, stream or folder", name, {*METHODS, *known["penalties"], *STREAMS})
    return keys_of_stream(name, name)


def keys_of_config(config: Mapping[str, Any]) -> list[str]:
    """Keys for everything that a run's configuration names; none for what is the user's own."""
    known, options = citations(), config["method"]["options"]
    named = lambda option: _name_in(options.get(option))
    method = config["method"]["name"]
    names: list[tuple[str, str]] = [
        ("methods", method if method in known["methods"] else method.partition("+")[0]),
        ("penalties", method),
        ("penalties", named("penalty")),
        ("exemplars", named("exemplars")),
        ("memories", named("memory")),
        ("recipes", config["recipe"]["name"].partition("-")[0].partition(":")[0]),
    ]
    keys = [key for kind, name in names for key in known[kind].get(name, [])]
    keys += keys_of_stream(config["stream"]["name"], config["stream_facts"]["source"])
    return list(dict.fromkeys(keys))


def _name_in(option: Any) -> str:
    """The name of an option's value, which a config has as text with options or as a mapping."""
    return option["name"] if isinstance(option, Mapping) else str(option).partition(":")[0]


def keys_of_method(name: str) -> list[str]:
    """Keys for a method, a penalty, exemplars or a memory; none for one of the user's own."""
    known = citations()
    return next((known[kind][name] for kind in _KINDS if name in known[kind]), [])


def keys_of_stream(name: str, source: str) -> list[str]:
    """The stream's protocol and its images, which either of its names tells."""
    known, base = citations(), name.partition("[")[0]
    words: Sequence[str] = re.findall(r"[a-z_]+[0-9]*", f"{base} {source}".replace("-", " "))
    aliases = {"fashion": "fashion_mnist", "svhn": "svhn_cropped"}
    aliases |= {"imagenet100": "imagenet", "imagenet1": "imagenet"}
    images = [known["images"].get(aliases.get(word, word), []) for word in words]
    keys = [*known["protocols"].get(base, []), *(key for keys in images for key in keys)]
    return list(dict.fromkeys(keys))
