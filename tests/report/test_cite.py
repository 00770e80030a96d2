"""Every method, penalty and stream can be cited, and every entry is sound."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cljax
from cljax.data import SOURCES
from cljax.errors import UserError
from cljax.methods import METHODS
from cljax.penalties import PENALTIES
from cljax.recipes import recipes
from cljax.references import cite
from cljax.report import cited
from cljax.streams import STREAMS

DATA = cite.citations()
BOUNDS = {"iid", "joint"}  # they have no reference of their own
FIELDS = {"article": {"journal"}, "inproceedings": {"booktitle"}, "techreport": {"institution"}}


@pytest.mark.parametrize("key", DATA["entries"])
def test_an_entry_has_its_fields_and_is_cited_by_something(key):
    entry = DATA["entries"][key]
    needed = {"type", "author", "title", "year"} | FIELDS[entry["type"]]
    assert needed <= entry.keys() and entry["year"] in key
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "1234.56789"))
    assert all(", " in author for author in entry["author"].split(" and "))
    text = cite.bibtex([key, key])
    assert text.count("@") == 1 and text.count("{") == text.count("}")
    used = [keys for kind, own in DATA.items() if kind not in ("about", "entries")
            for keys in own.values()]  # fmt: skip
    assert any(key in keys for keys in used)


def test_all_names_of_the_command_line_have_references():
    for name in {**METHODS, **PENALTIES}:
        assert bool(cite.keys_of(name)) == (name not in BOUNDS), name
    for name in set(STREAMS) - {"class-folders", "dataset-classes"}:  # of the user's own images
        assert cite.keys_of(name), name
    assert set(DATA["images"]) >= set(SOURCES)
    families = {re.split("[-:]", recipe.name)[0] for recipe in recipes()}
    assert families <= set(DATA["recipes"]), families


def test_what_entries_say_is_what_the_modules_say():
    root = Path(cljax.__file__).parent
    code = "\n".join(path.read_text("utf-8") for path in root.rglob("*.py"))
    named = set(re.findall(r"arXiv:(\d{4}\.\d{5})", code))
    for kind in ("methods", "penalties", "memories"):
        for name, keys in DATA[kind].items():
            for key in keys:
                entry = DATA["entries"][key]
                surname = re.sub(r"[^A-Za-z-]", "", entry["author"].split(",")[0])
                assert surname[:4] in code, (name, surname)
                if "eprint" in entry and key not in ("kirkpatrick2017ewc", "schwarz2018progress"):
                    assert entry["eprint"] in named, (name, key)


def test_streams_name_their_images():
    assert "lecun1998mnist" in cite.keys_of("mnist-b5-5")
    assert cite.keys_of("cifar100-b50-5") == ["krizhevsky2009cifar"]
    assert cite.keys_of("fashion-5-mnist-5") == ["xiao2017fashion", "lecun1998mnist"]
    assert cite.keys_of("imagenet1k-10x100") == ["russakovsky2015imagenet"]
    assert "le2015tiny" in cite.keys_of("cifar10-5-tinyimagenet-5")
    assert cite.keys_of("split-svhn") == ["netzer2011svhn"]


def config(**changes):
    base = {
        "method": {"name": "lucir", "options": {"exemplars": "mnemonics:outputs=all"}},
        "recipe": {"name": "mnemonics-toy:toy"}, "stream": {"name": "mnist-b5-5[sample]"},
        "stream_facts": {"source": "cljax sample of mnist"},
    }  # fmt: skip
    return {**base, **changes}


def test_a_run_cites_method_exemplars_recipe_and_images(real):
    assert cite.keys_of_config(config()) == [
        "hou2019lucir", "liu2020mnemonics", "lecun1998mnist",
    ]  # fmt: skip
    er = {"name": "er+exemplars", "options": {"penalty": {"name": "ewc", "options": {}}}}
    keys = cite.keys_of_config(config(method=er, recipe={"name": "default, untuned"}))
    assert keys == ["chaudhry2019er", "riemer2019mer", "kirkpatrick2017ewc", "lecun1998mnist"]
    for memory in ("balanced", {"name": "balanced", "options": {}}):
        er = {"name": "er", "options": {"memory": memory}}
        assert "chrysakis2020cbrs" in cite.keys_of_config(config(method=er))
    own = {"name": "mine", "options": {"memory": {"name": "fading", "options": {}}}}
    facts = {"source": "arrays of clinic"}
    mine = config(method=own, recipe={"name": "default"}, stream={"name": "clinic"},
                  stream_facts=facts)  # fmt: skip
    assert cite.keys_of_config(mine) == []
    assert cited.keys_of(str(real))[0] == "gupta2020lamaml"


def test_what_is_neither_name_nor_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean lamaml"):
        cite.keys_of("lamamel")
    with pytest.raises(UserError, match="holds no run"):
        cited.keys_of(str(tmp_path))
