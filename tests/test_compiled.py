"""Compiled programs that the command line stores for its next runs."""

from __future__ import annotations

import os
import platform
import shutil
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz_support import run_line
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import cljax
from cljax.cli import compiled, job, predict
from cljax.cli.compiled import stored_programs
from cljax.storage import checkpoint

RUN = ["run", "er", "mnist-rotations", "--sample", "--num-tasks", "2", "--samples-per-task", "20",
       "--net", "mlp:3", "--batch-size", "10", "--seed", "0"]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A user's cache folder of the test's own; JAX's cache is not set, and is afterwards again."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
             "jax_persistent_cache_min_entry_size_bytes")  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    for name, value in zip(names, (None, 0, -1), strict=True):
        jax.config.update(name, value)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    jax.clear_caches()
    yield tmp_path / "cache" / "cljax" / "compiled"
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def wave(x):
    return jnp.sin(x) * 3 + x


def computed():
    """What a program returns that is compiled, or read from the cache, anew."""
    jax.clear_caches()
    return np.asarray(jax.jit(wave)(jnp.arange(7.0)))


def entries(cache):
    return sorted(cache.rglob("jit_wave-*"))


def test_a_program_is_stored_for_this_version_and_processor_and_read_again(cache, capfd):
    with stored_programs(True):
        cold = computed()
    (entry,) = entries(cache)
    assert entry.parent.name.endswith(f"-{compiled.processor()}")
    assert entry.parent.stat().st_mode & 0o077 == 0
    content, hits = entry.read_bytes(), []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    with stored_programs(True):
        warm = computed()
    assert "/jax/compilation_cache/cache_hits" in hits
    np.testing.assert_array_equal(cold, warm)
    assert entry.read_bytes() == content and capfd.readouterr().err == ""


def test_afterwards_jax_is_as_before(cache):
    with pytest.raises(KeyError), stored_programs(True):
        assert jax.config.jax_compilation_cache_dir == str(next(cache.iterdir()))
        raise KeyError
    assert jax.config.jax_compilation_cache_dir is None
    computed()
    assert not entries(cache)


def test_a_command_leaves_the_same_state_from_a_cold_and_a_warm_cache(cache, tmp_path):
    states = []
    for name in ("cold", "warm"):
        jax.clear_caches()
        done = run_line([*RUN, "--out", name])
        assert done.code == 0 and "ompiled programs" not in done.said
        states.append(cljax.load(tmp_path / name).state.states)
    assert any(cache.rglob("jit_segment-*"))
    cold, warm = (jax.tree.map(checkpoint.host_copy, jax.tree.leaves(s)) for s in states)
    jax.tree.map(np.testing.assert_array_equal, cold, warm)


def test_the_flag_switches_it_off(cache, tmp_path):
    assert run_line([*RUN, "--out", "run", "--no-compile-cache"]).code == 0
    assert not cache.exists()
    flags = (job.run_flags(), job.running_flags(), predict._FLAGS)
    assert all(own["compile_cache"][:2] == (bool, True) for own in flags)


def test_in_python_nothing_is_stored(cache):
    stream = cljax.streams.toy()
    cljax.run(cljax.ER(), stream, seeds=1, net="mlp:3", progress=False)
    assert jax.config.jax_compilation_cache_dir is None and not cache.exists()


def test_a_cache_that_is_set_wins(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with stored_programs(True):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with stored_programs(True):
            computed()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not cache.exists()


def sentence(capsys):
    """The one sentence on standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cljax: Compiled programs ") and line.endswith(".")
    return line


def test_a_damaged_entry_is_said_once_and_made_again(cache, capsys):
    with stored_programs(True):
        cold = computed()
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    for damaged in (b"", whole[:100], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        entry.write_bytes(damaged)
        with stored_programs(True):
            np.testing.assert_array_equal(computed(), cold)
        assert "were damaged" in sentence(capsys)
        assert len(entries(cache)) == 1 and len(entry.read_bytes()) > 200
        with stored_programs(True):
            computed()
        assert capsys.readouterr().err == ""


def test_what_cannot_be_written_on_the_way_is_said_once(cache, capsys):
    with stored_programs(True):
        jax.jit(lambda x: x - 1)(1.0)  # JAX looks for the folder here
        shutil.rmtree(cache)
        first, again = computed(), computed()
    np.testing.assert_array_equal(first, again)
    assert "cannot be stored" in sentence(capsys)


def test_a_full_disk_is_said_in_its_words(cache, capsys):
    text = "Error writing persistent compilation cache entry for 'jit_wave': OSError: [Errno 28] No"
    with stored_programs(True):
        folder = next(cache.iterdir())
        (folder / "jit_wave-0-cache").write_text("a part")
        warnings.warn(text + " space left on device", stacklevel=1)
        assert not entries(cache)
    assert "[Errno 28] No space left on device" in sentence(capsys)


def test_other_warnings_are_shown_as_ever(cache, recwarn):
    with pytest.warns(UserWarning, match="something else"), stored_programs(True):
        warnings.warn("something else", stacklevel=1)


@pytest.mark.skipif(os.name == "nt", reason="modes are of Unix")
@pytest.mark.parametrize(("mode", "why"), [(0o500, "read-only"), (0o777, "others may write there")])
def test_a_folder_of_the_wrong_mode_is_not_used(cache, capsys, mode, why):
    with stored_programs(True):
        pass
    folder = next(cache.iterdir())
    folder.chmod(mode)
    with stored_programs(True):
        assert jax.config.jax_compilation_cache_dir is None
    assert why in sentence(capsys)
    folder.chmod(0o700)


def test_where_no_folder_can_be_made_a_run_goes_on(cache, tmp_path, capsys, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with stored_programs(True):
        computed()
    assert str(cache) in sentence(capsys)
    monkeypatch.setattr(compiled, "user_cache", lambda: None)
    with stored_programs(True):
        computed()
    assert "home folder is not known" in sentence(capsys)


def test_programs_that_a_version_cannot_read_back_are_said_once(cache, capfd, monkeypatch):
    def refusing(*_):
        os.write(2, b"E0000 Machine type used for XLA:CPU compilation doesn't match\n")
        return lambda x: x

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", refusing)
    for _ in range(2):
        with stored_programs(True):
            computed()
        assert not entries(cache)
    assert "cannot read its programs back" in sentence(capfd)
    assert "Machine type" in (next(cache.iterdir()) / "probed").read_text()


def test_a_probe_that_raises_is_no_error(cache, capsys, monkeypatch):
    def failing(*_):
        raise ValueError("no executable")

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", failing)
    with stored_programs(True):
        computed()
    assert "cannot read its programs back" in sentence(capsys)


def test_other_processors_have_other_folders(monkeypatch):
    linux = "processor\t: 0\nvendor_id\t: X\nflags\t\t: avx2 fma\ncpu MHz\t: {}\n\nprocessor\t: 1"
    said = [linux.format(1), linux.format(2), linux.format(1).replace("avx2", "avx2 avx512f")]
    names = []
    for text in said:
        monkeypatch.setattr(Path, "read_text", lambda path, text=text: text)
        names.append(compiled.processor())
    assert names[0] == names[1] != names[2]

    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    elsewhere = [compiled.processor()]
    monkeypatch.setattr(platform, "node", lambda: "another machine")
    assert compiled.processor() != elsewhere[0]


def test_what_was_not_used_for_longest_goes_first(cache, monkeypatch):
    other = cache / "0.0.1-0123456789ab"  # another version's
    other.mkdir(parents=True)
    for age, name in enumerate(["new", "used", "old"]):
        (other / name).write_bytes(bytes(1000))
        then = time.time() - 1000 * (age + 1)
        os.utime(other / name, (then, then))
    os.utime(other / "used", (time.time() - 10, time.time() - 2000))  # read since
    (other / "sub").mkdir()
    (other / "sub" / "oldest").write_bytes(bytes(1000))
    os.utime(other / "sub" / "oldest", (1, 1))
    monkeypatch.setattr(compiled, "_MOST", 2500)
    with stored_programs(True):
        pass
    assert sorted(p.name for p in other.iterdir()) == ["new", "sub", "used"]
    assert not any((other / "sub").iterdir())


def test_the_folder_on_windows_is_that_of_local_application_data(monkeypatch, tmp_path):
    from cljax.data import cache as data

    monkeypatch.setattr(data.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert data.user_cache() == tmp_path / "cache" / "cljax"  # a chosen one wins
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.user_cache() == tmp_path / "local" / "cljax"
