"""minGRU's linear recurrence as one numba kernel with a hand-written backward, for the CPU.

Equal to `mingru.min_gru` in outputs and gradients (tested).
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor

from newllm.model.kernels.numerics import (
    ONE,
    ZERO,
    as_array,
    from_fp32,
    kernel,
    sigmoid,
    to_fp32,
    use_torch_threads,
)


@kernel
def _min_gru_forward(projected, bias, reset, lengths, hidden, y, kept, last):
    batch, time, channels = y.shape
    keep = kept.shape[1] == time
    for b in numba.prange(batch):
        h = last[b]
        for i in range(channels):
            h[i] = hidden[b, i]
        for t in range(lengths[b]):
            if reset[b, t]:
                for i in range(channels):
                    h[i] = ZERO
            for i in range(channels):
                z = sigmoid(to_fp32(projected[b, t, 0, i]) + bias[i])
                h[i] += z * (to_fp32(projected[b, t, 1, i]) - h[i])
                y[b, t, i] = from_fp32(h[i], y)
            if keep:
                for i in range(channels):
                    kept[b, t, i] = h[i]
        for t in range(lengths[b], time):
            for i in range(channels):
                y[b, t, i] = from_fp32(ZERO, y)


@kernel
def _min_gru_backward(
    projected, bias, reset, lengths, hidden, kept, d_y, d_projected, d_bias, d_hidden
):
    """`d_hidden` enters as the gradient of the last state."""
    batch, time, channels = d_y.shape
    for b in numba.prange(batch):
        carry = d_hidden[b]
        for i in range(channels):
            d_bias[b, i] = ZERO
        for t in range(lengths[b], time):
            for i in range(channels):
                d_projected[b, t, 0, i] = from_fp32(ZERO, d_projected)
                d_projected[b, t, 1, i] = from_fp32(ZERO, d_projected)
        for t in range(lengths[b] - 1, -1, -1):
            old = kept[b, t - 1] if t > 0 else hidden[b]
            keep = ZERO if reset[b, t] else ONE
            for i in range(channels):
                z = sigmoid(to_fp32(projected[b, t, 0, i]) + bias[i])
                new = to_fp32(projected[b, t, 1, i])
                d = carry[i] + to_fp32(d_y[b, t, i])
                d_gate = d * (new - keep * old[i]) * z * (ONE - z)
                d_projected[b, t, 0, i] = from_fp32(d_gate, d_projected)
                d_projected[b, t, 1, i] = from_fp32(d * z, d_projected)
                d_bias[b, i] += d_gate
                carry[i] = keep * d * (ONE - z)


class _MinGRU(torch.autograd.Function):
    """`projected` is [B, T, 2, C] here."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, bias: Tensor, reset: Tensor, lengths: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, time, _, channels = projected.shape
        y = projected.new_empty(batch, time, channels)
        kept = torch.empty(batch, time if any(ctx.needs_input_grad) else 0, channels)
        last = torch.empty(batch, channels)
        inputs = (projected, bias, reset, lengths, hidden)
        use_torch_threads()
        _min_gru_forward(*(as_array(x) for x in (*inputs, y, kept, last)))
        ctx.save_for_backward(*inputs, kept)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        d_y, d_hidden = grad_outputs[0].contiguous(), grad_outputs[1].clone()
        d_projected, d_bias = torch.empty_like(saved[0]), torch.empty_like(d_hidden)
        use_torch_threads()
        _min_gru_backward(*(as_array(x) for x in (*saved, d_y, d_projected, d_bias, d_hidden)))
        return d_projected, d_bias.sum(dim=0), None, None, d_hidden


def min_gru(
    projected: Tensor, bias: Tensor, reset: Tensor, lengths: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`newllm.model.baselines.mingru.min_gru`; fp32 inside."""
    return _MinGRU.apply(
        projected.contiguous().unflatten(-1, (2, -1)),
        bias,
        reset.contiguous(),
        lengths.contiguous(),
        hidden.float().contiguous(),
    )
