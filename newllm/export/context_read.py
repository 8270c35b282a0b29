"""What an exported model has in place of `newllm.model.context`: Triton's kernel or plain torch.

The bundle alone uses it; there `triton` is None where it cannot be imported.
"""

from __future__ import annotations

import os

import torch
import triton
from torch import Tensor

from newllm.model.context.gpu import context_read as triton_context_read
from newllm.model.context.reference import CONV_TAPS, group_size
from newllm.model.context.reference import context_read as torch_context_read

__all__ = ["CONV_TAPS", "context_read", "group_size"]

FORCED = os.environ.get("NEWLLM_KERNEL", "")
"""`reference` rules the Triton kernel out."""

TRITON_READS = (torch.float32, torch.bfloat16, torch.float16)


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
    """See `torch_context_read`, the definition; on a CUDA GPU with Triton by its kernel."""
    of_kernel = projected.is_cuda and projected.dtype in TRITON_READS and projected.numel() > 0
    read = torch_context_read
    if of_kernel and triton is not None and FORCED != "reference":
        read = triton_context_read
    return read(
        projected, forget_bias, read_bias, conv_weight, read_scale, reset, lengths, context, tail
    )
