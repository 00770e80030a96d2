"""The page says what the files hold, shows what is broken as such, and needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from report_support import changed, variant

from cljax import measures, stats, sweep
from cljax.cli.command import main
from cljax.errors import UserError
from cljax.report import report
from cljax.report.parts import legend
from cljax.runner import artefacts, snapshots

VOID = {"meta", "img", "link", "br", "source"}


class Page(HTMLParser):
    """Text, headings, images and links of a page whose tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images, self.headings = [], [], [], []
        self.attributes, self.tables = [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs.items()]
        self.images += [attrs] if tag == "img" else []
        self.tables += tag == "caption"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def made(*folders, out, figures=False, **options):
    """A report of tables alone, unless figures are asked for: those take a while."""
    done = report(*folders, out=out, figures=figures, **options)
    text = done.page.read_text("utf-8")
    return Page(text), text, done


def notices(text):
    return [unescape(line) for line in re.findall(r'class="notice">([^<]*)', text)]


def test_a_page_of_a_run_shows_everything_and_needs_nothing(real, tmp_path, monkeypatch):
    monkeypatch.setenv("CLJAX_DEBUG", "1")  # a part that fails raises
    page, text, done = made(real, out=tmp_path / "page.html", figures=True)
    assert page.headings == [
        "lamaml on pictures", "Accuracy", "Classes", "Learned rates", "Memory", "Time and cost",
        "Configuration", "For the paper",
    ]  # fmt: skip
    assert notices(text) == [] and done.problems == ()
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), "no scripts"
        if name in ("src", "srcset", "href"):
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert all(image["alt"] for image in page.images)
    results = json.loads((real / "results.json").read_text())
    said = "".join(page.text)
    for name in ("RA", "LA", "BTI", "forgetting"):
        mean, (first, second) = (results["metrics"][name][part] for part in ("mean", "values"))
        assert measures.label(name) in said
        for value in (mean, first, second):  # two seeds have no interval
            assert f"{100 * value:.2f}" in page.text
    config = json.loads((real / "config.json").read_text())
    for name in config["method"]["options"]:
        assert name in page.text
    assert "We train lamaml on pictures" in said and "gupta2020lamaml" in said
    for part in ("data", "compile", "train", "evaluate"):
        assert part in page.text
    figures = sorted((tmp_path / "page_figures").iterdir())
    inside = sorted(base64.b64decode(image["src"].partition(",")[2]) for image in page.images)
    assert len(figures) == 8 and sorted(path.read_bytes() for path in figures) == inside
    assert done.page.stat().st_size < 5e6
    again = made(real, out=tmp_path / "again" / "page.html", figures=True)[1]
    assert again == text


def tiles(text):
    """The numbers in large: name -> value."""
    found = re.findall(r'<dt>([^<]*)</dt><dd class="value">([^<]*)', text)
    return {unescape(name): unescape(value) for name, value in found}


def test_the_numbers_that_matter_stand_first_in_large(real, tmp_path):
    folder = variant(real, tmp_path / "a")
    _, text, _ = made(folder, out=tmp_path / "page.html")
    ra = json.loads((folder / "results.json").read_text())["metrics"]["RA"]
    shown = tiles(text)
    assert shown["final accuracy (RA)"] == f"{100 * ra['mean']:.2f} %"
    assert list(shown)[2:] == ["change since learned (BTI)", "mean forgetting (forgetting)"]
    assert shown["change since learned (BTI)"].endswith(" points")
    low, high = (100 * end for end in ra["ci95"])
    assert f"95 % interval [{low:.2f}, {high:.2f}]" in text
    assert text.index('<dl class="tiles">') < text.index("<table")
    others = [variant(real, tmp_path / name, seed=i) for i, name in enumerate(("b", "c"))]
    _, text, _ = made(*others, out=tmp_path / "two.html")
    assert list(tiles(text))[:2] == ["b", "c"], "a comparison sets its runs beside each other"


def test_how_settings_were_chosen_stands_near_the_head(real, tmp_path):
    tuning = {"metric": "RA", "on": "validation", "stream": "pictures", "grid": {"lr": [0.1, 0.3]},
              "chosen": {"lr": 0.3}, "settings": 2, "seeds": [1000, 1001], "runs": 4}  # fmt: skip
    folder = variant(real, tmp_path / "a")
    changed(folder, config={"tuning": tuning})
    for one, said in ((folder, "Tuned by RA on validation images"), (real, "Not tuned here")):
        _, text, _ = made(one, out=tmp_path / "page.html")
        assert text.index(said) < text.index("<table")


def test_the_legend_says_which_sign_is_a_loss(real, tmp_path):
    page, _, _ = made(variant(real, tmp_path / "a"), out=tmp_path / "page.html")
    (said,) = [line for line in page.text if line.startswith("Signs")]
    assert "BTI is a change, so a loss is below 0" in said
    assert "forgetting and F are drops, so a loss is above 0" in said
    assert legend(["RA", "LA"]).html.count("<li>") == 2, "without differences there is none"


def test_a_table_scrolls_in_a_place_that_keys_reach_and_that_has_a_name(real, tmp_path):
    page, text, _ = made(real, out=tmp_path / "page.html")
    places = re.findall(
        r'<div class="scroll" role="region" tabindex="0" aria-label="([^"]+)"><table[^>]*>'
        r"<caption><span>([^<]*)</span></caption>", text
    )  # fmt: skip
    assert len(places) == page.tables > 4
    assert all(name == caption for name, caption in places)


def test_a_dark_figure_reverses_what_is_drawn_but_no_image():
    from PIL import Image

    from cljax import plot
    from cljax.report.figures import picture
    from cljax.report.style import BACK

    matrix = np.array([[0.1, 0.1], [1.0, np.nan], [0.0, 1.0]])
    ax = plot.accuracy_matrix(matrix)
    made = picture("a", ax, "b", "c")
    light, dark = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        for png in (made.png, made.dark)
    )
    assert light.shape == dark.shape
    assert (light[0, 0] == 255).all() and dark[0, 0].tolist() == list(bytes.fromhex(BACK[1:]))

    def at(pixels, row, column):  # a corner of a cell, beside its number
        x, y = ax.transData.transform((column - 0.4, row - 0.4))
        return pixels[round(len(pixels) - y), round(x)]

    np.testing.assert_array_equal(at(light, 1, 0), at(dark, 1, 0), "a cell's colour is its value")
    assert at(light, 1, 1).min() > 150 and at(dark, 1, 1).max() < 100, "a blank cell is the page's"


def test_csv_and_latex_hold_the_numbers_of_the_run(real, tmp_path):
    folder = variant(real, tmp_path / "a_b", seeds=5)
    made(folder, out=tmp_path / "page.html")
    results = json.loads((folder / "results.json").read_text())
    head, *lines = (tmp_path / "page.csv").read_text().splitlines()
    rows = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    assert {row["metric"] for row in rows} == set(results["metrics"])
    for row in rows:
        cell = results["metrics"][row["metric"]]
        assert float(row["mean"]) == cell["mean"] and float(row["std"]) == cell["std"]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == cell["ci95"]
        assert row["n"] == "5" and row["run"] == "a_b"
    tex = (tmp_path / "page.tex").read_text()
    assert tex.count("{") == tex.count("}") and r"a\_b" in tex and r"\toprule" in tex
    assert f"{100 * results['metrics']['RA']['mean']:.2f}_{{[" in tex


def test_runs_are_paired_over_the_seeds_they_share(real, tmp_path):
    folders = [
        variant(real, tmp_path / name, seeds=seeds, seed=i, rise=rise)
        for i, (name, seeds, rise) in enumerate((("a", 5, 0), ("b", 6, 0.1), ("c", 5, 0.15)))
    ]
    page, text, _ = made(*folders, out=tmp_path / "page.html")
    assert "Comparison" in page.headings
    ra = [json.loads((f / "results.json").read_text())["metrics"]["RA"]["values"] for f in folders]
    tests = [stats.paired(ra[i][:5], ra[j][:5]) for i, j in ((0, 1), (0, 2), (1, 2))]
    corrected = stats.holm([test.p_value for test in tests])
    head, *lines = (tmp_path / "page_pairs.csv").read_text().splitlines()
    rows = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row, test, p_holm in zip(rows, tests, corrected, strict=True):
        assert float(row["difference"]) == test.diff and float(row["p_holm"]) == p_holm
        assert float(row["dz"]) == test.effect_size and row["seeds"] == "5"
        assert f"{p_holm:.3g}" in page.text and f"{test.effect_size:.2f}" in page.text
    assert not (tmp_path / "page_figures").exists()


def test_runs_of_different_streams_are_shown_but_not_compared(real, tmp_path):
    folders = [
        variant(real, tmp_path / "a"),
        variant(real, tmp_path / "b", stream="other", seed=1),
        variant(real, tmp_path / "c", seed=2),
    ]
    _, text, _ = made(*folders, out=tmp_path / "page.html")
    (said,) = [line for line in notices(text) if "different streams" in line]
    assert "a; c | b" in said
    lines = (tmp_path / "page_pairs.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2:4] for line in lines] == [["a", "c"]]
    _, text, _ = made(*folders[:2], out=tmp_path / "two.html")
    assert not (tmp_path / "two_pairs.csv").exists() and "a | b" in text


def test_runs_without_a_seed_or_a_metric_in_common_are_not_paired(real, tmp_path):
    one = variant(real, tmp_path / "one", seeds=2)
    two = variant(real, tmp_path / "two", seeds=2, seed=1)
    changed(two, {"seeds": [7, 8]})
    _, text, _ = made(one, two, out=tmp_path / "page.html")
    assert any("No seed finished with both" in line for line in notices(text))
    _, text, _ = made(one, two, out=tmp_path / "page.html", metric="FWT")
    assert any("has no FWT to compare" in line for line in notices(text))


def damaged(real, folder, how):
    shutil.copytree(real, folder)
    how(folder)
    return folder


def cut(name):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (cut("results.json"), "results.json cannot be read"),
        (cut("config.json"), "config.json is not what was written"),
        (cut("kept.npz"), "kept.npz is not what was written"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "results.json").write_text("[1, 2]"), "must be an object"),
        (lambda f: (f / "results.json").write_bytes(b"\xff\x00"), "results.json cannot be read"),
        (lambda f: (f / "results.json").write_text("{" * 9), "results.json cannot be read"),
        (lambda f: (f / "results.json").write_text("[" * 10**5), "results.json cannot be read"),
    ],
    ids=["results", "config", "kept", "no-config", "list", "bytes", "braces", "deep"],
)
def test_a_folder_with_a_damaged_file_is_refused_and_beside_others_a_sentence(
    how, said, real, tmp_path
):
    folder = damaged(real, tmp_path / "run", how)
    with pytest.raises(UserError, match=said):
        report(folder, out=tmp_path / "page.html", figures=False)
    good = variant(real, tmp_path / "good", seeds=2, tasks=2)
    page, _, done = made(good, folder, out=tmp_path / "page.html")
    assert said in done.problems[0] and said in "".join(page.text)
    assert done.left_out == (folder,) and page.tables > 0, "the others are still there"


@pytest.mark.parametrize("name", ["results", "config"])
def test_no_missing_or_wrong_field_ends_a_report(name, real, tmp_path):
    """A folder whose files agree with each other, but not with what a run writes."""
    whole = json.loads((real / f"{name}.json").read_text())
    folder, good = tmp_path / "run", variant(real, tmp_path / "good", seeds=2, tasks=2)
    shutil.copytree(real, folder)
    (folder / "kept.npz").unlink()
    own = json.loads((folder / "config.json").read_text())["config_hash"]
    refused = 0
    for field in whole:
        for value in (None, "x", [], {}, 3):
            if value in ("x", []) and field not in ("evaluations", "metrics", "recipe"):
                continue  # every field, but not every value of all
            broken = {k: v for k, v in whole.items() if k != field}
            content = broken if value == 3 else broken | {field: value}
            artefacts.write_json(folder / f"{name}.json", content)
            artefacts.seal(folder, own)
            page, _, done = made(good, folder, out=tmp_path / "page.html")
            refused += bool(done.left_out)
            assert page.tables > 0
    assert refused > len(whole)


def test_a_run_with_incomplete_results_is_left_out_of_a_comparison(real, tmp_path):
    good = [variant(real, tmp_path / name, seed=len(name)) for name in ("a", "bb")]
    whole = json.loads((good[0] / "results.json").read_text())
    ra = whole["metrics"]["RA"]
    for i, change in enumerate((
        {"cost": {}}, {"time": None}, {"seeds": [0, 1]}, {"evaluations": {}},
        {"metrics": {"RA": {**ra, "values": ["x", 1, 2, 3, 4]}}},
    )):  # fmt: skip
        bad = tmp_path / f"bad{i}"
        shutil.copytree(good[0], bad)
        changed(bad, change)
        page, text, _ = made(*good, bad, out=tmp_path / "page.html")
        assert any(bad.name in line for line in notices(text))
        assert "a − bb" in page.text and f"a − {bad.name}" not in page.text


def test_an_unfinished_run_says_how_far_it_is(real, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(real, folder)
    (folder / "results.json").unlink()
    (folder / "checkpoint").mkdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-2]) + '\n{"kind": "ev')
    page, text, _ = made(folder, out=tmp_path / "page.html")
    assert "is not finished" in notices(text)[0] and f"cljax resume {folder}" in notices(text)[0]
    assert "Configuration" in page.headings and page.images == []
    (folder / "metrics.jsonl").unlink()
    assert "not finished" in made(folder, out=tmp_path / "page.html")[1]


def sweep_folder(folder, real, finished=True):
    settings = [{"lr": 0.1}, {"lr": 0.3}]
    lanes = [{"setting": s, "seed": seed} for s in settings for seed in (1000, 1001)]
    places = [folder / "lanes" / sweep.Lane(**lane).name for lane in lanes]
    hashes = ["0" * 64] * 4
    if finished:
        made_of = [variant(real, place, seeds=1, seed=i) for i, place in enumerate(places)]
        hashes = [json.loads((p / "config.json").read_text())["config_hash"] for p in made_of]
    config = {"method": "er", "stream": "pictures", "metric": "RA", "on": "validation",
              "over": ["lr"], "lanes": lanes, "hashes": hashes, "sweep_hash": "1"}  # fmt: skip
    artefacts.write_json(folder / "sweep.json", config)
    found = [
        {"setting": s, "mean": m, "std": 0.01, "ci95": [m - 0.02, m + 0.02], "values": [m, m],
         "diverged": [None, None]}
        for s, m in zip(settings, (0.8125, 0.4), strict=True)
    ]  # fmt: skip
    if finished:
        artefacts.write_json(
            folder / "results.json", {"settings": found, "lanes": 4, "seeds": [1000, 1001]}
        )
    artefacts.seal(folder, "1")
    return folder


def test_a_sweep_shows_its_grid_and_points_at_its_lanes(real, tmp_path):
    page, text, _ = made(sweep_folder(tmp_path / "s", real), out=tmp_path / "page.html")
    assert "81.25 (81.25, 81.25)" in page.text and f"{tmp_path}/s/lanes" in text
    assert notices(text) == []
    both = made(tmp_path / "s", variant(real, tmp_path / "a"), out=tmp_path / "both.html")[0]
    assert "Sweep of er on pictures (s)" in both.headings and "Comparison" not in both.headings
    folder = sweep_folder(tmp_path / "t", real, finished=False)
    assert "Not finished: 0 of 4 lanes" in notices(made(folder, out=tmp_path / "t.html")[1])[0]


def test_a_study_stands_for_the_runs_it_reports(real, tmp_path):
    for name in ("mine", "theirs"):
        variant(real, tmp_path / "study" / "report" / name, seed=len(name))
    page, _, _ = made(tmp_path / "study", out=tmp_path / "page.html")
    assert "mine − theirs" in page.text


def test_a_folder_that_is_no_run_is_a_notice_beside_one_and_alone_refused(real, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    odd = [tmp_path / name for name in ("empty", "file", "nowhere")]
    _, text, done = made(real, *odd, out=tmp_path / "page.html")
    said = " ".join(done.problems)
    assert "neither config.json" in said and "is a file" in said and "does not exist" in said
    assert len([line for line in notices(text) if line in said]) == 3
    for folder in odd:
        with pytest.raises(UserError, match="nothing to report"):
            report(folder, out=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_everything_from_files_is_escaped(real, tmp_path):
    evil = '<script>alert("1")</script>&'
    folder = variant(real, tmp_path / "a<b>", method=evil)
    changed(folder, config={"method": {"name": "lamaml", "options": {evil: evil}}})
    page, text, _ = made(folder, variant(real, tmp_path / "b"), out=tmp_path / "page.html")
    assert "<script" not in text and "a<b>" not in text
    assert any(evil in heading for heading in page.headings) and evil in page.text
    assert evil in (tmp_path / "page.csv").read_text().replace('""', '"')


def test_only_what_a_report_wrote_is_overwritten(real, tmp_path):
    folder = variant(real, tmp_path / "a", tasks=2, seeds=2)
    report(folder, out=tmp_path / "page.html", figures=False)
    report(folder, out=tmp_path / "page.html", figures=False)
    for ending in ("html", "tex", "csv"):
        mine = tmp_path / f"thesis.{ending}"
        mine.write_text("mine")
        with pytest.raises(UserError, match="not made by a report"):
            report(folder, out=tmp_path / "thesis.html", figures=False)
        assert mine.read_text() == "mine"
        mine.unlink()
    with pytest.raises(UserError, match="end in .html"):
        report(folder, out=tmp_path / "page.pdf")
    with pytest.raises(UserError, match="cannot be written"):
        report(folder, out="/proc/page.html", figures=False)


def test_figures_of_the_page_before_go_and_those_of_others_stay(real, tmp_path):
    folder = variant(real, tmp_path / "a", tasks=2, seeds=2)
    place = tmp_path / "page_figures"
    place.mkdir()
    for name in ("b-accuracy_matrix", "b-rates", "b-outer_loss", "mine"):
        (place / f"{name}.png").write_bytes(b"old")
    report(folder, out=tmp_path / "page.html", figures=False)
    assert [path.name for path in place.iterdir()] == ["mine.png"]


def test_learned_exemplars_show_their_outer_losses(real, tmp_path):
    from cljax.report import figures

    losses = {"outer/0": np.linspace(1, 0.5, 40)[None], "outer/1": np.linspace(1, 0.2, 40)[None]}
    picture = figures.outer("run", losses)
    assert picture is not None and picture.name == "run-outer_loss"
    assert picture.png.startswith(b"\x89PNG") and "2 tasks" in picture.alt
    assert figures.outer("run", {"outer/0": np.full((1, 3), np.nan), "rates/0/0": losses}) is None


def test_a_diverged_seed_and_a_single_seed_are_said(real, tmp_path):
    folder = variant(real, tmp_path / "a", seeds=3, diverged=[None, 17, None])
    assert "Seed 1 diverged" in notices(made(folder, out=tmp_path / "a.html")[1])[0]
    single = variant(real, tmp_path / "b", seeds=1)
    page, text, _ = made(single, out=tmp_path / "b.html")
    assert "With one seed there are no intervals." in notices(text)
    assert "nan" not in "".join(page.text).lower().split()


def test_the_headline_is_the_evaluation_whose_matrix_stands_at_the_top(real, tmp_path):
    from cljax.report.folders import headline_of, matrix_of

    folder = variant(real, tmp_path / "a")
    results = json.loads((folder / "results.json").read_text())
    other = json.loads(json.dumps(results["evaluations"]["logits"]))
    other["accuracy_matrix"][0][-1][0] = 0.125
    results["evaluations"]["another"] = other
    results = json.loads(json.dumps(results, sort_keys=True))
    assert next(iter(results["evaluations"])) == "another" and headline_of(results) == "logits"
    assert matrix_of(results)[0, -1, 0] != 0.125


def test_the_command(real, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        return done.value.code, *capsys.readouterr()

    one, two = variant(real, tmp_path / "a"), variant(real, tmp_path / "b", seed=1)
    assert call("report", "a", "--no-figures") == (0, "a/report.html\n", "")
    assert (one / "report.csv").exists()
    code, out, err = call("report", str(one), str(two), "--no-figures", "--metric", "LA")
    assert code == 0 and out == "report.html\n" and (tmp_path / "report_pairs.csv").exists(), err
    for arguments, said in (
        (["report"], "needs the folder"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "a", "--ouy", "x"], "did you mean --out"),
        (["report", "a", "--out", "page.txt"], "must end in .html"),
        (["cite"], "needs a method"),
        (["cite", "lamamel"], "did you mean lamaml"),
    ):
        code, out, err = call(*arguments)
        assert code == 2 and said in err and out == "" and err.count("\n") == 1, (arguments, err)
    code, out, err = call("cite", "lamaml", "mnist-rotations", str(real), "joint")
    assert code == 0 and out.count("@inproceedings{gupta2020lamaml,") == 1
    assert "lecun1998mnist" in out and "joint has no reference" in err


def test_twenty_runs_are_reported_within_seconds_and_five_seeds_in_a_small_page(real, tmp_path):
    rng = np.random.default_rng(0)
    folders = [variant(real, tmp_path / f"r{i}", tasks=20, seed=i) for i in range(20)]
    began = time.process_time()
    page, text, _ = made(*folders, out=tmp_path / "all.html", figures=True)
    assert time.process_time() - began < 10 and len(text) < 5e6
    assert text.count('<table class="cells">') == 20 and len(page.images) == 1
    (x, task) = rng.integers(0, 255, (200, 28, 28, 1)), np.repeat(np.arange(20), 10)
    one = np.arange(20, dtype=np.int32)
    arrays = {"x": x.astype(np.uint8), "y": task % 10, "task": task, "groups": one, "counts": one}
    artefacts.write_arrays(
        folders[0] / snapshots.NAME, {f"memory/{k}": v for k, v in arrays.items()}
    )
    changed(folders[0])
    began = time.process_time()
    page, text, _ = made(folders[0], out=tmp_path / "one.html", figures=True)
    assert time.process_time() - began < 5 and len(text) < 5e6 and len(page.images) == 4
