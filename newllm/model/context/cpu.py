"""`context_read` as one numba kernel with a hand-written backward, for the CPU.

Sequences run in parallel. The state and parameters of a group of channels lie in a small scratch
array that stays in the cache; its rows start at constants, so that LLVM can see that they do not
overlap, and vectorises the loops over the channels of a group.

Two ranges say the same number in two ways: `group` is a constant when the kernel is compiled, `n`
is read from the arrays. A loop of arithmetic on scratch rows runs over `group`; a short loop that
only copies, or sums up, runs over `n`, because LLVM unrolls a short loop of constant length before
it tries to vectorise it, and it stays scalar (docs/LOG.md).

Rows of the scratch, `group` numbers each (the forward has the first seven, c and w1..w3)::

    conv_0 .. conv_3    filter taps: of this token's write, and of those of 1, 2 and 3 tokens ago
    forget, open, scale biases of forget and read-out gates; scale of the read-out
    w0 .. w3            writes of t, t-1, t-2 and t-3
    d0 .. d3            gradients of v_t, v_{t+1}, v_{t+2} and v_{t+3}, what the filters made
    carry, c, old       gradient of c_t from the tokens after it; c_t, then normalised; c_{t-1}
    dy, gate, f, dw     d_read, then gradient of the norm; g_t, f_t, then their gradients; of u_t
    sum_*               gradients of the seven parameters, summed over the sequence, in the order
                        of `split_parameters`

Equal to `reference.py` in outputs and gradients (tested).
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.context.reference import CHANNEL_PARAMETERS, group_size, split_parameters
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
from newllm.model.kernels.reference import EPSILON

_EPSILON = np.float32(EPSILON)

_FORWARD_ROWS, _BACKWARD_ROWS = 11, 29
"""Rows of the scratch. Some stand together because they are changed together: c and w1 .. w3 of the
forward, w0 .. w3 and the sums of the backward."""


@functools.cache
def _forward_kernel(group: int) -> Any:
    size = np.float32(group)
    conv_0, conv_1, conv_2, conv_3, forget_0, open_0, scale_0, c_0, w1_0, w2_0, w3_0 = (
        row * group for row in range(_FORWARD_ROWS)
    )

    @kernel
    def forward(
        projected, forget_bias, read_bias, conv, scale, reset, lengths, context, tail,
        read, contexts, last_context, last_tail,
    ):  # fmt: skip
        batch, time, _, groups, n = projected.shape
        keep_contexts = contexts.shape[1] == time
        for b in numba.prange(batch):
            scratch = np.empty((groups, _FORWARD_ROWS * group), np.float32)
            for h in range(groups):
                s = scratch[h]
                for i in range(group):
                    s[conv_0 + i], s[conv_1 + i] = conv[0, h, i], conv[1, h, i]
                    s[conv_2 + i], s[conv_3 + i] = conv[2, h, i], conv[3, h, i]
                    s[forget_0 + i], s[open_0 + i] = forget_bias[h, i], read_bias[h, i]
                    s[scale_0 + i] = scale[h, i]
                    s[c_0 + i] = context[b, h, i]
                    s[w1_0 + i], s[w2_0 + i] = tail[b, 0, h, i], tail[b, 1, h, i]
                    s[w3_0 + i] = tail[b, 2, h, i]
            for t in range(lengths[b]):
                for h in range(groups):
                    s = scratch[h]
                    if reset[b, t]:
                        for i in range(4 * group):  # context and the three writes
                            s[c_0 + i] = ZERO
                    for i in range(group):
                        w0 = to_fp32(projected[b, t, 0, h, i])
                        w1, w2 = s[w1_0 + i], s[w2_0 + i]
                        value = s[conv_0 + i] * w0 + s[conv_1 + i] * w1
                        value += s[conv_2 + i] * w2 + s[conv_3 + i] * s[w3_0 + i]
                        s[w1_0 + i], s[w2_0 + i], s[w3_0 + i] = w0, w1, w2
                        f = sigmoid(to_fp32(projected[b, t, 1, h, i]) + s[forget_0 + i])
                        s[c_0 + i] = value + f * (s[c_0 + i] - value)
                    mean = ZERO
                    for i in range(n):
                        mean += s[c_0 + i]
                    mean /= size
                    variance = ZERO
                    for i in range(n):
                        difference = s[c_0 + i] - mean
                        variance += difference * difference
                    deviation = ONE / np.sqrt(variance / size + _EPSILON)
                    for i in range(group):
                        g = to_fp32(projected[b, t, 2, h, i]) + s[open_0 + i]
                        y = (s[c_0 + i] - mean) * deviation * s[scale_0 + i] * g * sigmoid(g)
                        read[b, t, h, i] = from_fp32(y, read)
                    if keep_contexts:
                        for i in range(n):
                            contexts[b, t, h, i] = s[c_0 + i]
            for t in range(lengths[b], time):
                for h in range(groups):
                    for i in range(n):
                        read[b, t, h, i] = from_fp32(ZERO, read)
            for h in range(groups):
                s = scratch[h]
                for i in range(group):
                    last_context[b, h, i] = s[c_0 + i]
                    last_tail[b, 0, h, i], last_tail[b, 1, h, i] = s[w1_0 + i], s[w2_0 + i]
                    last_tail[b, 2, h, i] = s[w3_0 + i]

    return forward


@functools.cache
def _backward_kernel(group: int) -> Any:
    size = np.float32(group)
    conv_0, conv_1, conv_2, conv_3, forget_0, open_0, scale_0 = (row * group for row in range(7))
    w0_0, w1_0, w2_0, w3_0 = (row * group for row in range(7, 11))  # writes of t .. t-3
    d0_0, d1_0, d2_0, d3_0 = (row * group for row in range(11, 15))  # gradients of v_t .. v_{t+3}
    carry_0, c_0, old_0 = (row * group for row in range(15, 18))  # gradient of c_t; c_t; c_{t-1}
    dy_0, gate_0, f_0, dw_0 = (row * group for row in range(18, 22))
    sum_conv_0, sum_conv_1, sum_conv_2, sum_conv_3, sum_forget, sum_open, sum_scale = (
        row * group for row in range(22, _BACKWARD_ROWS)
    )

    @kernel
    def backward(
        projected, forget_bias, read_bias, conv, scale, reset, lengths, context, tail, contexts,
        d_read, d_last_context, d_last_tail,
        d_projected, d_parameters, d_context, d_tail,
    ):  # fmt: skip
        batch, time, _, groups, n = projected.shape
        for b in numba.prange(batch):
            length = lengths[b]
            scratch = np.zeros((groups, _BACKWARD_ROWS * group), np.float32)
            for h in range(groups):
                s = scratch[h]
                for i in range(group):
                    s[conv_0 + i], s[conv_1 + i] = conv[0, h, i], conv[1, h, i]
                    s[conv_2 + i], s[conv_3 + i] = conv[2, h, i], conv[3, h, i]
                    s[forget_0 + i], s[open_0 + i] = forget_bias[h, i], read_bias[h, i]
                    s[scale_0 + i] = scale[h, i]
                    s[carry_0 + i] = d_last_context[b, h, i]
                # The writes before token `length`; the loop shifts them by one before it uses them.
                for age in range(3):
                    t = length - 1 - age
                    for i in range(group):
                        if t >= 0:
                            s[w1_0 + age * group + i] = to_fp32(projected[b, t, 0, h, i])
                        else:
                            s[w1_0 + age * group + i] = tail[b, -t - 1, h, i]
            in_tail = True  # no document starts after token t: its write is in the last tail
            for t in range(length - 1, -1, -1):
                # Which of the earlier writes the filter saw: none from before a document's start.
                keep = ZERO if reset[b, t] else ONE
                m2 = ZERO if t >= 1 and reset[b, t - 1] else keep
                m3 = ZERO if t >= 2 and reset[b, t - 2] else m2
                age = length - 1 - t
                for h in range(groups):
                    s = scratch[h]
                    for i in range(3 * n):  # w1 .. w3 become w0 .. w2
                        s[w0_0 + i] = s[w1_0 + i]
                    if t >= 3:
                        for i in range(n):
                            s[w3_0 + i] = to_fp32(projected[b, t - 3, 0, h, i])
                    else:
                        for i in range(n):
                            s[w3_0 + i] = tail[b, 2 - t, h, i]
                    for i in range(n):
                        s[c_0 + i] = contexts[b, t, h, i]
                    if t > 0:
                        for i in range(n):
                            s[old_0 + i] = contexts[b, t - 1, h, i]
                    else:
                        for i in range(n):
                            s[old_0 + i] = context[b, h, i]
                    for i in range(n):
                        s[dy_0 + i] = to_fp32(d_read[b, t, h, i])
                    for i in range(n):
                        s[gate_0 + i] = to_fp32(projected[b, t, 2, h, i])
                    for i in range(n):
                        s[f_0 + i] = to_fp32(projected[b, t, 1, h, i])

                    mean = ZERO
                    for i in range(n):
                        mean += s[c_0 + i]
                    mean /= size
                    variance = ZERO
                    for i in range(n):
                        difference = s[c_0 + i] - mean
                        variance += difference * difference
                    deviation = ONE / np.sqrt(variance / size + _EPSILON)
                    mean_dn, mean_dn_n = ZERO, ZERO
                    for i in range(group):
                        normed = (s[c_0 + i] - mean) * deviation
                        g, dy = s[gate_0 + i] + s[open_0 + i], s[dy_0 + i]
                        gate = sigmoid(g)
                        s[sum_scale + i] += dy * normed * g * gate
                        dn = dy * s[scale_0 + i]
                        s[gate_0 + i] = dn * normed * gate * (ONE + g * (ONE - gate))
                        dn *= g * gate
                        s[dy_0 + i], s[c_0 + i] = dn, normed  # what these rows are from here on
                        mean_dn += dn
                        mean_dn_n += dn * normed
                    mean_dn /= size
                    mean_dn_n /= size
                    for i in range(n):
                        s[carry_0 + i] += deviation * (
                            s[dy_0 + i] - mean_dn - s[c_0 + i] * mean_dn_n
                        )
                    for i in range(group):
                        value = s[conv_0 + i] * s[w0_0 + i] + keep * s[conv_1 + i] * s[w1_0 + i]
                        value += m2 * s[conv_2 + i] * s[w2_0 + i] + m3 * s[conv_3 + i] * s[w3_0 + i]
                        f, carry = sigmoid(s[f_0 + i] + s[forget_0 + i]), s[carry_0 + i]
                        d0 = carry * (ONE - f)
                        s[d0_0 + i] = d0
                        s[f_0 + i] = (keep * s[old_0 + i] - value) * f * d0
                        s[carry_0 + i] = carry * keep * f
                    for i in range(group):
                        s[sum_forget + i] += s[f_0 + i]
                        s[sum_open + i] += s[gate_0 + i]
                        d0 = s[d0_0 + i]
                        s[sum_conv_0 + i] += d0 * s[w0_0 + i]
                        s[sum_conv_1 + i] += keep * d0 * s[w1_0 + i]
                        s[sum_conv_2 + i] += m2 * d0 * s[w2_0 + i]
                        s[sum_conv_3 + i] += m3 * d0 * s[w3_0 + i]
                    for i in range(group):
                        d0, d1, d2 = s[d0_0 + i], s[d1_0 + i], s[d2_0 + i]
                        d_write = s[conv_0 + i] * d0 + s[conv_1 + i] * d1
                        s[dw_0 + i] = d_write + s[conv_2 + i] * d2 + s[conv_3 + i] * s[d3_0 + i]
                        # A document's start hides this step's write, and earlier ones, from the
                        # steps after it.
                        s[d1_0 + i], s[d2_0 + i], s[d3_0 + i] = keep * d0, keep * d1, keep * d2
                    if in_tail and age < 3:
                        for i in range(n):
                            s[dw_0 + i] += d_last_tail[b, age, h, i]
                    for i in range(n):
                        d_projected[b, t, 0, h, i] = from_fp32(s[dw_0 + i], d_projected)
                    for i in range(n):
                        d_projected[b, t, 1, h, i] = from_fp32(s[f_0 + i], d_projected)
                    for i in range(n):
                        d_projected[b, t, 2, h, i] = from_fp32(s[gate_0 + i], d_projected)
                in_tail = in_tail and not reset[b, t]
            for t in range(length, time):
                for part in range(3):
                    for h in range(groups):
                        for i in range(n):
                            d_projected[b, t, part, h, i] = from_fp32(ZERO, d_projected)
            for h in range(groups):
                s = scratch[h]
                for i in range(group):
                    d_context[b, h, i] = s[carry_0 + i]
                    # The write of `age` tokens before the first: v_0 .. v_2 saw it.
                    d_tail[b, 0, h, i] = (
                        s[conv_1 + i] * s[d1_0 + i]
                        + s[conv_2 + i] * s[d2_0 + i]
                        + s[conv_3 + i] * s[d3_0 + i]
                    )
                    d_tail[b, 1, h, i] = s[conv_2 + i] * s[d1_0 + i] + s[conv_3 + i] * s[d2_0 + i]
                    d_tail[b, 2, h, i] = s[conv_3 + i] * s[d1_0 + i]
                    for row in range(CHANNEL_PARAMETERS):
                        d_parameters[b, row, h, i] = s[sum_conv_0 + row * group + i]
                if in_tail:
                    for age in range(length, 3):
                        for i in range(n):
                            d_tail[b, age - length, h, i] += d_last_tail[b, age, h, i]

    return backward


class _ContextRead(torch.autograd.Function):
    """`projected` is [B, T, 3, C] here."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        forget_bias: Tensor,
        read_bias: Tensor,
        conv: Tensor,
        scale: Tensor,
        reset: Tensor,
        lengths: Tensor,
        context: Tensor,
        tail: Tensor,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, _, channels = projected.shape
        group = group_size(channels)
        kept_time = time if with_gradients else 0
        read = torch.empty(batch, time, channels, dtype=projected.dtype)
        contexts = torch.empty(batch, kept_time, channels)
        last_context, last_tail = torch.empty_like(context), torch.empty_like(tail)
        inputs = (projected, forget_bias, read_bias, conv, scale, reset, lengths, context, tail)
        outputs = (read, contexts, last_context, last_tail)
        use_torch_threads()
        _forward_kernel(group)(*_arrays(group, *inputs, *outputs))
        ctx.save_for_backward(*inputs, contexts)
        return read, last_context, last_tail

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        projected, context, tail = saved[0], saved[7], saved[8]
        batch, channels = context.shape
        d_projected, d_context = torch.empty_like(projected), torch.empty_like(context)
        d_tail = torch.empty_like(tail)
        d_parameters = torch.empty(batch, CHANNEL_PARAMETERS, channels)
        d_outputs = (grad.contiguous() for grad in grad_outputs)
        d_inputs = (d_projected, d_parameters, d_context, d_tail)
        group = group_size(channels)
        use_torch_threads()
        _backward_kernel(group)(*_arrays(group, *saved, *d_outputs, *d_inputs))
        d_vectors = split_parameters(d_parameters.sum(dim=0))
        return d_projected, *d_vectors, None, None, d_context, d_tail, None


def _arrays(group: int, *tensors: Tensor) -> list[np.ndarray]:
    """Arrays whose channels are [.., groups, group]; resets and lengths as they are."""
    return [as_array(x.unflatten(-1, (-1, group)) if x.is_floating_point() else x) for x in tensors]


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
    """See :func:`newllm.model.context.reference.context_read`; fp32 inside."""
    batch, time, _ = projected.shape
    if reset is None:
        reset = torch.zeros(batch, time, dtype=torch.bool)
    if lengths is None:
        lengths = torch.full((batch,), time)
    return _ContextRead.apply(
        projected.contiguous().unflatten(-1, (3, -1)),
        forget_bias,
        read_bias,
        conv_weight,
        read_scale,
        reset.contiguous(),
        lengths.contiguous(),
        context.float().contiguous(),
        tail.float().contiguous(),
        torch.is_grad_enabled(),
    )
