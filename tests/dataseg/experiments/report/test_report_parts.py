"""Charts, pictures, curves and configuration differences of a report."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_suite import write_events
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataseg.config.diff import differences
from dataseg.experiments.report.charts import Curve, Dots, bar_chart, dot_chart, line_chart, ticks
from dataseg.experiments.report.examples import data_uris
from dataseg.experiments.report.tensorboard_events import read_events

finite = st.floats(-1e6, 1e6, allow_nan=False)


def as_xml(svg: str) -> ElementTree.Element:
    """The chart with its attributes quoted, as XML parsers want them."""
    quoted = re.sub(r"(<\w+)((?:\s+[\w-]+=(?:\"[^\"]*\"|[^\s\"<>]+))*)(\s*/?>)", _quote, svg)
    return ElementTree.fromstring(quoted)


def _quote(match: re.Match) -> str:
    attributes = re.sub(r"=([^\s\"<>/]+)", r'="\1"', match[2])
    return match[1] + attributes + match[3]


@settings(deadline=None, max_examples=50)
@given(finite, finite)
@example(0.0, 5e-324)
@example(-1e-310, 1e-310)
def test_ticks_hold_the_values_and_are_few(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 9
    assert np.all(np.diff(found) > 0)


def test_line_chart_has_every_point_and_says_what_it_is():
    curve = Curve("<row>", [(0, 1.0), (10, 5.0), (20, 3.0)], color=12, is_dashed=True)
    chart = as_xml(line_chart([curve, Curve("", [(0, 2.0)], 0, is_thin=True)], "step", "percent", "a <chart>"))
    assert chart.attrib["aria-label"] == "a <chart>"
    titles = [title.text for title in chart.iter("title")]
    assert titles == ["<row>", "<row>, step 0: 1.0", "<row>, step 10: 5.0", "<row>, step 20: 3.0"]
    heights = [float(circle.attrib["cy"]) for circle in chart.iter("circle")]
    assert heights[1] < heights[2] < heights[0]  # more is higher
    assert any(set(path.attrib.get("class", "").split()) == {"line", "c2", "dashed"} for path in chart.iter("path"))


def test_dot_chart_marks_every_value_and_what_is_missing():
    chart = as_xml(
        dot_chart([Dots("a", [1.0, 3.0, 2.0], 2.0, 0, "2.0"), Dots("b", [], 0.0, 1, "not run")], 2.0, "x", "n")
    )
    assert len(list(chart.iter("circle"))) == 4
    assert "not run" in [text.text for text in chart.iter("text")]


def test_bars_go_to_both_sides():
    chart = as_xml(bar_chart([("up", 4.0), ("down", -2.0)], "points", "n"))
    up, down = chart.iter("rect")
    assert (up.attrib["class"], down.attrib["class"]) == ("gain", "loss")
    assert float(up.attrib["width"]) == pytest.approx(2 * float(down.attrib["width"]), abs=0.2)
    assert float(down.attrib["x"]) + float(down.attrib["width"]) == pytest.approx(float(up.attrib["x"]), abs=0.2)


def test_charts_without_values_say_so():
    for chart in (line_chart([], "x", "y", "<n>"), dot_chart([], None, "x", "<n>"), bar_chart([], "x", "<n>")):
        assert "nothing to draw" in chart
        assert "<n>" not in chart


def test_events_are_joined_over_files_without_the_pause(tmp_path):
    write_events(tmp_path, {"ade": 1}, steps=3, seed=0)
    first = read_events(tmp_path)
    assert [step for step, _ in first.scalars["loss/ade/total"]] == [1, 2, 3]
    assert first.last("sampling/ade") == pytest.approx(1.01)
    assert first.last("sampling/none") is None
    assert Image.open(io.BytesIO(first.pictures["ade.semantic/image_1"])).size == (400, 120)
    (tmp_path / "events.out.tfevents.9999999999.later").write_bytes(b"")
    write_events(tmp_path, {"ade": 1}, steps=5, seed=1)
    both = read_events(tmp_path)
    assert [step for step, _ in both.scalars["loss/ade/total"]] == [1, 2, 3, 4, 5]
    assert first.seconds <= both.seconds < 60


def test_events_that_break_off_are_read_as_far_as_they_go(tmp_path):
    write_events(tmp_path, {"ade": 1}, steps=20, seed=0)
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:1000])
    steps = [step for step, _ in read_events(tmp_path).scalars["loss/ade/total"]]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < len(steps) < 20


def test_pictures_fit_the_budget_as_often_as_they_are_shown():
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(3):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (200, 1200, 3), np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    shown = [*pictures, pictures[0]]
    full = data_uris(shown, 10**9)
    assert set(full) == set(pictures)
    for budget in (300_000, 100_000, 5_000):
        uris = data_uris(shown, budget)
        assert sum(len(uris.get(picture, "")) for picture in shown) <= budget
    assert data_uris([b"no picture"], 1000) == {}


def test_differences_of_configurations():
    base = {
        "seed_everything": 0,
        "run": "a",
        "trainer": {"max_steps": 5, "callbacks": [{"class_path": "callbacks.Panels", "init_args": {"images": 4}}]},
        "data": {"class_path": "data_modules.CoTraining", "init_args": {"root": "/a", "ratios": {"ade": 1}}},
        "text": {"class_path": "A", "init_args": {"x": 1}},
    }
    other = {
        "seed_everything": 1,
        "run": "b",
        "trainer": {"max_steps": 5, "callbacks": [{"class_path": "callbacks.Panels", "init_args": {"images": 2}}]},
        "data": {
            "class_path": "data_modules.CoTraining",
            "init_args": {"root": "/b", "ratios": {"ade": 1, "coco": 4.0}},
        },
        "text": {"class_path": "B"},
    }
    assert differences([base, base]) == {}
    assert differences([base, other]) == {
        "trainer.callbacks.Panels.images": ["4", "2"],
        "data.ratios.coco": ["\N{EN DASH}", "4.0"],
        "text": ["A(x=1)", "B()"],
    }
