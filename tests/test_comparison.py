"""``cljax.compare``: equal budgets, seeds apart, and statistics of pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import support

import cljax
from cljax.errors import Interrupted, UserError
from cljax.stats import holm, paired
from cljax.streams.base import first_tasks, plan

LAMAML = cljax.LaMAML(capacity=6, replay_size=3, glances=1)
REPLAY = cljax.ER(capacity=6, replay_size=3)
NAIVE = cljax.Finetune
METHODS = {
    "lamaml": (LAMAML, {"alpha_init": [0.1, 0.3]}),
    "er": (REPLAY, {"lr": [0.1, 0.001]}),
    "naive": (NAIVE, {"lr": [0.1, 0.001]}),
}


def study(folder, methods=METHODS, **options):
    options = {"tune": cljax.Tune(seeds=(100, 101), tasks=2), "seeds": 3, **options}
    return cljax.compare(
        methods, support.stream(), net="mlp:5", batch_size=4, out=folder, **options
    )


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"))


def test_the_chosen_setting_is_the_best_on_validation_images(found):
    assert found.tried == 2
    for name, (_, values) in METHODS.items():
        (option,) = values
        chosen = found.settings[name]
        assert chosen.setting[option] in values[option] and len(chosen.values) == 2
        assert found.runs[name].config["method"]["options"][option] == chosen.setting[option]
    assert found.runs["er"].config["seeds"] == [0, 1, 2]
    assert not found.runs["er"].results["stream"].endswith("[validation]")


def test_pairs_are_those_of_the_statistics(found):
    pairs = found.pairs()
    assert [(p.a, p.b) for p in pairs] == [("lamaml", "er"), ("lamaml", "naive"), ("er", "naive")]
    tests = [paired(found.runs[p.a].metric("RA"), found.runs[p.b].metric("RA")) for p in pairs]
    assert [p.test for p in pairs] == tests
    np.testing.assert_allclose([p.p_holm for p in pairs], holm([t.p_value for t in tests]))


def test_the_table_names_methods_settings_cost_and_differences(found):
    text = found.table()
    for part in ("lamaml", "er - naive", "2 settings", "MB of state", "p = ", "dz = ", "RA"):
        assert part in text, part


def test_what_is_finished_is_read_back(tmp_path):
    first = study(tmp_path, {"er": METHODS["er"]})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    again = study(tmp_path, {"er": METHODS["er"]})
    assert again.runs["er"].resumed
    assert again.runs["er"].results["metrics"] == first.runs["er"].results["metrics"]
    written = [p for p, at in before.items() if p.stat().st_mtime_ns != at]
    assert not [p for p in written if "lanes" in p.parts or "report" in p.parts]


def test_unequal_budgets_and_shared_seeds_are_refused(tmp_path):
    with pytest.raises(UserError, match="er 2, naive 3 settings; give all the same number"):
        study(tmp_path, {"er": METHODS["er"], "naive": (NAIVE, {"lr": [0.1, 0.2, 0.3]})})
    with pytest.raises(UserError, match="Seed 2 both tunes and reports"):
        study(tmp_path, tune=cljax.Tune(seeds=(2, 5)))


def test_a_comparison_shows_its_events_to_what_is_asked(tmp_path):
    events, rates = [], {"er": (cljax.ER(capacity=6, replay_size=3), {"lr": [0.1]})}
    study(tmp_path, rates, seeds=2, progress=[events.append])
    names = {event.lane for event in events if event.kind == "eval"}
    assert names == {"er/lr=0.1/seed-100", "er/lr=0.1/seed-101", "er/seed_0", "er/seed_1"}
    lines = [json.loads(text) for text in (tmp_path / "report" / "er" / "metrics.jsonl").open()]
    assert lines and not any("lane" in line for line in lines)
    with pytest.raises(UserError, match="progress is 3"):
        study(tmp_path, rates, progress=3)


def test_an_interruption_is_passed_on(tmp_path, monkeypatch):
    from cljax import sweep

    stopped = sweep.Sweep(tmp_path, {}, None, exit_code=75)
    monkeypatch.setattr(sweep, "run", lambda *args, **options: stopped)
    with pytest.raises(Interrupted, match="the same call goes on"):
        study(tmp_path, {"er": METHODS["er"]})


def test_the_first_tasks_are_those_of_the_stream():
    whole = support.stream()
    part = first_tasks(whole, 2)
    assert part.num_tasks == 2 and len(part.test_index) == 2 and len(part.valid(0)) == 2
    full, own = plan(whole, 3, 4), plan(part, 3, 4)
    np.testing.assert_array_equal(own.index, full.index[: len(own.index)])
    assert part.checksum != whole.checksum
    for count in (0, 4):
        with pytest.raises(UserError):
            first_tasks(whole, count)
