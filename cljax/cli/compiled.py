"""Compiled programs that the command line stores in the user's cache folder, for its next runs.

    CACHE/compiled/JAXLIB-PROCESSOR/NAME-KEY-cache

JAX writes and reads the entries; its key says program, options and versions. An entry is machine
code, so each version and each processor's instruction set has a folder, which only its user may
write: a shared home folder never brings code that this machine cannot run.

JAX's limit of size (``jax_compilation_cache_max_size``) is not used: an entry without its time
stamp, as a killed process leaves it, ends all writing (jax issue 39880). Nor does JAX replace an
entry that it cannot read. Both is done here: what failed is removed, and at a run's end what was
not used for longest. Nothing that goes wrong stops a run or changes its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cljax.cli import terminal
from cljax.data.cache import user_cache, writable

__all__ = ["FLAG", "processor", "stored_programs"]

FLAG = (bool, True, "store compiled programs in the user's cache folder for the next runs")
_MOST = 256 * 1024 * 1024  # bytes, of all versions together; a run leaves about half a megabyte
_SECONDS = 0.1  # what compiles faster is not stored
_OPTION = "jax_persistent_cache_min_compile_time_secs"
_FAILURE = r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)"
_PROBED = "probed"  # what a folder's probe said; an empty file: programs can be read back


@contextlib.contextmanager
def stored_programs(wanted: bool) -> Iterator[None]:
    """Programs compiled within are taken from the user's cache folder, and stored there.

    Nothing is done where JAX's own cache is set (``JAX_COMPILATION_CACHE_DIR``) or switched off.
    It touches the devices, so processes must have joined before.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    now: Any = jax.config
    taken = now.jax_compilation_cache_dir or not now.jax_enable_compilation_cache
    folder = _prepared() if wanted and not taken else None
    if folder is None:
        yield
        return
    before = now.jax_persistent_cache_min_compile_time_secs
    if _OPTION.upper() not in os.environ:
        jax.config.update(_OPTION, _SECONDS)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        with _watched(folder):
            yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update(_OPTION, before)
        compilation_cache.reset_cache()
        _evict(folder.parent, _MOST)


def processor() -> str:
    """Twelve hexadecimal digits that stand for the instructions that this machine has."""
    return hashlib.sha256(_instructions().encode()).hexdigest()[:12]


def _instructions() -> str:
    """What Linux says of a processor; elsewhere the machine's name stands for it."""
    named = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        first = []
    pairs = [(name.strip(), value.split()) for name, _, value in (n.partition(":") for n in first)]
    said = [f"{name}:{' '.join(sorted(value))}" for name, value in pairs if name in named]
    return "\n".join([platform.machine(), *(said or [platform.processor(), platform.node()])])


def _prepared() -> Path | None:
    """The folder for this version and processor; None, and a sentence, where there can be none."""
    from jaxlib import version

    cache = user_cache()
    if cache is None:
        return _without("the user's cache folder", "the home folder is not known")
    folder = cache / "compiled" / f"{version.__version__}-{processor()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, probed = folder.stat(), folder / _PROBED
        # Entries are run, so they are as trusted as the user's own programs.
        if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            return _without(str(folder), "others may write there")
        if not writable(folder):
            return _without(str(folder), "it is read-only")
        if not probed.exists():
            said = _probe()
            probed.write_text(said)
            if said:
                return _without(str(folder), "this jaxlib cannot read its programs back here")
        return None if probed.stat().st_size else folder
    except OSError as error:
        return _without(str(folder), error.strerror or str(error))


def _without(place: str, why: str) -> None:
    _say(f"Compiled programs cannot be stored in {place} ({why}), so every run compiles anew.")


def _say(sentence: str) -> None:
    terminal.say(sentence, 0)


def _probe() -> str:
    """What goes wrong where a program is read back, or what is said on standard error; else "".

    Some versions refuse their own programs for features of the processor that are none (jax issue
    38445), and say so for each program at every run.
    """
    import jax
    from jax.experimental.serialize_executable import deserialize_and_load, serialize

    argument = jax.numpy.zeros(8)  # also wakes the devices, which may have their own to say
    with tempfile.TemporaryFile() as said:
        try:
            program = serialize(jax.jit(lambda x: jax.numpy.sin(x) + 1).lower(argument).compile())
            with _standard_error(said):
                deserialize_and_load(*program)(argument)
        except Exception as error:  # noqa: BLE001, whatever it is, programs are compiled anew
            return f"{type(error).__name__}: {error}"
        said.seek(0)
        return said.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _standard_error(file: Any) -> Iterator[None]:
    """Sends standard error to a file, also what XLA's C++ writes there."""
    before = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Removes entries that JAX warns of, so that they are written again; in the end says so."""
    show, failures = warnings.showwarning, {}

    def shown(message: Any, *args: Any, **options: Any) -> None:
        failure = re.match(_FAILURE, str(message), re.DOTALL)
        if failure is None:
            return show(message, *args, **options)
        doing, name, why = failure.groups()
        failures.setdefault(doing, " ".join(why.split())[:200])
        for path in folder.glob(f"{name}-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    with warnings.catch_warnings():
        warnings.filterwarnings("always", _FAILURE)
        warnings.showwarning = shown
        try:
            yield
        finally:
            if "writing" in failures:
                _without(str(folder), failures["writing"])
            elif "reading" in failures:
                why = failures["reading"]
                _say(f"Compiled programs in {folder} were damaged ({why}) and are made again.")


def _evict(root: Path, most: int) -> None:
    """Removes the files below a folder that were not used for longest, until it fits."""
    files = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # another run removes too
            status = path.stat()
            if path.is_file():
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
