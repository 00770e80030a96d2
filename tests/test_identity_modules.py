"""Modules of one's own are told by all of them that a run reads."""

from __future__ import annotations

import sys
import textwrap

from cljax.identity.content import content
from cljax.identity.sources import package_of


def own_module(folder, monkeypatch, name, text):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop(name, None)
    return __import__(name)


def test_helpers_settings_and_local_imports_of_other_modules_are_followed(tmp_path, monkeypatch):
    helper = own_module(
        tmp_path, monkeypatch, "own_helper", "RATE = 1\ndef act(x): return RATE * x\n"
    )
    user = own_module(
        tmp_path, monkeypatch, "own_user",
        """
        import own_helper
        from own_helper import act
        def attribute(x): return own_helper.act(x)
        def name(x): return act(x)
        def setting(x): return own_helper.RATE * x
        def local(x):
            from own_helper import act as mine
            return mine(x)
        def other(x): return x
        """,
    )  # fmt: skip
    names = ("attribute", "name", "setting", "local")
    before = {name: content(getattr(user, name)) for name in (*names, "other")}
    assert not any(found.unknown for found in before.values())
    monkeypatch.setattr(helper, "RATE", 2)
    for name in names:
        assert content(getattr(user, name)).json != before[name].json, name
    assert content(user.other).json == before["other"].json


def test_a_module_that_is_itself_a_value_is_told_by_all_that_it_holds(tmp_path, monkeypatch):
    settings = own_module(
        tmp_path, monkeypatch, "own_settings",
        """
        import threading, types
        conf = types.SimpleNamespace(rate=1)
        def local(x):
            import own_settings as cfg
            return cfg.conf.rate * x
        def other(x): return x
        """,
    )  # fmt: skip

    def given(x, cfg=settings):
        return cfg.conf.rate * x

    before = [content(f).json for f in (settings.local, given)]
    monkeypatch.setattr(settings.conf, "rate", 2)
    assert all(content(f).json != b for f, b in zip((settings.local, given), before, strict=True))
    assert not content(given).unknown
    settings.lock = settings.threading.Lock()
    assert "settings.lock" in content({"settings": settings}).unknown[0]


def test_own_files_with_names_of_the_standard_library_are_ones_own(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    own = own_module(tmp_path, monkeypatch, "this", "RATE = 1\ndef act(x): return RATE * x\n")
    before = content(own.act)
    assert package_of("this") is None and before.own == ("this",)
    monkeypatch.setattr(own, "RATE", 2)
    assert content(own.act).json != before.json
    for name in ("json", "math", "os", "sys", "_ctypes", "wave", "email.mime"):
        assert package_of(name).name == "python", name


def test_a_module_that_was_edited_is_another_one_once_it_is_imported_again(tmp_path, monkeypatch):
    import importlib

    own = own_module(tmp_path, monkeypatch, "own_edited", "def act(x): return x\n")
    before = content(own.act)
    (tmp_path / "own_edited.py").write_text("# edited\ndef act(x): return 2 * x\n")
    stale = content(own.act)  # the old code still runs
    assert "own_edited:act, whose source is not there" in stale.unknown[0]
    importlib.invalidate_caches()
    again = content(importlib.reload(own).act)
    assert not again.unknown and again.json != before.json
