"""The recurrence as one fused numba kernel with a hand-written backward, for the CPU.

Lanes of the batch run in parallel; within a lane time is sequential and the inner loop over
channels is contiguous, so that LLVM vectorises it. The sigmoid stays in torch, because numba's
wheels have no vector `exp`. Equal to `reference.py` in outputs and gradients (tested).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.recurrence.reference import CONV_TAPS

_HISTORY = CONV_TAPS - 1
_MOST_THREADS = numba.get_num_threads()


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _forward(write, forget, conv, reset, context, tail, contexts):
    batch, time, channels = write.shape
    for b in numba.prange(batch):
        c = context[b].copy()
        w1 = tail[b, 0].copy()
        w2 = tail[b, 1].copy()
        w3 = tail[b, 2].copy()
        for t in range(time):
            if reset[b, t]:
                c[:] = 0.0
                w1[:] = 0.0
                w2[:] = 0.0
                w3[:] = 0.0
            for i in range(channels):
                w0 = write[b, t, i]
                value = (
                    conv[0, i] * w0 + conv[1, i] * w1[i] + conv[2, i] * w2[i] + conv[3, i] * w3[i]
                )
                f = forget[b, t, i]
                new = value + f * (c[i] - value)
                c[i] = new
                contexts[b, t, i] = new
                w3[i] = w2[i]
                w2[i] = w1[i]
                w1[i] = w0


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _backward(
    write, forget, conv, reset, context, tail, contexts, d_contexts,
    d_write, d_logits, d_conv, d_context, d_tail,
):  # fmt: skip
    # Several short loops over channels instead of one long one: with few arrays in each, LLVM can
    # prove at run time that they do not overlap, and vectorises (8x faster when measured).
    batch, time, channels = write.shape
    one = np.float32(1.0)
    for b in numba.prange(batch):
        carry = np.zeros(channels, np.float32)
        value = np.empty(channels, np.float32)
        # Row j: gradient of v_{t+j}, zero where a reset hides this step's write from it.
        d_values = np.zeros((CONV_TAPS, channels), np.float32)
        seen = np.empty((CONV_TAPS, channels), np.float32)  # writes of t, t-1, t-2, t-3
        for t in range(time - 1, -1, -1):
            visible = True
            for k in range(CONV_TAPS):
                visible = visible and not (k > 0 and t - k + 1 >= 0 and reset[b, t - k + 1])
                if not visible:
                    seen[k] = 0.0
                elif t >= k:
                    seen[k] = write[b, t - k]
                else:
                    seen[k] = tail[b, k - t - 1]
            value[:] = 0.0
            for k in range(CONV_TAPS):
                for i in range(channels):
                    value[i] += conv[k, i] * seen[k, i]

            keep = np.float32(0.0) if reset[b, t] else one
            old = contexts[b, t - 1] if t > 0 else context[b]
            for j in range(CONV_TAPS - 1, 0, -1):
                d_values[j] = d_values[j - 1]
            for i in range(channels):
                carry[i] += d_contexts[b, t, i]
            for i in range(channels):
                d_values[0, i] = carry[i] * (one - forget[b, t, i])
            for i in range(channels):
                d_logits[b, t, i] = (keep * old[i] - value[i]) * forget[b, t, i] * d_values[0, i]
            for i in range(channels):
                carry[i] *= keep * forget[b, t, i]

            d_write[b, t] = 0.0
            for k in range(CONV_TAPS):
                for i in range(channels):
                    d_conv[b, k, i] += d_values[0, i] * seen[k, i]
                for i in range(channels):
                    d_write[b, t, i] += conv[k, i] * d_values[k, i]
            if reset[b, t]:
                d_values[:] = 0.0
        d_context[b] = carry
        d_tail[b] = 0.0
        for age in range(1, CONV_TAPS):  # the write of `age` tokens before the first
            for k in range(age, CONV_TAPS):
                for i in range(channels):
                    d_tail[b, age - 1, i] += conv[k, i] * d_values[k - age, i]


class _ContextScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        write: Tensor,
        forget_logits: Tensor,
        conv_weight: Tensor,
        reset: Tensor,
        context: Tensor,
        tail: Tensor,
    ) -> Tensor:
        forget = torch.sigmoid(forget_logits)
        contexts = torch.empty_like(write)
        _use_torch_threads()
        _forward(*_arrays(write, forget, conv_weight, reset, context, tail, contexts))
        ctx.save_for_backward(write, forget, conv_weight, reset, context, tail, contexts)
        return contexts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        write, context, tail = saved[0], saved[4], saved[5]
        d_write, d_logits = torch.empty_like(write), torch.empty_like(write)
        d_conv = write.new_zeros(write.shape[0], CONV_TAPS, write.shape[2])
        d_context, d_tail = torch.empty_like(context), torch.empty_like(tail)
        grads = (d_write, d_logits, d_conv, d_context, d_tail)
        _use_torch_threads()
        _backward(*_arrays(*saved, grad_outputs[0].contiguous(), *grads))
        return d_write, d_logits, d_conv.sum(dim=0), None, d_context, d_tail


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def _use_torch_threads() -> None:
    """Follow torch's thread count, so that one setting governs both."""
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))


def context_scan(
    write: Tensor,
    forget_logits: Tensor,
    conv_weight: Tensor,
    reset: Tensor | None,
    context: Tensor,
    tail: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`newllm.model.recurrence.reference.context_scan`; fp32 inside."""
    batch, time, _ = write.shape
    write, forget_logits = write.float().contiguous(), forget_logits.float().contiguous()
    context, tail = context.float().contiguous(), tail.float().contiguous()
    conv_weight = conv_weight.float().contiguous()
    if time == 0:
        return write, context, tail
    resets = write.new_zeros(batch, time, dtype=torch.bool) if reset is None else reset
    contexts = _ContextScan.apply(
        write, forget_logits, conv_weight, resets.contiguous(), context, tail
    )
    return contexts, contexts[:, -1], _last_tail(write, tail, reset)


def _last_tail(write: Tensor, tail: Tensor, reset: Tensor | None) -> Tensor:
    """The newest three writes, newest first, those before a reset zeroed: [B, 3, C]."""
    newest = torch.cat([tail.flip(1), write[:, -_HISTORY:]], dim=1)[:, -_HISTORY:].flip(1)
    if reset is None:
        return newest
    hidden = [reset[:, max(write.shape[1] - age, 0) :].any(dim=1) for age in range(1, _HISTORY)]
    hidden.insert(0, torch.zeros_like(hidden[0]))
    return newest * ~torch.stack(hidden, dim=1)[:, :, None]
