"""Numbers as people read them; what is unknown is a dash."""

from __future__ import annotations

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
