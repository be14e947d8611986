"""Charts show what they are given, and stand in a page without disturbing it."""

from xml.etree import ElementTree

from dataseg.visualization.plots import Curve, Dots, add_legend, bar_chart, dot_chart, line_chart
from dataseg.visualization.style import DARK, LIGHT, inline_svg, save, series_color

CURVE = Curve("<row>", [(0, 1.0), (10, 5.0), (20, 3.0)], color=12, is_dashed=True)
THIN = Curve("", [(0, 2.0), (20, 4.0)], 0, is_thin=True)


def test_line_chart_has_every_point():
    (axes,) = line_chart([CURVE, THIN], "step", "percent").axes
    line = next(line for line in axes.lines if line.get_label() == "<row>")
    assert line.get_xydata().tolist() == [[0, 1], [10, 5], [20, 3]]
    assert line.get_color() == series_color(2)
    assert line.is_dashed()
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] >= 20
    assert axes.get_ylim()[0] <= 1 < 5 <= axes.get_ylim()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "percent")


def test_dot_chart_marks_every_value_and_what_is_missing():
    entries = [Dots("a", [1.0, 3.0, 2.0], 2.0, 0, "2.0"), Dots("b", [], 0.0, 1, "not run")]
    (axes,) = dot_chart(entries, 2.5, "x").axes
    marked = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert marked == [[1.0, 3.0, 2.0], [2.0]]
    assert any(list(line.get_xdata()) == [2.5, 2.5] for line in axes.lines)
    assert [text.get_text() for text in axes.texts] == ["not run"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_bars_go_to_both_sides():
    (axes,) = bar_chart([("up", 4.0), ("down", -2.0)], "points").axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, -2.0]
    assert {bar.get_x() for bar in axes.patches} == {0.0}
    assert [text.get_text() for text in axes.texts] == ["+4.0", "\N{MINUS SIGN}2.0"]


def test_long_names_are_wrapped_not_cut():
    name = "mini_all with learnt vectors and separate backgrounds"
    (axes,) = bar_chart([(name, 1.0)], "points").axes
    (label,) = (label.get_text() for label in axes.get_yticklabels())
    assert label.split() == name.split()
    assert max(map(len, label.splitlines())) <= 24


def test_in_a_page_ids_are_unique_text_is_text_and_colours_are_the_pages():
    charts = [inline_svg(line_chart([CURVE, THIN], "step", "percent"), name, "a <chart>") for name in ("c1", "c2")]
    root = ElementTree.fromstring(f"<p>{''.join(charts)}</p>")
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert ids
    assert len(ids) == len(set(ids))
    assert {use.attrib["href"] for use in root.iter("use")} == {f"#{name}" for name in ids}
    assert not any(element.tag in ("style", "metadata") for element in root.iter())
    assert {svg.attrib["aria-label"] for svg in root.iter("svg")} == {"a <chart>"}
    titles = [title.text for title in root.find("svg").iter("title")]
    assert titles == ["<row>", "<row>, step 0: 1.0", "<row>, step 10: 5.0", "<row>, step 20: 3.0"]
    assert {"step", "percent"} <= {text.text for text in root.iter("text")}
    assert not any(color in charts[0] for color in LIGHT.values())
    assert "var(--c2)" in charts[0]


def test_both_palettes_have_the_same_roles_and_colours_of_one_are_told_apart():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_files_have_a_legend_and_are_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        figure = line_chart([CURVE, THIN], "step", "percent")
        add_legend(figure)
        add_legend(figure)
        save(figure, tmp_path / name)
    first, second = ((tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    assert first == second
    assert first.count("&lt;row&gt;</text>") == 1
