"""What the C library does with freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")

PROGRAM = """
import numpy as np
from newllm.device import give_back_freed_memory, keep_freed_memory
from newllm.train.memory import resident_bytes

keep_freed_memory()
before = resident_bytes()
blocks = [np.ones(2_000_000) for _ in range(10)]
del blocks
kept = resident_bytes()
give_back_freed_memory()
print((kept - before) // 2**20, (resident_bytes() - before) // 2**20)
"""


SCATTERED = """
import numpy as np
from newllm.device import trim_freed_memory
from newllm.train.memory import resident_bytes

before = resident_bytes()
blocks = [np.ones(2048) for _ in range(6000)]
del blocks[::2]
kept = resident_bytes()
trim_freed_memory()
print((kept - before) // 2**20, (resident_bytes() - before) // 2**20)
"""


def _grown(program: str) -> tuple[int, int]:
    """Resident megabytes that the program tells, before and after it gave memory back."""
    run = [sys.executable, "-c", program]
    said = subprocess.run(run, capture_output=True, check=True, text=True).stdout
    kept, after = map(int, said.split())
    return kept, after


@glibc
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    kept, after = _grown(PROGRAM)
    assert kept > 120
    assert after < 20


@glibc
def test_free_pages_between_used_ones_are_given_back() -> None:
    kept, after = _grown(SCATTERED)  # 6,000 blocks of 16 KB, every second of which is freed
    assert kept > 80
    assert 40 < after < 75
