"""What the C library does with freed memory; tensors that travel together; which device writes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from newllm import device
from newllm.cli import talk
from newllm.device import Layout

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


def test_tensors_in_one_buffer_are_what_they_were() -> None:
    """Of every type and size, none at all among them, each where a GPU reads whole words."""
    given = {
        ("a", 0): torch.arange(7, dtype=torch.int64).view(7, 1),
        "b": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 4, dtype=torch.int32),
        "number": torch.tensor(0.1),
        "last": torch.arange(6.0).view(2, 3).t(),
    }
    layout = Layout.of(given)
    assert layout == Layout.of({name: x + x for name, x in given.items()})
    assert layout != Layout.of({**given, "b": torch.ones(4, dtype=torch.bool)})
    found = layout.views(layout.packed(given, pinned=False).clone())
    assert list(found) == list(given)
    for name, x in given.items():
        assert torch.equal(found[name], x)
        assert found[name].dtype == x.dtype
        assert found[name].storage_offset() * x.element_size() % 16 == 0
    assert Layout.of({}).size == 0


def test_the_speed_of_products_is_that_of_the_best_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says how long each product took: 2 x 4,096 x 384 x 768 FLOP in 0.25 s."""
    ticks = iter([0.0, 0.5, 1.0, 1.25, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(ticks))
    speed = device.product_speed(torch.device("cpu"), torch.float32)
    assert speed == 2 * 4096 * 384 * 768 / 0.25


def test_only_a_gpu_rounds_factors_and_only_inside() -> None:
    def said() -> str:
        return torch.get_float32_matmul_precision()

    with device.tf32(torch.device("cpu")):
        assert said() == "highest"
    with device.tf32(torch.device("cuda")):
        assert said() == "high"
    assert said() == "highest"


@pytest.mark.parametrize(("asked", "cuda", "where"), [
    (None, True, "cpu"), ("auto", True, "cpu"), ("auto", False, "cpu"), ("cuda", True, "cuda"),
])  # fmt: skip
def test_text_is_written_on_the_cpu_unless_a_gpu_is_asked_for(
    asked: str | None, cuda: bool, where: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert talk._writing_device(asked) == where
    said = capsys.readouterr().err
    assert ("Writing on the CPU" in said) == (cuda and asked != "cuda")
    assert len(said.splitlines()) <= 1
