"""Line charts as SVG, for the pages and reports: no library, no outside resource.

Colours are CSS variables (`templates/chart.css`), so that a chart follows the page's theme. Every
text is escaped; each chart has a title and a description for those who do not see it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

WIDTH, HEIGHT = 480, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 30, 48
_LEGEND_LINE = 17
COLOURS = 6
"""Lines that have a colour of their own; further ones begin again."""

TEMPLATES = Path(__file__).parent / "templates"


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
    """A point that is marked and told its value, such as the best epoch."""
    digits: int = 2
    """Decimal places of the highlighted value."""


def draw(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element; `name` makes its ids unique on a page, whatever it holds."""
    key = f"chart-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    lines = [
        Line(line.label, [(x, y) for x, y in line.points if math.isfinite(y)])
        for line in chart.lines
    ]
    thresholds = [line for line in chart.thresholds if math.isfinite(line.value)]
    values = [y for line in lines for _, y in line.points]
    scale_x = _Scale.over([x for x, _ in chart.x_ticks], _LEFT, WIDTH - _RIGHT, margin=0.05)
    top = _TOP + (_LEGEND_LINE * len(lines) if len(lines) > 1 else 0)
    scale_y = _Scale.over([*values, *(t.value for t in thresholds)], HEIGHT - _BOTTOM, top)
    opening = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc" xmlns="http://www.w3.org/2000/svg">'
    )
    parts = [
        opening,
        f'<title id="{key}-title">{escape(chart.title)}</title>',
        f'<desc id="{key}-desc">{escape(chart.description)}</desc>',
        *_axes(chart, scale_x, scale_y),
        *(_threshold_line(line, scale_y(line.value)) for line in thresholds),
    ]
    for number, line in enumerate(lines):
        parts += _line(line, number % COLOURS, scale_x, scale_y)
    # Labels after the lines, whose halo then keeps them readable.
    parts += [_threshold_label(line, scale_y(line.value)) for line in thresholds]
    if len(lines) > 1:
        parts += _legend(lines)
    if chart.highlight is not None and math.isfinite(chart.highlight[1]):
        parts += _highlight(chart.highlight, chart.digits, scale_x, scale_y)
    return "\n".join([*parts, "</svg>"])


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
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def _axes(chart: Chart, scale_x: _Scale, scale_y: _Scale) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in ticks(scale_y.low, scale_y.high):
        y = scale_y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{y + 4}">{value:g}</text>')
    every = math.ceil(len(chart.x_ticks) / 12)
    for x_value, text in chart.x_ticks[::every]:
        x = scale_x(x_value)
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 18}">{escape(text)}</text>')
    middle = (_LEFT + right) / 2
    return [
        *parts,
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        f'<text class="name middle" x="{middle}" y="{HEIGHT - 8}">{escape(chart.x_label)}</text>',
        f'<text class="name" x="8" y="16">{escape(chart.y_label)}</text>',
    ]


def _threshold_line(line: Threshold, y: float) -> str:
    ends = f'x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"'
    return f'<line class="threshold {line.kind}" {ends}/>'


def _threshold_label(line: Threshold, y: float) -> str:
    """The mark is told at the right, the baseline at the left, so that they keep apart."""
    x, anchor = (WIDTH - _RIGHT, "end") if line.kind == "mark" else (_LEFT + 4, "start")
    style = f'class="threshold-label {line.kind} {anchor}"'
    return f'<text {style} x="{x}" y="{y - 6:.1f}">{escape(line.label)}</text>'


def _line(line: Line, colour: int, scale_x: _Scale, scale_y: _Scale) -> list[str]:
    places = [(scale_x(x), scale_y(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    return [
        f'<polyline class="line colour-{colour}" points="{path}"/>',
        *(f'<circle class="dot colour-{colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places),
    ]


def _highlight(
    point: tuple[float, float], digits: int, scale_x: _Scale, scale_y: _Scale
) -> list[str]:
    x, y = scale_x(point[0]), scale_y(point[1])
    anchor = "end" if x > WIDTH - 60 else "middle"
    below = y + 24 < HEIGHT - _BOTTOM
    place = f'x="{x + 6 if anchor == "end" else x}" y="{y + 22 if below else y - 12}"'
    return [
        f'<circle class="best" cx="{x}" cy="{y}" r="6"/>',
        f'<text class="best-label {anchor}" {place}>{point[1]:.{digits}f}</text>',
    ]


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        y = _TOP + 4 + _LEGEND_LINE * number
        parts.append(
            f'<circle class="dot colour-{number % COLOURS}" cx="{WIDTH - 24}" cy="{y - 4}" r="4"/>'
            f'<text class="tick end" x="{WIDTH - 34}" y="{y}">{escape(line.label)}</text>'
        )
    return parts
