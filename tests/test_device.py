"""What the C library does with freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    run = [sys.executable, "-c", PROGRAM]
    kept, after = map(
        int, subprocess.run(run, capture_output=True, check=True, text=True).stdout.split()
    )
    assert kept > 120
    assert after < 20
