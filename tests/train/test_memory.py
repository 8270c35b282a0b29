"""Micro-batches: found before the first step, halved when memory runs out, without a trace."""

from __future__ import annotations

import pytest
import torch

from newllm.data.loader import Batch
from newllm.device import autocast
from newllm.errors import UserError
from newllm.model import build_model
from newllm.settings import resolve
from newllm.train import memory
from newllm.train.memory import fit_rows, preset_rows, step_trial
from newllm.train.optimizers import make_optimizers

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


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("Tesla T4", 512), ("NVIDIA L4", 1024), ("NVIDIA A100-SXM4-40GB", 2048),
        ("NVIDIA A100 80GB PCIe", 2048), ("NVIDIA H100 80GB HBM3", 4096), ("NVIDIA H200", 4096),
        ("NVIDIA L40S", 512), ("NVIDIA GeForce RTX 4090", 512),
    ],
)  # fmt: skip
def test_presets_of_gpus_by_the_names_that_drivers_give(name: str, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert preset_rows(torch.device("cuda"), 128) == rows


def test_a_tried_step_leaves_no_trace(tiny_model_settings) -> None:
    settings = resolve("dolly", {**tiny_model_settings().model_dump(), "vocab_size": 300})
    torch.manual_seed(0)
    model = build_model(settings.model_settings(), 300)
    optimizers = make_optimizers(model, settings)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.randint(300, (4, 9))
    batch = Batch(ids, ids, torch.zeros_like(ids, dtype=torch.bool), ids.numel())
    cpu = torch.device("cpu")
    steps = []
    monkey = optimizers[0].step
    optimizers[0].step = lambda: steps.append(monkey())  # type: ignore[method-assign]
    assert step_trial(model, optimizers, batch, autocast(cpu, "fp32"), cpu)(3) > 0
    assert steps == [None]
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert all(not optimizer.state for optimizer in optimizers)
    assert all(g["lr"] == g["peak_lr"] for o in optimizers for g in o.param_groups)
    assert all(parameter.grad is None for parameter in model.parameters())
