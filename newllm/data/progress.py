"""A line that says how far a long preparation is; a short one says nothing."""

from __future__ import annotations

import sys
import time

_FIRST_SECONDS = 5.0
_TERMINAL_SECONDS = 1.0
_PLAIN_SECONDS = 30.0


class PreparationProgress:
    """Rows so far and rows a second on the error channel: one line that is written over on a
    terminal, now and then a new one elsewhere.

    Args:
        split: what is prepared.
        done: rows that were done before.
    """

    def __init__(self, split: str, done: int = 0) -> None:
        self._split, self._before = split, done
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = self._started + _FIRST_SECONDS
        self._shown = False

    def update(self, rows: int) -> None:
        """So many rows are done, those done before included."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS)
        self._shown = True
        speed = (rows - self._before) / (now - self._started)
        line = f"Preparing {self._split}: {rows:,} rows, {speed:,.0f} rows/s"
        end = "" if self._terminal else "\n"
        print(f"\r{line}\x1b[K" if self._terminal else line, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line that was written over."""
        if self._shown and self._terminal:
            print(file=sys.stderr, flush=True)
