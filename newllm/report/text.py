"""Numbers and tables as text; what is unknown is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"


def fixed(value: float | None, digits: int) -> str:
    """`2.14`."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """`+0.14`, with a real minus sign."""
    return NOTHING if value is None else f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """`46.6%`."""
    return NOTHING if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    """`11,883`."""
    return NOTHING if value is None else f"{value:,}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first row is the head; columns of numbers stand right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [
        any(cell[:1].isdigit() or cell[:1] in "+-<" for cell in column[1:] if cell)
        for column in zip(*rows, strict=True)
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def columns(facts: Mapping[str, Any]) -> str:
    """A line for each fact: its name, then its value."""
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
