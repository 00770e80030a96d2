"""``Recipe``: everything that a published row needs, keyed (method, stream, source, variant)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cljax.options import flat
from cljax.resolve import options_of, stream_source
from cljax.streams.catalogue import entry_of
from cljax.streams.options import StreamSource

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A run to be: printable, editable with ``replace``, and part of the run's config.

    Attributes:
      method, stream, net: names on the command line.
      source, variant: the table it aims at and whose values it takes.
      method_options, stream_options: those that differ from the defaults, or are stated anyway.
      batch_size: examples an update. epochs: passes over each task.
      entries: of the accuracy matrix: "diagonal-last", "lower" or "full".
      status: published, or default, with what that means.
      notes: deviations.
      tuning: how values were chosen, if a sweep or a comparison did; see ``cljax.sweep.tuning``.
    """

    method: str
    stream: str
    net: str = "mlp:100,100"
    source: str = ""
    variant: str = ""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 10
    epochs: int = 1
    entries: str = "lower"
    status: str = "default, untuned"
    notes: str = ""
    tuning: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """SOURCE:VARIANT, as ``--recipe`` takes it, or that these are defaults."""
        if self.source:
            return f"{self.source}:{self.variant}"
        return "default, untuned" if self.tuning is None else "tuned"

    def replace(self, **changes: Any) -> Recipe:
        """A copy with fields changed; other names are options of the stream or the method."""
        fields = {f.name for f in dataclasses.fields(self)}
        streams = {option.name for option in options_of(stream_source(self.stream))}
        own = {name: value for name, value in changes.items() if name in fields}
        of_stream = {n: v for n, v in changes.items() if n not in fields and n in streams}
        of_method = {n: v for n, v in changes.items() if n not in fields and n not in streams}
        if of_stream:
            own["stream_options"] = {**self.stream_options, **of_stream}
        if of_method:
            own["method_options"] = {**self.method_options, **of_method}
        return dataclasses.replace(self, **own)

    def on(self, source: StreamSource) -> Recipe:
        """The same on a built-in stream as it was made.

        Stated are its options that differ from those of its name, and those that the recipe states
        of the same stream.
        """
        entry, values = entry_of(source), flat(source)
        assert entry is not None
        stated = self.stream_options if entry.name == self.stream else {}
        options = {name: values[name] for name in stated if name in values} | dict(entry.options)
        return dataclasses.replace(self, stream=entry.name, stream_options=options)
