"""Attention over a range of columns for each query, for the CPU.

The products are batched matrix products; rotation, layout of the heads and softmax are one pass
each, and the softmax takes no exponential of a column that is not visible. torch's fused attention
is three times slower here: its CPU kernel reads a mask of all columns, and its bfloat16 products of
small heads are slow. Equal to `transformer.attend` in plain torch (tested).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from newllm.model.kernels.numerics import (
    ONE,
    ZERO,
    as_array,
    exp,
    from_fp32,
    kernel,
    to_fp32,
    use_torch_threads,
)

_LANES = 16
"""Columns compared side by side: LLVM does not vectorise the search for one maximum."""

_LOWEST = np.finfo(np.float32).min


@kernel
def _to_heads(x, cos, sin, y):
    """[B, T, H, 2, P / 2] -> [B, H, T, 2, P / 2], the pairs turned by their column's angles."""
    batch, time, heads, _, half = x.shape
    for job in numba.prange(batch * time):
        b, t = job // time, job % time
        for h in range(heads):
            for i in range(half):
                left, right = to_fp32(x[b, t, h, 0, i]), to_fp32(x[b, t, h, 1, i])
                y[b, h, t, 0, i] = from_fp32(left * cos[t, i] - right * sin[t, i], y)
                y[b, h, t, 1, i] = from_fp32(right * cos[t, i] + left * sin[t, i], y)


@kernel
def _from_heads(y, cos, sin, x):
    """The transpose of `_to_heads`, as a linear map."""
    batch, time, heads, _, half = x.shape
    for job in numba.prange(batch * time):
        b, t = job // time, job % time
        for h in range(heads):
            for i in range(half):
                left, right = to_fp32(y[b, h, t, 0, i]), to_fp32(y[b, h, t, 1, i])
                x[b, t, h, 0, i] = from_fp32(left * cos[t, i] + right * sin[t, i], x)
                x[b, t, h, 1, i] = from_fp32(right * cos[t, i] - left * sin[t, i], x)


@kernel
def _softmax(scores, first, past):
    """Scores [B, H, T, K] -> their softmax over columns first[b, t] .. past + t, zero elsewhere."""
    batch, heads, time, columns = scores.shape
    for job in numba.prange(batch * heads):
        b, h = job // heads, job % heads
        s, peaks = np.empty(columns + _LANES, np.float32), np.empty(_LANES, np.float32)
        for t in range(time):
            row, low = scores[b, h, t], first[b, t]
            count = past + t + 1 - low
            for i in range(count):
                s[i] = to_fp32(row[low + i])
            for i in range(_LANES):
                s[count + i], peaks[i] = _LOWEST, _LOWEST
            for start in range(0, count, _LANES):
                for i in range(_LANES):
                    x = s[start + i]
                    peaks[i] = x if x > peaks[i] else peaks[i]
            peak = peaks[0]
            for i in range(_LANES):
                peak = max(peak, peaks[i])
            total = ZERO
            for i in range(count):
                s[i] = exp(s[i] - peak)
                total += s[i]
            inverse = ONE / total
            for i in range(low):
                row[i] = from_fp32(ZERO, scores)
            for i in range(count):
                row[low + i] = from_fp32(s[i] * inverse, scores)
            for i in range(low + count, columns):
                row[i] = from_fp32(ZERO, scores)


@kernel
def _softmax_backward(shares, d_shares, first, past):
    """Turns the gradients of `shares` into those of the scores."""
    batch, heads, time, columns = shares.shape
    for job in numba.prange(batch * heads):
        b, h = job // heads, job % heads
        for t in range(time):
            p, d, low, high = shares[b, h, t], d_shares[b, h, t], first[b, t], past + t + 1
            mean = ZERO
            for i in range(low, high):
                mean += to_fp32(p[i]) * to_fp32(d[i])
            for i in range(low):
                d[i] = from_fp32(ZERO, d_shares)
            for i in range(low, high):
                d[i] = from_fp32(to_fp32(p[i]) * (to_fp32(d[i]) - mean), d_shares)
            for i in range(high, columns):
                d[i] = from_fp32(ZERO, d_shares)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        first: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        past, scale = keys.shape[1] - queries.shape[1], (2 * cos.shape[1]) ** -0.5
        # The scale of the scores is in the queries' angles; values are not turned.
        turns = (
            (cos[past:] * scale, sin[past:] * scale),
            (cos, sin),
            (torch.ones_like(cos), torch.zeros_like(sin)),
        )
        q, k, v = (_heads(x, *turn) for x, turn in zip((queries, keys, values), turns, strict=True))
        shares = torch.matmul(q, k.mT)
        use_torch_threads()
        _softmax(as_array(shares), as_array(first), past)
        ctx.save_for_backward(q, k, v, shares, first)
        ctx.turns = turns
        return torch.matmul(shares, v).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares, first = ctx.saved_tensors
        dy = grad_outputs[0].unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
        d_scores = torch.matmul(dy, v.mT)
        use_torch_threads()
        arrays = [as_array(x) for x in (shares, d_scores, first)]
        _softmax_backward(*arrays, k.shape[2] - q.shape[2])
        turned = (
            torch.matmul(d_scores, k),
            torch.matmul(d_scores.mT, q),
            torch.matmul(shares.mT, dy),
        )
        gradients = (_lanes(x, *turn) for x, turn in zip(turned, ctx.turns, strict=True))
        return *gradients, None, None, None


def _heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, C] -> [B, H, T, P], turned."""
    batch, time, _ = x.shape
    pairs = x.contiguous().view(batch, time, -1, 2, cos.shape[1])
    y = x.new_empty(batch, pairs.shape[2], time, 2, cos.shape[1])
    use_torch_threads()
    _to_heads(*(as_array(tensor) for tensor in (pairs, cos, sin, y)))
    return y.flatten(3)


def _lanes(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, H, T, P] -> [B, T, C], turned back."""
    batch, heads, time, _ = y.shape
    pairs = y.contiguous().unflatten(-1, (2, -1))
    x = y.new_empty(batch, time, heads, *pairs.shape[3:])
    use_torch_threads()
    _from_heads(*(as_array(tensor) for tensor in (pairs, cos, sin, x)))
    return x.flatten(2)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, first: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """See :func:`newllm.model.baselines.transformer.attend`; cos and sin of `rotary_angles`."""
    return _Attend.apply(queries, keys, values, first.contiguous(), cos, sin)
