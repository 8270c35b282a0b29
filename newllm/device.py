"""What the machine can do: device, thread count and the arithmetic that is fast on it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from newllm.errors import UserError

_Name = TypeVar("_Name", bound=Hashable)


def pick_device(name: str) -> torch.device:
    """The torch device of a `--device` setting; `auto` takes a GPU where there is one.

    Raises:
        UserError: unknown name, or a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"--device {name}: torch sees {found} CUDA device(s); use --device cpu")
    return device


_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""oneDNN's names of what has no bf16 products."""


@cache
def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run on hardware units made for them.

    A CPU whose units `ONEDNN_MAX_CPU_ISA` keeps oneDNN, which makes those products, from using has
    none.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16:
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of matrix products, by precision."""


def pick_precision(setting: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16` for a `--precision` setting.

    Raises:
        UserError: fp16 on a CPU, where it is slower than fp32 and overflows.
    """
    if setting == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: only on a GPU; on a CPU use bf16 or fp32")
    if setting != "auto":
        return setting
    if fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which torch computes matrix products in `precision` (fp32: as they are)."""
    half = precision != "fp32"
    return torch.autocast(device.type, TYPES[precision] if half else None, enabled=half)


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """A context in which a GPU that can rounds the factors of fp32 products to 10 bits of mantissa.

    Sums stay in fp32. GPUs before the A100 and CPUs compute as they did.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products: of training's size on a CPU, large enough for a GPU there.

    The best of a few. A GPU is timed over several products at a time, so that neither launching
    nor the wait at the end counts.
    """
    on_gpu = device.type == "cuda"
    rows, inner, columns = (4096, 4096, 4096) if on_gpu else (4096, 384, 768)
    products = 10 if on_gpu else 1
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    product, best = a @ b, float("inf")
    for _ in range(5):
        if on_gpu:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=product)
        float(product[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns * products / best


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on `device`; a GPU copies it from pinned memory, for which nobody waits."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Where tensors lie in one buffer of bytes, so that they travel in one copy."""

    entries: tuple[tuple[Hashable, torch.dtype, torch.Size, int, int], ...]
    """Name, type and shape of each tensor; its first byte and the one behind its last."""

    @classmethod
    def of(cls, tensors: Mapping[_Name, torch.Tensor]) -> Layout:
        """Of these, one after the other, where kernels read whole words."""
        entries, end = [], 0
        for name, x in tensors.items():
            start = -(-end // _ALIGNED) * _ALIGNED
            end = start + x.numel() * x.element_size()
            entries.append((name, x.dtype, x.shape, start, end))
        return cls(tuple(entries))

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return self.entries[-1][-1] if self.entries else 0

    def views(self, buffer: torch.Tensor) -> dict[Hashable, torch.Tensor]:
        """The tensors in a buffer, uint8 [size]."""
        return {
            name: buffer[start:end].view(dtype).view(shape)
            for name, dtype, shape, start, end in self.entries
        }

    def packed(self, tensors: Mapping[_Name, torch.Tensor], pinned: bool) -> torch.Tensor:
        """A buffer with these tensors, which are on the CPU; from pinned memory a GPU copies it
        while nobody waits."""
        buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=pinned)
        for name, view in self.views(buffer).items():
            view.copy_(tensors[name])  # type: ignore[index]
        return buffer


_ALIGNED = 16
"""Bytes of the widest load of a GPU."""


def send_together(
    tensors: Mapping[_Name, torch.Tensor], device: torch.device
) -> dict[_Name, torch.Tensor]:
    """Tensors on `device`; a GPU copies all that are on the CPU at once, for which nobody waits."""
    if device.type != "cuda":
        return {name: x.to(device) for name, x in tensors.items()}
    here = {name: x for name, x in tensors.items() if x.device.type == "cpu"}
    layout = Layout.of(here)
    there = layout.views(layout.packed(here, pinned=True).to(device, non_blocking=True))
    return {name: there[name] if name in here else x for name, x in tensors.items()}


def get_generators(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the random generators that a model on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `get_generators` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step, instead of giving it back.

    glibc returns every large block to the system at once, and the next step pays for each of its
    pages again: 5-10% of a training step on a CPU. Does nothing where the C library is another.
    """
    _set_malloc(trim_threshold=2**31 - 1, mmap_threshold=2**30)


def give_back_freed_memory() -> None:
    """Undo `keep_freed_memory`: what is free now, and large blocks later on, go to the system."""
    _set_malloc(trim_threshold=2**17, mmap_threshold=2**17)
    trim_freed_memory()


def trim_freed_memory() -> None:
    """Give whole pages that are free now to the system, wherever they lie.

    By itself glibc does so only at the end of its memory, so that what a long-running process holds
    creeps up though it uses no more. Does nothing where the C library is another.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _set_malloc(trim_threshold: int, mmap_threshold: int) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, trim_threshold)  # M_TRIM_THRESHOLD of malloc.h
        mallopt(-3, mmap_threshold)  # M_MMAP_THRESHOLD
