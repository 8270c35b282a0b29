"""Micro-batches: found before the first step, halved when memory runs out, without a trace."""

from __future__ import annotations

import pytest
import torch

from newllm.errors import UserError
from newllm.train import memory
from newllm.train.memory import fit_rows, preset_rows

CUDA_ERROR = torch.cuda.OutOfMemoryError("CUDA out of memory")
CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 8 GB")


class Machine:
    """Runs out of memory above so many rows, and remembers what was tried."""

    def __init__(self, fits: int, error: BaseException) -> None:
        self.fits, self.error = fits, error
        self.tried: list[int] = []

    def __call__(self, rows: int) -> int:
        self.tried.append(rows)
        if rows > self.fits:
            raise self.error
        return 1000 + 10 * rows


@pytest.mark.parametrize("error", [CUDA_ERROR, CPU_ERROR, MemoryError()])
def test_halved_until_it_fits(error: BaseException, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    machine = Machine(20, error)
    lines: list[str] = []
    rows, seconds = fit_rows(machine, 128, torch.device("cuda"), lines.append)
    assert rows == 16
    assert machine.tried == [128, 64, 32, 16, 16]
    assert seconds >= 0
    assert lines == ["Memory holds 16 rows at once instead of 128; the batch stays what it was."]


def test_one_row_too_many_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="out of memory with a single row"):
        fit_rows(Machine(0, CPU_ERROR), 1, torch.device("cpu"), print)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        fit_rows(Machine(0, RuntimeError("shape mismatch")), 2, torch.device("cpu"), print)


def test_cpu_never_tries_more_than_free_memory_holds(monkeypatch) -> None:
    """There the system would kill the process instead of refusing: few rows tell what fits."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1000)
    monkeypatch.setattr(
        memory.psutil, "virtual_memory", lambda: type("Free", (), {"available": 500})()
    )
    machine = Machine(10_000, CPU_ERROR)
    rows, _ = fit_rows(machine, 128, torch.device("cpu"), lambda _: None)
    assert rows == 40  # 80% of 500 bytes, 10 a row
    assert max(machine.tried) == 40


def test_presets() -> None:
    assert preset_rows(torch.device("cpu"), 128) == 128
    assert preset_rows(torch.device("cpu"), 10**6) == 1
