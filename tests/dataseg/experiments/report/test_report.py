"""The report of a suite: its figures are those of the runs, and what is missing is said."""

import json
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_suite import FIGURES
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.cli.report import main
from dataseg.experiments.report.collect import collect
from dataseg.experiments.report.comparison import comparisons_of, headlines
from dataseg.experiments.report.html import Chapter, chapters_of, page
from dataseg.experiments.report.statistics import Difference, Spread, lines_of, signed
from dataseg.experiments.suite import load
from dataseg.structures import UserError

percents = st.lists(st.floats(0, 100), min_size=1, max_size=5)


class Page(HTMLParser):
    """Cells of the tables of figures by row and metric, text, ids and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[dict] = []
        self.text, self.ids, self.links, self.addresses = "", [], [], []
        self._cell: dict | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.addresses += [found[name] for name in ("src", "xlink:href") if name in found]
        self.addresses += [found["href"]] if tag == "link" else []
        self.links += [found["href"]] if tag == "use" else []  # to a part of the same chart
        if tag == "td" and "data-metric" in found:
            self._cell = {**found, "values": [], "class": found["class"].split(), "text": ""}
            self.cells.append(self._cell)
        if tag == "td" and "diff" in (found.get("class") or "").split():
            self._cell = self.cells[-1]  # of the median before it
            self._cell["change"] = found["class"].split()
        if tag == "data" and self._cell is not None:
            self._cell["values"].append(float(found["value"]))

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell["text"] += data

    def cell(self, row: str, metric: str, table: int = 0) -> dict:
        return [c for c in self.cells if (c["data-row"], c["data-metric"]) == (row, metric)][table]


@pytest.fixture(scope="module")
def written(complete, tmp_path_factory) -> tuple[Path, Path, Path]:
    """What the command writes: the page, the Markdown file, the folder of figures."""
    out = tmp_path_factory.mktemp("docs") / "small"
    assert main(["--suite", str(complete.suite_file), "--runs", str(complete.runs), "--out", str(out)]) == 0
    return out.with_suffix(".html"), out.with_suffix(".md"), out.with_name("small_figures")


@pytest.fixture(scope="module")
def shown(written) -> Page:
    return Page(written[0].read_text(encoding="utf-8"))


@pytest.fixture
def without_charts(monkeypatch):
    """Charts take most of the time."""
    monkeypatch.setattr(Chapter, "charts", {part: [] for part in ("scores", "curves", "losses", "classes")})
    monkeypatch.setattr(Chapter, "gains", {})


def read_page(tree) -> Page:
    findings = collect(load(tree.suite_file), tree.runs)
    return Page(page(findings, chapters_of(findings), date(2026, 1, 1)))


def test_figures_of_the_page_are_those_of_the_runs(shown, complete):
    for row in ("one_ade@10", "one_coco@20", "both@30"):
        for metric, base in (("ade.miou", "one_ade@10"), ("coco.pq", "one_coco@20")):
            on_disk = [json.loads((complete.folder(row, k) / "metrics.json").read_text())[metric] for k in range(3)]
            expected = [np.median(on_disk), np.min(on_disk), np.max(on_disk)]
            if row != base:
                expected.append(np.median(on_disk) - np.median(FIGURES[base][metric]))
            np.testing.assert_allclose(shown.cell(row, metric)["values"], expected, rtol=0, atol=1e-12)


def test_a_table_with_fewer_seeds_takes_the_first(shown):
    cell = shown.cell("both+mixed@30", "ade.miou")
    np.testing.assert_allclose(cell["values"], [44.5, 44.5 - 45.5])
    assert shown.cell("both@30", "ade.miou", table=1)["values"] == [45.5]


def test_marks(shown):
    assert "transfer" in shown.cell("one_coco@20", "ade.miou")["class"]
    assert "transfer" not in shown.cell("one_ade@10", "ade.miou")["class"]
    assert "best" in shown.cell("both@30", "ade.miou")["class"]
    assert "best" in shown.cell("one_coco@20", "coco.pq")["class"]
    up, overlapping = shown.cell("both@30", "ade.miou")["change"], shown.cell("both@30", "coco.pq")["change"]
    assert {"up", "clear"} <= set(up)
    assert {"down", "unclear"} <= set(overlapping)
    assert "\N{BLACK UP-POINTING TRIANGLE} +4.6" in shown.text


def test_one_seed_is_compared_with_the_range_of_all_seeds_of_the_baseline(shown):
    assert "lower by 1.0 points" in shown.text
    assert "higher by 9.5 points" in shown.text
    within, outside = (shown.cell("both+mixed@30", metric)["text"] for metric in ("ade.miou", "coco.pq"))
    assert "\N{WHITE UP-POINTING TRIANGLE}" in outside
    assert "TRIANGLE" not in within
    assert "\N{WHITE DOWN-POINTING TRIANGLE}" not in within


def test_sentence_of_result_and_markdown_agree_with_the_page(written, shown):
    text = written[1].read_text(encoding="utf-8")
    trained = "both (30 steps), trained on ade and coco,"
    sentence = f"{trained} beats its baseline by more than the seeds' range in 1 of 2 scores"
    assert sentence in text
    assert sentence in shown.text
    assert "against 40.9 [40.1\N{EN DASH}41.7] of one_ade (10 steps), +4.6" in text
    assert "| 45.5 [44.2\N{EN DASH}47.0]" not in text  # the best of its column is bold
    assert "**45.5** [44.2\N{EN DASH}47.0]<br>\N{BLACK UP-POINTING TRIANGLE} +4.6" in text
    assert "48.1<br>+6.1" in text  # the paper's
    assert "\\*" not in text
    assert "COCO \\| PQ" in text
    assert "\\<b\\>coco" in text
    table = [line for line in text.splitlines() if line.startswith("| ")][:4]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_names_are_escaped(written):
    html = written[0].read_text(encoding="utf-8")
    assert "<b>coco</b>" not in html
    assert "&lt;b&gt;coco&lt;/b&gt;" in html
    assert "Scaling <of>" not in html
    assert "a<b" not in html
    assert "<p>Second &amp; last.</p>" in html


def test_needs_nothing_else_and_its_contents_lead_somewhere(shown):
    assert shown.addresses
    assert all(address.startswith("data:image/jpeg") for address in shown.addresses)
    assert {link.removeprefix("#") for link in shown.links} <= set(shown.ids)
    assert len(set(shown.ids)) == len(shown.ids)
    assert "image_1" in shown.text
    assert "a<b" in shown.text
    assert "3163b96ab5aa" in shown.text


def test_pictures_are_made_smaller_or_left_out_to_keep_the_limit(tree, without_charts):
    findings = collect(load(tree.suite_file), tree.runs)
    chapters = chapters_of(findings)
    full = page(findings, chapters, date(2026, 1, 1))
    bare = page(findings, chapters, date(2026, 1, 1), limit=0)
    half = (len(full) + len(bare)) // 2
    assert len(bare) < len(page(findings, chapters, date(2026, 1, 1), limit=half)) <= half * 1.01 < len(full)
    assert "data:image" not in bare
    assert "left out for size" in bare


def test_what_is_missing_is_said(tree, without_charts):
    (tree.folder("one_ade@10", 1) / "metrics.json").write_text('{"ade.miou": 4', encoding="utf-8")
    for file in tree.folder("one_ade@10", 2).glob("events*"):
        file.unlink()
    tree.write_run("one_coco@20", 0, run={"step": 10, "max_steps": 20, "seed": 0})
    (tree.folder("one_coco@20", 0) / "output.txt").write_text("step\nerror: no space left\n", encoding="utf-8")
    for file in tree.folder("both+mixed@30", 0).iterdir():
        file.unlink()
    tree.folder("both+mixed@30", 0).rmdir()
    shown = read_page(tree)
    assert "one_ade@10, seed 1: metrics.json cannot be read" in shown.text
    assert "one_ade@10, seed 2: no TensorBoard curves" in shown.text
    assert "one_coco@20, seed 0: not complete: evaluated at step 10 of 20" in shown.text
    assert "no space left" in shown.text
    assert "both+mixed@30, seed 0: not run" in shown.text
    np.testing.assert_allclose(shown.cell("one_ade@10", "ade.miou")["values"], [40.5, 40.1, 40.9])
    missing = shown.cell("both+mixed@30", "ade.miou")
    assert missing["values"] == []
    assert missing["text"] == "not run"


def test_hostile_files_of_runs_are_left_out(tree, without_charts):
    deep = "[" * 5000 + "]" * 5000
    references = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    (tree.folder("one_ade@10", 0) / "metrics.json").write_text(deep)
    (tree.folder("one_ade@10", 1) / "config.yaml").write_text(deep)
    (tree.folder("one_ade@10", 2) / "config.yaml").write_text(references)
    (tree.folder("one_coco@20", 0) / "config.yaml").write_text("!!python/object/apply:os.system [touch ran]")
    shown = read_page(tree)
    assert "one_ade@10, seed 0: metrics.json cannot be read" in shown.text
    for row, seed in (("one_ade@10", 1), ("one_ade@10", 2), ("one_coco@20", 0)):
        assert f"{row}, seed {seed}: config.yaml cannot be read" in shown.text


def test_a_value_of_a_wrong_type_counts_as_undefined(tree, without_charts):
    tree.write_run("both@30", 0, **{"ade.miou": None, "history": 3, "per_class": [], "conventions": None})
    assert read_page(tree).cell("both@30", "ade.miou")["values"][:3] == [45.625, 44.25, 47.0]


def test_runs_that_follow_other_conventions_are_pointed_out(tree, shown, without_charts):
    assert "cannot be compared" not in shown.text
    tree.write_run("both@30", 0, conventions={"ade.semantic": {"metric": "another", "vocabulary": "3163b96ab5aa"}})
    assert "The runs differ, and cannot be compared: another (1 runs); mean IoU (9 runs)" in read_page(tree).text


def test_ticks_of_rows_never_run_come_from_their_files(tree):
    for file in sorted(tree.folder("both+mixed@30", 0).iterdir()):
        file.unlink()
    conf = tree.root / "conf"
    (conf / "exp").mkdir()
    (conf / "exp" / "both.yaml").write_text("extends: base.yaml\ntrainer: {max_steps: 3}\n", encoding="utf-8")
    base = "data: {init_args: {ratios: {ade: 1, coco: 0, o365: 2}}}\n"
    (conf / "exp" / "base.yaml").write_text(base, encoding="utf-8")
    findings = collect(load(tree.suite_file), tree.runs, conf)
    assert findings.ratios["both+mixed@30"] == {"ade": 1.0, "o365": 2.0}
    assert findings.ratios["one_coco@20"] == {"coco": 1.0}


def test_command_line(written, tree):
    html, md, figures = written
    assert sorted(path.name for path in html.parent.iterdir()) == [html.name, md.name, figures.name]
    saved = {path.name for path in figures.iterdir()}
    for name in ("table1-rows-ade.miou", "table1-curves-coco.pq", "table1-loss-ade", "table1-classes-ade.miou-both@30"):
        assert {f"{name}.pdf", f"{name}.svg"} <= saved
    curves = (figures / "table1-curves-coco.pq.svg").read_text(encoding="utf-8")
    assert "one_ade</text>" in curves  # the legend, as text
    with pytest.raises(UserError, match="make ablation SUITE=small"):
        main(["--suite", str(tree.suite_file), "--runs", str(tree.root / "nothing")])


def test_no_run_is_an_error_that_says_how_to_run(tree):
    with pytest.raises(UserError, match="make ablation SUITE=small"):
        collect(load(tree.suite_file), tree.root)


def test_headlines_of_one_seed_claim_nothing(tree):
    for row in FIGURES:
        for seed in (1, 2):
            if tree.folder(row, seed).is_dir():
                tree.folder(row, seed).rename(tree.root / f"{row}{seed}")
    findings = collect(load(tree.suite_file), tree.runs)
    main_table = findings.suite.tables[0]
    comparisons = comparisons_of(findings, main_table, lines_of(findings, main_table))
    assert [comparison.answer for comparison in comparisons] == ["higher by 5.4 points", "higher by 0.5 points"]
    assert "cannot be told without several seeds" in headlines(comparisons)[0]
    assert "higher in 2 of 2" in headlines(comparisons)[0]


@settings(deadline=None, max_examples=50)
@given(percents)
def test_spread_agrees_with_numpy(values):
    spread = Spread.of([None, *values])
    assert spread is not None
    assert spread.median == pytest.approx(np.median(values), abs=1e-9)
    assert (spread.low, spread.high, spread.count) == (min(values), max(values), len(values))


@settings(deadline=None, max_examples=50)
@given(percents, percents)
def test_a_difference_is_clear_if_no_value_lies_between_the_others(ours, base):
    difference = Difference.between(Spread.of(ours), Spread.of(base), Spread.of(base))
    assert difference is not None
    assert difference.value == pytest.approx(np.median(ours) - np.median(base), abs=1e-9)
    apart = all(a > b for a in ours for b in base) or all(a < b for a in ours for b in base)
    assert difference.is_clear == (apart if min(len(ours), len(base)) > 1 else None)


def test_nothing_defined_has_no_spread_and_no_difference():
    assert Spread.of([None]) is None
    assert Difference.between(None, Spread.of([1.0]), None) is None


def test_signs():
    assert [signed(value) for value in (1.25, -0.04, -2.0)] == ["+1.2", "0.0", "\N{MINUS SIGN}2.0"]
