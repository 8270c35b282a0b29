"""How many points are tried, and the count of what was tried."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TRIED = pytest.StashKey[Counter[str]]()
QUICK = 2
"""Points of a scenario that are tried in the usual run of the tests."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIED] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in sorted(terminalreporter.config.stash[TRIED].items()):
        terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where that is possible: a fault comes before an fsync, never in it, and
    waiting for a disk was two thirds of the time."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="newllm-faults-", dir=memory) as name:
        yield Path(name)


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts a fault that was tried; shown at the end."""
    counter = request.config.stash[TRIED]

    def count(name: str) -> None:
        counter[name] += 1

    return count


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> Callable[[list[str]], list[int]]:
    """Which points are tried: all with `--all-faults`, else a few, the same ones every time."""

    def choose(points: list[str]) -> list[int]:
        numbers = list(range(1, len(points) + 1))
        if request.config.getoption("--all-faults"):
            return numbers
        return sorted(random.Random(len(points)).sample(numbers, min(QUICK, len(points))))

    return choose
