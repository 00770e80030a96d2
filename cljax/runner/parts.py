"""What a run is made of, told by content wherever a name does not tell it.

A built-in method, network, penalty or stream is told by its name and values: making it again by
those gives the same content. Everything else is told by ``cljax.identity.content``.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cljax import resolve
from cljax.errors import UserError
from cljax.identity.content import Content, contents, digest_of
from cljax.memory.memories import MEMORIES
from cljax.memory.policies import POLICIES
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.protocol import Memory
from cljax.method import Method
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.penalties import PENALTIES
from cljax.penalty import Penalty
from cljax.streams.base import DECISIVE, Stream, told
from cljax.types import Evaluation, Net
from cljax.update_rules.shipped import SHIPPED, provenance

__all__ = ["Parts", "identify", "is_named", "net_name"]

_LARGE = 20_000  # characters of a part's content that a config holds; of more, the SHA-256


class Parts(NamedTuple):
    """What names do not tell of a run, for its config.

    ``identity`` is {} where names and values tell everything. ``packages`` -> version are those
    that own objects come from.
    """

    identity: dict[str, Any]
    packages: dict[str, str]
    checksum: str  # of the stream: its own where that tells all of it, else of its content


def identify(
    method: Method,
    net: Net,
    stream: Stream,
    evaluations: Sequence[Evaluation],
    id: str | None = None,  # noqa: A002, the word that users know
) -> Parts:
    """Tells a run's parts by content.

    What cannot be told is listed as ``unknown``. Without an ``id`` of the user's for it, the run
    gets a mark of its own, so that it is taken for no other run. Where a part is of the user's own
    code, all that JAX traced in this process is forgotten: it keeps traces by function, and they
    may hold values of globals that the function no longer reads.

    Raises:
      UserError: for a run over several processes that cannot be told and has no id.
    """
    result = contents({
        "method": _of_method(method),
        "net": {} if is_named(net) else {"net": net},
        "stream": {} if told(stream) else {name: getattr(stream, name) for name in DECISIVE},
        "evaluations": {e.name: e for e in evaluations if not all(map(_plain, e))},
        "objective": {
            name: value
            for name, value in stream.objective._asdict().items()
            if not _plain(value)
        },
    })  # fmt: skip
    if result.own:
        jax.clear_caches()
    checksum = stream.checksum if told(stream) else digest_of(result.json["stream"])
    identity = {name: _short(part) for name, part in result.json.items() if part}
    if list(identity.get("net", ())) == ["net"]:
        identity["net"] = identity["net"]["net"]
    local = {p.name: p.files for p in result.packages.values() if p.files}
    identity |= {"packages": local} if local else {}
    if result.unknown:
        identity["unknown"] = [name.replace("net.net", "net", 1) for name in result.unknown]
        if id is None and jax.process_count() > 1:
            raise UserError(
                f"{identity['unknown'][0]} cannot be told by its content, so the processes of this "
                "run cannot tell that it is the same; pass id='...'."
            )
        identity |= {} if id is not None else {"mark": uuid.uuid4().hex}
    versions = {package.name: package.version for package in result.packages.values()}
    return Parts(identity, versions, checksum)


def net_name(net: Net) -> str:
    """The name by which a network can be made again; else what its maker calls it, or custom."""
    name = getattr(net, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        return "custom"
    return "custom" if _kind(name) in NETS and not is_named(net) else name


def is_named(net: Net) -> bool:
    """Whether the network is one of the library, which its name gives again."""
    name = getattr(net, "__name__", None)
    if not isinstance(name, str) or _kind(name) not in NETS:
        return False
    try:
        return _equal(resolve.net(name), net)
    except (UserError, TypeError, ValueError):  # what such a name says, no network of ours has
        return False


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _of_method(method: Method) -> dict[str, Any]:
    """What of a method its name and plain options do not tell."""
    options = {
        name: _stored_rule(value) if name == "rule" else value
        for name, value in sorted(method.options.items())
        if not _told_option(name, value)
    }
    made: dict[str, Any] = {"options": options} if options else {}
    built_in = type(method) in {type(known) for known in METHODS.values()}
    return made if built_in else {**made, "class": type(method)}


def _told_option(name: str, value: Any) -> bool:
    if name == "rule" and isinstance(value, (str, Path)):
        return False  # a folder, told by what it holds
    if isinstance(value, Penalty) and value.name in PENALTIES:
        known = PENALTIES[value.name] is type(value)
        return known and all(map(_plain, value.options.values()))
    for kind, table in ((ExemplarPolicy, POLICIES), (Memory, MEMORIES)):
        if isinstance(value, kind) and value.name in table:
            known = type(table[value.name]) is type(value)
            return known and all(map(_plain, value.options.values()))
    return _plain(value)


def _plain(value: Any) -> bool:
    """Whether JSON holds a value as it is."""
    if type(value) in (list, tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _stored_rule(value: Any) -> Any:
    """The checksums of the update rules that a folder holds, one of each seed."""
    if not isinstance(value, (str, Path)):
        return value
    if str(value) in SHIPPED and not Path(value).exists():
        return [provenance(str(value))["sha256"]]
    files = sorted((Path(value).expanduser() / "rule").glob("*/*/sha256.json"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _equal(a: Any, b: Any) -> bool:
    return _json(a) == _json(b)


def _json(value: Any) -> Any:
    result: Content = contents({"": value})
    return None if result.unknown else result.json


def _short(part: Any) -> Any:
    """A part by its SHA-256 where it is long; a mapping entry by entry."""
    if len(str(part)) <= _LARGE:
        return part
    if isinstance(part, Mapping) and len(part) > 1:
        return {name: _short(entry) for name, entry in part.items()}
    return {"sha256": digest_of(part)}
