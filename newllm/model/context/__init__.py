"""`ContextLM` and its one operation of its own, `context_read`, wherever it runs fastest.

`reference.py` defines it, `cpu.py` (numba) and `gpu.py` (Triton) are its kernels, `lm.py` is the
model, `decode.py` writes with it one token at a time.
"""

from __future__ import annotations

from types import ModuleType

from newllm.model.context import reference
from newllm.model.context.reference import CONV_TAPS, group_size
from newllm.model.kernels import dispatched

__all__ = ["CONV_TAPS", "context_read", "group_size"]


def _cpu() -> ModuleType:
    from newllm.model.context import cpu

    return cpu


def _gpu() -> ModuleType:
    from newllm.model.context import gpu

    return gpu


context_read = dispatched(reference.context_read, numba=_cpu, triton=_gpu)
