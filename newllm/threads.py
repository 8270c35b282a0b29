"""How many threads to compute with: as many cores as the machine really gives.

The threads of a matrix product or a kernel wait for each other at its end. Where one of them shares
its core with another program, all wait for it, hundreds of times in a training step: two threads on
a machine with one free core are then slower than one (docs/BENCHMARKS.md, "A machine that also does
something else"). A number that was given, by --threads or OMP_NUM_THREADS, is never changed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from statistics import median

import torch

from newllm.cores import Load, usable_cores

_FIRST_LOOK = 0.2
"""Seconds for which the machine is watched before a number is chosen."""

_WINDOW = 5
"""Steps whose median is the pace."""

_SLOW = 1.4
"""Times the usual pace at which it is asked whether other programs are in the way."""

_FASTER = 0.95
"""A number of threads that was tried stays if the pace is at most this share of what it was."""

_PATIENCE = 30.0
"""Seconds for which nothing is tried again after a trial that did not help."""


class FreeThreads:
    """Threads for the cores that others leave, of work that comes now and then."""

    def __init__(self) -> None:
        """Nothing is changed where `OMP_NUM_THREADS` says how many, or there is but one."""
        self._most = torch.get_num_threads()
        self._follow = self._most > 1 and not os.environ.get("OMP_NUM_THREADS")
        self._load = Load()
        self._looked = time.monotonic()

    def look(self, least: float = 2.0) -> None:
        """Have torch (and the kernels, which follow it) use the cores that were free lately.

        Nothing happens within so many seconds of the last look.
        """
        now = time.monotonic()
        if self._follow and now - self._looked >= least:
            self._looked = now
            torch.set_num_threads(_free(self._most, self._load.busy()))


def _free(most: int, busy: float) -> int:
    return min(most, max(1, round(usable_cores() - busy)))


class TrainingThreads:
    """The threads of a training, which follow the machine while it goes on.

    A number is only changed where others are busy, so that on a machine of its own a run is the
    same to the bit every time.
    """

    def __init__(
        self, given: int | None, follow: bool, note: Callable[[str], None] = lambda text: None
    ) -> None:
        """Choose.

        Args:
            given: the number, to be kept; None: chosen.
            follow: whether it may be chosen at all (not on a GPU, nor beside other processes).
            note: called with a line about what changes and why.
        """
        self._note = note
        if given is not None:
            torch.set_num_threads(given)
        self._most = torch.get_num_threads()
        chosen = given is None and not os.environ.get("OMP_NUM_THREADS")
        self._follow = follow and chosen and self._most > 1
        self._load = Load()
        if self._follow:
            time.sleep(_FIRST_LOOK)
            busy = self._load.busy()
            torch.set_num_threads(_free(self._most, busy))
            if torch.get_num_threads() < self._most:
                note(
                    f"Threads {torch.get_num_threads()} of {self._most}: other programs keep "
                    f"{busy:.1f} core(s) busy"
                )
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._usual = float("inf")
        self._trial: tuple[int, float, float] | None = None
        """Threads before it, the pace with them, and what others kept busy."""
        self._not_before = 0.0

    def resume(self, threads: int) -> None:
        """Go on with as many as a run had, where that is free to choose."""
        if self._follow and threads <= self._most:
            torch.set_num_threads(threads)

    def after_step(self, seconds: float, tokens: int) -> None:
        """Have a look at the pace of the training; try another number where it may help."""
        if not self._follow:
            return
        self._recent.append(seconds / tokens)
        if len(self._recent) < _WINDOW:
            return
        pace = median(self._recent)
        if self._trial is not None:
            self._judge(pace, *self._trial)
            return
        self._usual = min(self._usual, pace)
        now = time.monotonic()
        if now < self._not_before:
            return
        self._not_before = now + 1  # the clocks of processors are coarse
        busy, threads = self._load.busy(), torch.get_num_threads()
        free = _free(self._most, busy)
        if free > threads or (free < threads and pace > _SLOW * self._usual):
            self._trial = threads, pace, busy
            torch.set_num_threads(free)
            self._recent.clear()

    def _judge(self, pace: float, before: int, slower: float, busy: float) -> None:
        now, helped = torch.get_num_threads(), pace < _FASTER * slower
        if helped:
            self._usual = pace
            self._note(
                f"\n  {now} thread(s) instead of {before} from here on: other programs keep "
                f"{busy:.1f} core(s) busy."
            )
        else:
            torch.set_num_threads(before)
            self._not_before = time.monotonic() + _PATIENCE
        self._trial = None
        self._recent.clear()
