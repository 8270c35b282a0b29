"""Charts: valid SVG at any values, with places in the order of the values."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.report.charts import HEIGHT, WIDTH, Chart, Line, Threshold, draw, standalone, ticks

SVG = "{http://www.w3.org/2000/svg}"
FINITE = st.floats(1e-3, 1e5)


def chart(values: list[float], **changes: object) -> Chart:
    points = list(enumerate(values))
    parts = {
        "title": "<Title> & more",
        "description": 'It\'s "described"',
        "x_label": "epoch",
        "y_label": "PPL",
        "x_ticks": [(x, str(x)) for x, _ in points],
        "lines": [Line("a", points)],
    }
    return Chart(**{**parts, **changes})  # type: ignore[arg-type]


@given(st.lists(FINITE, min_size=1, max_size=12), FINITE, FINITE)
def test_everything_is_inside_and_in_order(values, mark, floor) -> None:
    thresholds = (Threshold("mark", mark, "mark"), Threshold("floor", floor, "floor"))
    svg = draw(chart(values, thresholds=thresholds, highlight=(0, values[0])), "x")
    root = ElementTree.fromstring(svg)
    dots = [c for c in root.iter(f"{SVG}circle") if "dot" in c.attrib["class"]]
    assert len(dots) == len(values)
    heights = [float(dot.attrib["cy"]) for dot in dots]
    for i, first in enumerate(values):
        assert 0 <= heights[i] <= HEIGHT
        assert 0 <= float(dots[i].attrib["cx"]) <= WIDTH
        assert all(heights[i] <= heights[j] for j, other in enumerate(values) if first > other)
    lines = [line.attrib for line in root.iter(f"{SVG}line") if "threshold" in line.attrib["class"]]
    assert (float(lines[0]["y1"]) <= float(lines[1]["y1"])) or mark < floor


def test_numbers_that_are_not_finite_are_left_out() -> None:
    svg = draw(chart([math.inf, 3.0, math.nan], highlight=(0, math.inf)), "x")
    assert svg.count("<circle") == 1
    assert "inf" not in svg.replace("infinite", "")
    assert "nan" not in svg


@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e4))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 5
    assert found == sorted(set(found))
    assert all(low - 1e-6 <= value <= low + span + 1e-6 for value in found)


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.25, 0.5, 0.75, 1]),
    (14.2, 17.4, [15, 16, 17]),
    (2, 2, [2]),
])  # fmt: skip
def test_ticks(low, high, expected) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_file_of_its_own_has_its_style() -> None:
    svg = standalone(draw(chart([1.0, 2.0]), "x"))
    root = ElementTree.fromstring(svg)
    assert next(iter(root)).text == "<Title> & more"
    assert "prefers-color-scheme" in svg
    assert not re.search(r"url\(|@import", svg)


def test_several_lines_have_a_legend() -> None:
    lines = [Line(f"<{n}>", [(0, n), (1, n + 1)]) for n in range(3)]
    svg = draw(chart([1.0, 4.0], lines=lines), "x")
    assert all(f"&lt;{n}&gt;" in svg for n in range(3))
    assert len(set(re.findall(r"colour-\d", svg))) == 3
