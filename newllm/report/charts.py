"""Line charts as SVG, for the pages and reports, without any outside resource.

Places are computed here; `templates/chart.svg` is the drawing. Colours are CSS variables
(`templates/chart.css`), so that a chart follows the page's theme. Every text is escaped; each chart
has a title and a description for screen readers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jinja2

WIDTH, HEIGHT = 480, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 30, 48
_LEGEND_LINE = 17
COLOURS = 6
"""Lines that have a colour of their own; further ones begin again."""

TEMPLATES = Path(__file__).parent / "templates"

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
)
"""Of all templates; what comes from files is escaped."""


@dataclass(frozen=True)
class Line:
    """Points joined by a line; those that are not finite are left out."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Threshold:
    """A horizontal line: the mark, or the n-gram baseline ("floor" in the styles)."""

    label: str
    value: float
    kind: Literal["mark", "floor"]


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    thresholds: Sequence[Threshold] = ()
    highlight: tuple[float, float] | None = None
    """A point that is marked with its value, such as the best epoch."""
    digits: int = 2
    """Decimal places of the highlighted value."""


def draw(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element; `name` makes its ids unique on a page, whatever it holds."""
    key = f"chart-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    lines = [
        replace(line, points=[(x, y) for x, y in line.points if math.isfinite(y)])
        for line in chart.lines
    ]
    thresholds = [line for line in chart.thresholds if math.isfinite(line.value)]
    values = [y for line in lines for _, y in line.points] + [line.value for line in thresholds]
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    top = _TOP + (_LEGEND_LINE * len(lines) if len(lines) > 1 else 0)
    y_scale = _Scale.over(values, bottom, top)
    best = chart.highlight
    return ENVIRONMENT.get_template("chart.svg").render(
        chart=chart,
        key=key,
        x=_Scale.over([x for x, _ in chart.x_ticks], left, right, margin=0.05),
        y=y_scale,
        x_ticks=chart.x_ticks[:: math.ceil(len(chart.x_ticks) / 12)],
        y_ticks=ticks(y_scale.low, y_scale.high),
        lines=lines,
        thresholds=thresholds,
        highlight=best if best is not None and math.isfinite(best[1]) else None,
        colours=COLOURS,
        legend_line=_LEGEND_LINE,
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=right,
        top=_TOP,
        bottom=bottom,
    )


def standalone(svg: str) -> str:
    """A chart as a file of its own, with its style, following the viewer's light or dark."""
    style = (TEMPLATES / "chart.css").read_text(encoding="utf-8")
    paper = f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>'
    head, closing, rest = svg.partition("</desc>")
    return f"{head}{closing}\n<style>\n{style}</style>\n{paper}{rest}\n"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most so many (but two at least)."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        first, last = math.ceil(low / (step * factor)), math.floor(high / (step * factor))
        if last - first + 1 <= most:
            # Rounded, because 3 * 0.1 is not 0.3.
            return [round(step * factor * i, 10) for i in range(first, last + 1)] or [low, high]
    return [low, high]


@dataclass(frozen=True)
class _Scale:
    """Values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, margin: float = 0.08
    ) -> _Scale:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = (high - low) * margin or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low)
        return round(self.start + fraction * (self.end - self.start), 1)
