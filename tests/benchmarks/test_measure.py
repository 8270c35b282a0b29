"""What the benchmarks share: timing side by side, memory, tables."""

from __future__ import annotations

import mmap
import time

import pytest

from benchmarks.measure import PeakMemory, Report, rounds


def test_rounds_alternate_after_a_warm_up() -> None:
    calls: list[str] = []
    timings = rounds({name: lambda name=name: calls.append(name) for name in "abc"}, 2)
    assert calls == list("abc" * 3)
    assert [timing.name for timing in timings] == list("abc")
    assert timings[0].ratio == 1.0


def test_rounds_compare_within_a_round() -> None:
    """The machine is ten times slower in the second round: the ratio does not see it."""
    slow = [1.0, 1.0, 10.0, 1.0]  # the first is the warm-up
    quick = iter(0.5 * seconds for seconds in slow)
    steady = iter(slow)
    old, new = rounds(
        {"old": lambda: next(steady), "new": lambda: next(quick)}, 3, "old", {"old": 4, "new": 6}
    )
    assert (old.seconds, old.per_second, old.ratio) == (1.0, 4.0, 1.0)
    assert (new.seconds, new.per_second, new.ratio) == (0.5, 12.0, 3.0)
    assert new.spread == pytest.approx((2.75 - 0.5) / 0.5)


def test_peak_memory_sees_what_is_freed_again() -> None:
    # Mapped, not from memory that this process has kept.
    with PeakMemory() as memory, mmap.mmap(-1, 50_000_000) as block:
        for _ in range(50):
            block.write(bytes(1_000_000))
        time.sleep(0.3)
    assert 45 < memory.grown_mb < 200
    assert memory.peak_mb > memory.grown_mb


def test_tables() -> None:
    values = {
        "name": "x",
        "count": 12345,
        "big": 1234.5,
        "small": 0.00123,
        "share": 0.5,
        "no": None,
    }
    printed = Report({"Title": [values]}, {"some_fact": 10.0}).markdown()
    assert "| name | count | big | small | share | no |" in printed
    assert "| x | 12,345 | 1,234 | 0.0012 | 0.500 |  |" in printed
    assert "**Title**\n\n" in printed
    assert "\n\nsome fact 10.00\n\n" in printed
