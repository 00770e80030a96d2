"""What a run was: every value with its origin, what it ran on, its paragraph and its references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from cljax.references import cite, protocol
from cljax.references.tables import Table, html
from cljax.report.parts import Part, attempt, titled

__all__ = ["of_config"]

_IDENTITY = ("net", "batch_size", "epochs", "entries", "eval_every", "online", "readout", "seeds",
             "precision", "lanes", "loop")  # fmt: skip


def of_config(config: Mapping[str, Any]) -> Iterator[Part]:
    """The parts about a configuration; none where it could not be read."""
    if not config:
        return
    told = [attempt("The configuration", lambda: _configuration(config))]
    yield from titled(3, "Configuration", told)
    words = [
        attempt("The paragraph", lambda: Part(f"<p>{escape(protocol.paragraph(config))}</p>")),
    ]
    yield from titled(3, "For the paper", words)
    yield attempt(
        "The references",
        lambda: Part(f"<pre>{escape(cite.bibtex(cite.keys_of_config(config)))}</pre>"),
    )


def _configuration(config: Mapping[str, Any]) -> Part:
    """Every value and where it came from: the recipe, a default, or the command line."""
    origins, recipe = config["origins"], config["recipe"]
    values = [
        *sorted(config["method"]["options"].items()),
        *sorted(config.get("stream_options", {}).items()),
        *((name, config[name]) for name in _IDENTITY if name in config),
    ]
    rows = [[name, _shown(value), origins.get(name, "not recorded")] for name, value in values]
    caption = f"Recipe {recipe['name']} ({recipe['status']})"
    first = html(Table(caption, ["option", "value", "from"], rows))
    facts = config["stream_facts"]
    versions = ", ".join(f"{name} {v}" for name, v in sorted(config["versions"].items()) if v)
    identity = [
        ["stream", f"{config['stream']['name']}, {facts['num_tasks']} tasks, "
         f"{facts['num_classes']} classes"],
        ["images", f"{facts['source']}; {facts['licence']}"],
        ["sha256 of the stream", config["stream"]["checksum"]],
        ["sha256 of the run", config["config_hash"]],
        ["versions", versions],
        ["commit", config.get("commit")],
    ]  # fmt: skip
    return Part(first + html(Table("What it ran on", ["what", "value"], identity)))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping) and "name" in value:
        inner = ", ".join(f"{k}={v}" for k, v in value.get("options", {}).items())
        return f"{value['name']}({inner})"
    return "none" if value is None else str(value)
