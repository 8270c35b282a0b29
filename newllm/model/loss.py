"""Cross-entropy of a linear output layer, in chunks: the full logits never exist at once.

With 6,000 tokens and 4,096 entries the logits alone take 100 MB in fp32, and autograd would keep
several such tensors. Here each chunk's gradient is computed while its logits are still in the
cache, and only the gradients of the hidden states and of the weights survive (the idea of Liger
Kernel's fused linear cross-entropy, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model.kernels import softmax_gradient_

_CHUNK_ELEMENTS = 1024 * 1024
"""Logits held at a time: 4 MB in fp32, about what a core's cache holds."""


def sum_of_nats(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum over the scored positions of -ln p(target), differentiable.

    Args:
        hidden: output of the model's trunk, [..., D].
        weight: output matrix, [V, D]; `bias`: [V] or None.
        targets: next-token ids, same leading shape as `hidden`; `IGNORED` is not scored.

    Returns:
        fp32 scalar. Divide by the number of scored tokens (of the whole batch, over all
        micro-batches and processes) to get the mean loss.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    scored = targets != IGNORED
    if not bool(scored.all()):
        hidden, targets = hidden[scored], targets[scored]
    return _SumOfNats.apply(
        hidden, weight, bias, targets, compute_dtype(weight), torch.is_grad_enabled()
    )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type of the matrix products with a weight: autocast's where it is on."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def chunk_rows(vocab_size: int) -> int:
    """How many positions' logits are computed at a time."""
    return max(1, _CHUNK_ELEMENTS // vocab_size)


class _SumOfNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        d_hidden = torch.empty_like(hidden) if with_grad else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_grad else None
        d_bias = torch.zeros_like(bias) if with_grad and bias is not None else None
        nats = hidden.new_zeros((), dtype=torch.float32)
        step = chunk_rows(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                rows = hidden[start : start + step].to(dtype)
                logits = F.linear(rows, matrix)
                if bias is not None:
                    logits += bias
                nats += softmax_gradient_(logits, targets[start : start + step])
                if d_hidden is None or d_weight is None:
                    continue
                d_logits = logits  # what they have become
                if d_bias is not None:
                    d_bias += d_logits.sum(dim=0)
                d_hidden[start : start + step] = d_logits @ matrix
                d_weight += d_logits.t() @ rows
        ctx.grads = (d_hidden, d_weight, d_bias)
        return nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if grad is None else grad * grad_outputs[0] for grad in ctx.grads)
        return (*scaled, None, None, None)
