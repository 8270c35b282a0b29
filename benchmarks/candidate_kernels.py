"""Recurrences that were tried in place of the linear vector context: numba kernels for the CPU.

Sequences run in parallel; everything is fp32. `reset` [B, T] is True where a document starts, and
only the first `lengths` [B] tokens of a sequence are read. Every function returns its outputs, zero
behind a sequence's length, and the state after its last token. `test_candidates.py` holds them
equal to plain torch, gradients too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.kernels.numerics import ONE, ZERO, as_array, kernel, sigmoid, use_torch_threads


@kernel
def _diagonal_forward(value, forget, weight, reset, lengths, context, out, gates, last):
    batch, _, channels = value.shape
    for b in numba.prange(batch):
        c = last[b]
        c[:] = context[b]
        out[b, lengths[b] :] = ZERO
        for t in range(lengths[b]):
            keep = ZERO if reset[b, t] else ONE
            for i in range(channels):
                old = keep * c[i]
                f = sigmoid(forget[b, t, i] + weight[i] * old)
                gates[b, t, i] = f
                c[i] = value[b, t, i] + f * (old - value[b, t, i])
                out[b, t, i] = c[i]


@kernel
def _diagonal_backward(
    value, forget, weight, reset, lengths, context, out, gates,
    d_out, carry, d_value, d_forget, d_weight,
):  # fmt: skip
    batch, _, channels = value.shape
    for b in numba.prange(batch):
        d_value[b, lengths[b] :], d_forget[b, lengths[b] :] = ZERO, ZERO
        for t in range(lengths[b] - 1, -1, -1):
            before = out[b, t - 1] if t > 0 else context[b]
            keep = ZERO if reset[b, t] else ONE
            for i in range(channels):
                old, f = keep * before[i], gates[b, t, i]
                d = carry[b, i] + d_out[b, t, i]
                d_f = d * (old - value[b, t, i]) * f * (ONE - f)
                d_value[b, t, i] = d * (ONE - f)
                d_forget[b, t, i] = d_f
                d_weight[b, i] += d_f * old
                carry[b, i] = keep * (d * f + d_f * weight[i])


class _Diagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out, gates, last = (torch.empty_like(x) for x in (inputs[0], inputs[0], inputs[5]))
        _run(_diagonal_forward, *inputs, out, gates, last)
        ctx.save_for_backward(*inputs, out, gates)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        d_out, carry = grads[0].contiguous(), grads[1].clone()
        d_value, d_forget = torch.empty_like(saved[0]), torch.empty_like(saved[0])
        d_weight = torch.zeros_like(carry)
        _run(_diagonal_backward, *saved, d_out, carry, d_value, d_forget, d_weight)
        return d_value, d_forget, d_weight.sum(dim=0), None, None, carry


def diagonal(
    value: Tensor, forget: Tensor, weight: Tensor, reset: Tensor, lengths: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """c_t = s * c_{t-1} + (1 - s) * value_t with s = sigmoid(forget_t + weight * c_{t-1}).

    Args:
        value: [B, T, C]; `forget` alike.
        weight: [C].
        reset: [B, T].
        lengths: [B].
        context: before the first token, [B, C].

    Returns:
        contexts [B, T, C] and the last one [B, C].
    """
    return _Diagonal.apply(value, forget, weight, reset, lengths, context)


@kernel
def _hgrn2_forward(query, forget, value, reset, lengths, memory, out, memories, last):
    batch, _, heads, keys = query.shape
    values = value.shape[3]
    for b in numba.prange(batch):
        out[b, lengths[b] :] = ZERO
        for h in range(heads):
            s = last[b, h]
            s[:] = memory[b, h]
            for t in range(lengths[b]):
                keep = ZERO if reset[b, t] else ONE
                for j in range(values):
                    out[b, t, h, j] = ZERO
                for k in range(keys):
                    f, q = forget[b, t, h, k], query[b, t, h, k]
                    kept = keep * f
                    for j in range(values):
                        new = kept * s[k, j] + (ONE - f) * value[b, t, h, j]
                        s[k, j] = new
                        memories[b, t, h, k, j] = new
                        out[b, t, h, j] += q * new


@kernel
def _hgrn2_backward(
    query, forget, value, reset, lengths, memory, memories,
    d_out, carry, d_query, d_forget, d_value,
):  # fmt: skip
    batch, time, heads, keys = query.shape
    values = value.shape[3]
    for b in numba.prange(batch):
        for t in range(lengths[b], time):
            d_query[b, t], d_forget[b, t], d_value[b, t] = ZERO, ZERO, ZERO
        for h in range(heads):
            d_s = carry[b, h]
            for t in range(lengths[b] - 1, -1, -1):
                before = memories[b, t - 1, h] if t > 0 else memory[b, h]
                keep = ZERO if reset[b, t] else ONE
                for j in range(values):
                    d_value[b, t, h, j] = ZERO
                for k in range(keys):
                    f, q = forget[b, t, h, k], query[b, t, h, k]
                    d_q, d_f = ZERO, ZERO
                    for j in range(values):
                        d_q += memories[b, t, h, k, j] * d_out[b, t, h, j]
                    for j in range(values):
                        d = d_s[k, j] + q * d_out[b, t, h, j]
                        d_f += d * (keep * before[k, j] - value[b, t, h, j])
                        d_s[k, j] = keep * f * d
                        d_value[b, t, h, j] += (ONE - f) * d
                    d_query[b, t, h, k] = d_q
                    d_forget[b, t, h, k] = d_f


class _Hgrn2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        query, _, value, _, _, memory = inputs
        out, last = torch.empty_like(value), torch.empty_like(memory)
        memories = value.new_empty(*query.shape, value.shape[3])
        _run(_hgrn2_forward, *inputs, out, memories, last)
        ctx.save_for_backward(*inputs, memories)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        d_out, carry = grads[0].contiguous(), grads[1].clone()
        d_inputs = [torch.empty_like(x) for x in saved[:3]]
        _run(_hgrn2_backward, *saved, d_out, carry, *d_inputs)
        return *d_inputs, None, None, carry


def hgrn2(
    query: Tensor, forget: Tensor, value: Tensor, reset: Tensor, lengths: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = diag(f_t) S_{t-1} + (1 - f_t) value_t^T, read as query_t^T S_t (arXiv:2404.07904).

    Args:
        query: [B, T, H, K].
        forget: f, within 0..1, [B, T, H, K].
        value: [B, T, H, N].
        reset: [B, T].
        lengths: [B].
        memory: before the first token, [B, H, K, N].

    Returns:
        reads [B, T, H, N] and the last memory.
    """
    return _Hgrn2.apply(query, forget, value, reset, lengths, memory)


@kernel
def _delta_forward(
    query, key, value, decay, rate, reset, lengths, memory, out, memories, errors, last
):
    batch, _, heads, keys = query.shape
    values = value.shape[3]
    for b in numba.prange(batch):
        out[b, lengths[b] :] = ZERO
        for h in range(heads):
            s = last[b, h]
            s[:] = memory[b, h]
            for t in range(lengths[b]):
                a = ZERO if reset[b, t] else decay[b, t, h]
                for j in range(values):
                    out[b, t, h, j] = ZERO
                    errors[b, t, h, j] = value[b, t, h, j]
                for k in range(keys):
                    recalled = a * key[b, t, h, k]
                    for j in range(values):
                        errors[b, t, h, j] -= recalled * s[k, j]
                for k in range(keys):
                    written, q = rate[b, t, h] * key[b, t, h, k], query[b, t, h, k]
                    for j in range(values):
                        new = a * s[k, j] + written * errors[b, t, h, j]
                        s[k, j] = new
                        memories[b, t, h, k, j] = new
                        out[b, t, h, j] += q * new


@kernel
def _delta_backward(
    query, key, value, decay, rate, reset, lengths, memory, memories, errors,
    d_out, carry, d_query, d_key, d_value, d_decay, d_rate,
):  # fmt: skip
    batch, time, heads, keys = query.shape
    values = value.shape[3]
    for b in numba.prange(batch):
        for t in range(lengths[b], time):
            d_query[b, t], d_key[b, t], d_value[b, t] = ZERO, ZERO, ZERO
            d_decay[b, t], d_rate[b, t] = ZERO, ZERO
        d_error = np.zeros(values, np.float32)
        for h in range(heads):
            d_s = carry[b, h]
            for t in range(lengths[b] - 1, -1, -1):
                before = memories[b, t - 1, h] if t > 0 else memory[b, h]
                keep = ZERO if reset[b, t] else ONE
                a, r = keep * decay[b, t, h], rate[b, t, h]
                for j in range(values):
                    d_error[j] = ZERO
                for k in range(keys):
                    q, written = query[b, t, h, k], key[b, t, h, k]
                    d_q, d_k = ZERO, ZERO
                    for j in range(values):
                        d_q += memories[b, t, h, k, j] * d_out[b, t, h, j]
                    for j in range(values):
                        d_s[k, j] += q * d_out[b, t, h, j]
                        d_k += d_s[k, j] * errors[b, t, h, j]
                        d_error[j] += written * d_s[k, j]
                    d_query[b, t, h, k], d_key[b, t, h, k] = d_q, r * d_k
                d_r = ZERO
                for j in range(values):
                    d_r += d_error[j] * errors[b, t, h, j]
                    d_error[j] *= r
                    d_value[b, t, h, j] = d_error[j]
                d_a = ZERO
                for k in range(keys):
                    written, d_k = key[b, t, h, k], ZERO
                    for j in range(values):
                        d_k += before[k, j] * d_error[j]
                        d_a += before[k, j] * (d_s[k, j] - written * d_error[j])
                    d_key[b, t, h, k] -= a * d_k
                    for j in range(values):
                        d_s[k, j] = a * (d_s[k, j] - written * d_error[j])
                d_decay[b, t, h], d_rate[b, t, h] = keep * d_a, d_r


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        query, value, memory = inputs[0], inputs[2], inputs[7]
        out, errors, last = (torch.empty_like(x) for x in (value, value, memory))
        memories = value.new_empty(*query.shape, value.shape[3])
        _run(_delta_forward, *inputs, out, memories, errors, last)
        ctx.save_for_backward(*inputs, memories, errors)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        d_out, carry = grads[0].contiguous(), grads[1].clone()
        d_inputs = [torch.empty_like(x) for x in saved[:5]]
        _run(_delta_backward, *saved, d_out, carry, *d_inputs)
        return *d_inputs, None, None, carry


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    rate: Tensor,
    reset: Tensor,
    lengths: Tensor,
    memory: Tensor,
) -> tuple[Tensor, Tensor]:
    """S_t = a_t (I - r_t k_t k_t^T) S_{t-1} + r_t k_t value_t^T, read as query_t^T S_t
    (Gated DeltaNet, arXiv:2412.06464).

    Args:
        query: [B, T, H, K].
        key: of unit length, [B, T, H, K].
        value: [B, T, H, N].
        decay: a, within 0..1, [B, T, H].
        rate: r, within 0..1, [B, T, H].
        reset: [B, T].
        lengths: [B].
        memory: before the first token, [B, H, K, N].

    Returns:
        reads [B, T, H, N] and the last memory.
    """
    return _Delta.apply(query, key, value, decay, rate, reset, lengths, memory)


def _run(function: Callable[..., None], *tensors: Tensor) -> None:
    use_torch_threads()
    function(*(as_array(tensor) for tensor in tensors))
