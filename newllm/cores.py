"""The cores that this process may use, and how busy others keep them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    return max(1, round(min(len(_allowed()), _quota())))


def _allowed() -> Collection[int]:
    """Numbers of the cores that the affinity allows."""
    affinity = getattr(os, "sched_getaffinity", None)
    return range(os.cpu_count() or 1) if affinity is None else affinity(0)


def _quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that a container may use (cgroup v2, then v1); infinite without a limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = " ".join((folder / file).read_text() for file in files).split()
            share = float(words[0]) / float(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue  # "max", or not there
        if share > 0:
            return share
    return float("inf")


class Load:
    """Cores that others keep busy, of those that this process may use."""

    def __init__(self) -> None:
        self._last = self._now()

    def busy(self) -> float:
        """The mean since it was asked last."""
        before, self._last = self._last, self._now()
        elapsed, used, own = (now - was for now, was in zip(self._last, before, strict=True))
        return max(0.0, (used - own) / max(elapsed, 1e-3))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Time, and seconds of processors that all programs and this one have used so far."""
        cores, mine = psutil.cpu_times(percpu=True), _allowed()
        if max(mine) >= len(cores):  # a container that is shown its own cores, numbered anew
            mine = range(len(cores))
        waiting = ("idle", "iowait", "guest", "guest_nice")  # guests count as user time already
        used = sum(
            seconds
            for core in mine
            for name, seconds in cores[core]._asdict().items()
            if name not in waiting
        )
        return time.perf_counter(), used, sum(os.times()[:4])
