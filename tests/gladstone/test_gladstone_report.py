import csv
import io
import re
from collections.abc import Sequence

import click
import pytest
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st

from gladstone.report.svg_charts import (
    Area,
    Line,
    Mark,
    Paint,
    Strip,
    legend_key,
    line_chart,
    linear_ticks,
    log_ticks,
    strip_chart,
)
from gladstone.report.tables import Markdown, csv_table, escape_markdown, markdown_table, text_columns, text_width

HOSTILE = '<script>alert("1")</script>&|**x**'
FINITE = st.floats(-1e6, 1e6)
LIKE_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


@given(FINITE, st.floats(0, 1e6))
def test_ticks_rise_and_enclose_the_values(low: float, span: float) -> None:
    ticks = linear_ticks(low, low + span)
    slack = 1e-6 * max(1, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert list(ticks) == sorted(set(ticks))
    assert 2 <= len(ticks) <= 13


@pytest.mark.parametrize("last", [1, 2, 3, 17, 20000])
def test_ticks_of_counts_are_whole(last: int) -> None:
    assert all(tick == int(tick) for tick in linear_ticks(1, last, whole=True))


@given(st.floats(1e-9, 1e9), st.floats(1, 1e6))
def test_ticks_of_a_logarithmic_axis_are_powers_of_ten_that_enclose_the_values(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-6)
    assert ticks[-1] >= low * ratio * (1 - 1e-6)


@given(st.lists(st.tuples(st.integers(0, 1000), FINITE), min_size=1, max_size=20))
def test_a_curve_stays_inside_its_area_and_has_its_points_in_order(points: Sequence[tuple[float, float]]) -> None:
    area = Area(720, 300, 64, 704, 24, 256)
    steps, values = zip(*points, strict=True)
    axes = (
        area.across(linear_ticks(min(steps), max(steps), whole=True)),
        area.up(linear_ticks(min(values), max(values))),
    )
    chart = ElementTree.fromstring(line_chart("t", area, axes, [Line(points, Paint("best"), "all")]))
    curve = next(chart.iter("polyline")).get("points").split()
    assert len(curve) == len(list(chart.iter("circle"))) == len(points)
    for pair, (step, _) in zip(curve, points, strict=True):
        x, y = map(float, pair.split(","))
        assert area.left - 0.1 <= x <= area.right + 0.1
        assert area.top - 0.1 <= y <= area.bottom + 0.1
        assert x == pytest.approx(axes[0].pixel(step), abs=0.06)


def test_texts_in_a_chart_are_escaped_and_its_title_is_for_screen_readers() -> None:
    paint = Paint(colour="var(--model-0)")
    strips = [Strip(HOSTILE, [Mark(2.0, HOSTILE, paint, (1.0, 3.0), (1.5, 2.5)), Mark(1.0, "1", paint)])]
    chart = ElementTree.fromstring(strip_chart(HOSTILE, strips, (0.0, 2.0, 4.0), gap=10, width=720))
    assert chart.get("aria-label") == HOSTILE == chart.find("title").text
    assert [text.text for text in chart.iter("text")].count(HOSTILE) == 2
    assert {element.tag for element in chart.iter()} == {"svg", "title", "text", "line", "circle", "rect"}
    assert sum(line.get("class") == "whisker" for line in chart.iter("line")) == 3


def test_the_key_of_a_legend_has_the_colour_and_the_dash_of_its_line() -> None:
    line = ElementTree.fromstring(legend_key(Paint(colour="var(--run-0)", dash="7 4"))).find("line")
    assert line.get("style") == "stroke:var(--run-0)"
    assert line.get("stroke-dasharray") == "7 4"


@given(st.text(max_size=80))
def test_markdown_has_every_character_of_a_text_that_could_be_markup_escaped(text: str) -> None:
    escaped = escape_markdown(text)
    assert re.sub(r"\\(.)", r"\1", escaped, flags=re.DOTALL) == text
    bare = re.sub(r"\\.", "", escaped, flags=re.DOTALL)
    assert not set(bare) & set("<>[]`|*&!")
    for found in re.finditer("_", re.sub(r"\\.", "..", escaped, flags=re.DOTALL)):
        around = escaped[found.start() - 1], escaped[found.end()]
        assert all(character.isalnum() for character in around)


@given(st.lists(st.lists(st.text(max_size=20), min_size=2, max_size=2), max_size=5))
def test_no_cell_breaks_a_markdown_table(rows: list[list[str]]) -> None:
    lines = markdown_table(["name", "value"], rows, right=[1]).split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3


def test_a_markdown_table_keeps_cells_that_are_markdown() -> None:
    table = markdown_table(["a*"], [[Markdown("[x](y)")], ["[x](y)"]])
    assert table.split("\n") == [r"| a\* |", "| --- |", "| [x](y) |", r"| \[x\](y) |"]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_no_cell_of_a_csv_is_a_formula_and_none_breaks_its_line(cells: list[str]) -> None:
    read = list(csv.reader(io.StringIO(csv_table(["h"] * len(cells), [cells]))))
    assert [len(line) for line in read] == [len(cells), len(cells)]
    assert not any(cell.startswith(LIKE_FORMULAS) for cell in read[1])


def test_a_csv_has_numbers_in_full_and_nothing_where_there_is_none() -> None:
    assert (
        csv_table(["a", "b", "c"], [[0.1 + 0.2, 12345678901, None]]).splitlines()[1]
        == "0.30000000000000004,12345678901,"
    )


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    rows = [["name", "rows"], [click.style("表", bold=True), "3"], ["ab", "12"]]
    lines = text_columns(rows, right=[1])
    assert [text_width(line) for line in lines] == [10, 10, 10]
    assert [click.unstyle(line)[-1] for line in lines] == ["s", "3", "2"]
