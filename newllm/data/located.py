"""What reading gives: rows, each with the place where it stands, and places without a row.

A broken line is a `Malformed` item that is counted and shown later, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Located:
    """A row and where it stands (`file:line`)."""

    where: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """Something that should have been a row."""

    where: str
    reason: str


@dataclass(frozen=True)
class Repeated:
    """A validation row that stands in training too, left out because that was wished."""

    where: str


Item = Located | Malformed | Repeated
Rows = Callable[[], Iterator[Item]]
"""Starts a new pass over the rows; passes are equal."""
