"""`ContextLM` and its one operation of its own, `context_read`, wherever it runs fastest.

`reference.py` defines it, `cpu.py` (numba) and `gpu.py` (Triton) are its kernels, `lm.py` is the
model, `decode.py` writes with it one token at a time.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from newllm.model.context import reference
from newllm.model.context.reference import CONV_TAPS, group_size
from newllm.model.kernels import choose

__all__ = ["CONV_TAPS", "context_read", "group_size"]


def context_read(
    projected: Tensor,
    forget_bias: Tensor,
    read_bias: Tensor,
    conv_weight: Tensor,
    read_scale: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.context.reference.context_read`."""
    implementation = choose(projected, reference, numba=_cpu, triton=_gpu)
    return implementation.context_read(
        projected, forget_bias, read_bias, conv_weight, read_scale, reset, lengths, context, tail
    )


def _cpu() -> ModuleType:
    from newllm.model.context import cpu

    return cpu


def _gpu() -> ModuleType:
    from newllm.model.context import gpu

    return gpu
