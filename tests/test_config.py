"""Where a run says its code came from."""

from __future__ import annotations

import subprocess
from importlib import metadata

from cljax.runner.config import commit_of


def git(folder, *command):
    own = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    run = ["git", "-C", str(folder), *own, *command]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def test_a_checkout_says_its_commit_and_whether_files_differ_from_it(tmp_path):
    git(tmp_path, "init")
    assert commit_of(tmp_path) is None  # nothing is committed
    commit_of.cache_clear()
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "other").write_text("not tracked")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path) == head
    commit_of.cache_clear()
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == f"{head}-dirty"


def test_an_installed_package_says_the_commit_that_pip_wrote_down(tmp_path, monkeypatch):
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("mine") == "1"
    for text, commit in (
        ('{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
        ('{"url": "file:///x", "dir_info": {}}', None),
        ("damaged", None),
    ):
        (info / "direct_url.json").write_text(text)
        commit_of.cache_clear()
        assert commit_of(tmp_path / "nowhere", "mine") == commit
    assert commit_of(tmp_path / "nowhere", "not-installed") is None
