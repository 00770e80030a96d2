"""The commands ``cljax list`` and ``cljax data``."""

from __future__ import annotations

import re
import textwrap

from cljax.cli.flags import parse
from cljax.errors import UserError, check_known, in_words

__all__ = ["data_sets", "names"]


def names(arguments: list[str]) -> int:
    """Prints the names that commands take, each with a line about it."""
    import inspect

    from cljax import data
    from cljax.memory import MEMORIES, POLICIES
    from cljax.methods import CHECKED, METHODS
    from cljax.nets import NETS
    from cljax.penalties import PENALTIES
    from cljax.recipes import recipes
    from cljax.streams import STREAMS

    first_line = lambda factory: (inspect.getdoc(factory) or "").partition("\n")[0]
    rows = {
        "methods": [(n, f"{method.summary} [{CHECKED[n]}]") for n, method in METHODS.items()],
        "streams": [(name, stream.summary) for name, stream in STREAMS.items()],
        "nets": [(name, first_line(make)) for name, make in NETS.items()],
        "data": [(name, source.licence) for name, source in data.SOURCES.items()],
        "recipes": [(r.method, r.stream, r.name) for r in recipes()],
        "penalties": [(name, made().summary) for name, made in PENALTIES.items()],
        "policies": [(name, policy.summary) for name, policy in POLICIES.items()],
        "memories": [(name, memory.summary) for name, memory in MEMORIES.items()],
    }
    if {"-h", "--help"} & set(arguments):
        print(
            f"usage: cljax list [{'|'.join(rows)}] [FILTER]   what there is, or what of one kind "
            "holds FILTER in its line"
        )
        return 0
    if arguments:
        check_known("kind to list", arguments[0], rows)
        rows = {arguments[0]: rows[arguments[0]]}
    if len(arguments) > 2:
        raise UserError(
            f"cljax list takes a kind and a filter, but got {in_words(arguments[2])} as well."
        )
    wanted = arguments[1].lower() if len(arguments) == 2 else ""
    for title, lines in rows.items():
        result = []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
        for *names, last in lines:
            padded = (f"{name:<{width}}" for name, width in zip(names, widths, strict=True))
            line = "  ".join([*padded, last])
            if wanted in line.lower():
                result.append(_wrapped(line, sum(widths) + 2 * len(widths)))
        if result:
            print("\n".join([title, *result, *_LEGENDS.get(title, ())]))
    return 0


_LEGENDS = {
    "methods": (
        "  How updates are checked: [golden] against step-by-step traces of the authors'",
        "  code, [hand-checked] and [restated] against steps computed by hand, restated",
        "  where the source is known at second hand.",
    ),
}


def _wrapped(line: str, indent: int) -> str:
    """A row in 80 columns; what does not fit goes on below the last column."""
    return textwrap.fill(
        line, 80, initial_indent="  ", subsequent_indent=" " * (indent + 2),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def data_sets(arguments: list[str]) -> int:
    """Prints where data sets are, their sizes and licences; with --prepare, prepares them."""
    from cljax import data

    names = [
        a for i, a in enumerate(arguments) if not a.startswith("-") and not _valued(arguments, i)
    ]
    rest = [a for i, a in enumerate(arguments) if a.startswith("-") or _valued(arguments, i)]
    fields = {
        "data_dir": (str | None, None, "folder with prepared data sets; else CLJAX_DATA_DIR"),
        "licences": (bool, False, "print licences and citations"),
        "prepare": (bool, False, "download and prepare (needs the extra 'prepare' and a network)"),
        "sample": (bool, False, "the sample that cljax ships"),
    }
    flags = parse(f"cljax data {' '.join(names) or 'NAME ...'}", fields, rest)
    if not names and not flags["licences"]:
        raise UserError(
            f"cljax data needs the name of a data set, such as {', '.join(data.SOURCES)}."
        )
    for name in names:
        if not re.fullmatch(r"\w+(/\w+)?", name):
            raise UserError(
                f"{in_words(name)} is no name of a data set, such as {', '.join(data.SOURCES)}."
            )
    for name in names or list(data.SOURCES):
        if flags["prepare"]:
            data.prepare(name, flags["data_dir"])
        if flags["licences"]:
            source = data.source_of(name, flags["data_dir"])
            print(f"{name}: {source.licence}\n  {source.citation}")
            continue
        report = data.describe(name, flags["data_dir"], flags["sample"])
        print(
            f"{report.name}: {report.num_train} training and {report.num_test} test images of "
            f"{'x'.join(map(str, report.shape))}, {report.num_classes} classes, "
            f"{report.num_bytes / 1e6:.1f} MB\n  {report.source} in {report.path}\n"
            f"  decoded: {report.cache or 'not kept'}\n  sha256 {report.checksum}\n"
            f"  licence: {report.licence}"
        )
    return 0


def _valued(arguments: list[str], i: int) -> bool:
    """Whether argument i is the value of the flag before it."""
    return i > 0 and arguments[i - 1] == "--data-dir"
